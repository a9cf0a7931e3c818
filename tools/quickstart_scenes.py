"""Draws the quickstart's pictures: objects of given classes on textured backgrounds among distractors.

A scene is a function of its random generator alone: the same seed draws the same picture.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from quickstart_shapes import SHAPES, Part, ellipse

OVERSAMPLING = 2
MIN_SCALE, MAX_SCALE = 0.14, 0.58
MAX_HIDDEN = 0.3


class Scene(NamedTuple):
    """One picture and what is on it."""

    image: np.ndarray  # uint8 [H, W, 3]
    boxes: np.ndarray  # float32 [n, 4]: ymin, xmin, ymax, xmax, normalised
    labels: np.ndarray  # int64 [n]: indices into the classes asked for


def draw_scene(rng: np.random.Generator, classes: Sequence[str], size: tuple[int, int]) -> Scene:
    """Draws one to four objects.

    Args:
      rng: decides everything.
      classes: names from `quickstart_shapes.SHAPES`.
      size: height and width in pixels.

    An object's longer side is 12 to 60 % of the picture's shorter side; at most 30 % of it is hidden by others, and
    its box encloses all of it, hidden parts too.
    """
    height, width = size[0] * OVERSAMPLING, size[1] * OVERSAMPLING
    canvas = background(rng, height, width)
    for _ in range(rng.integers(2, 7)):
        _paint(canvas, rng, *_raster(_distractor(rng), _pose(rng, height, width, 0.03, 0.13), height, width))
    masks: list[np.ndarray] = []
    boxes, labels = [], []
    for _ in range(rng.choice([1, 2, 3, 4], p=[0.3, 0.35, 0.23, 0.12])):
        label = int(rng.integers(len(classes)))
        placed = _place(rng, SHAPES[classes[label]](), masks, height, width)
        if placed is None:
            continue
        tone, mask = placed
        _paint(canvas, rng, tone, mask)
        masks.append(mask)
        labels.append(label)
        boxes.append(_box(mask))
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8)).reduce(OVERSAMPLING)
    noise = rng.normal(0, rng.uniform(0, 3), (*size, 3))
    image = np.clip(np.asarray(image, np.float64) + noise, 0, 255).astype(np.uint8)
    return Scene(image, np.array(boxes, np.float32), np.array(labels, np.int64))


def background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Gradient, blotches, stripes or checks of two muted colours: float `[height, width, 3]`, 0..255."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    angle = rng.uniform(0, np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    period = rng.uniform(0.08, 0.3) * min(height, width)
    kind = rng.integers(4)
    if kind == 0:
        mix = (along - along.min()) / np.ptp(along)
    elif kind == 1:
        coarse = rng.uniform(0, 1, (int(rng.integers(4, 12)),) * 2).astype(np.float32)
        mix = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float64)
    elif kind == 2:
        mix = 0.5 + 0.5 * np.clip(4 * np.sin(2 * np.pi * along / period), -1, 1)
    else:
        mix = ((np.floor(along / period) + np.floor(across / period)) % 2).astype(np.float64)
    low, high = (_color(rng, (0.05, 0.45), (0.25, 0.95)) for _ in range(2))
    strength = rng.uniform(0.3, 1.0)
    mix = np.clip(mix, 0, 1)[..., None] * strength
    grain = rng.normal(0, rng.uniform(0, 5), (height // 2 + 1, width // 2 + 1, 1)).repeat(2, 0).repeat(2, 1)
    return low * (1 - mix) + high * mix + grain[:height, :width]


class _Pose(NamedTuple):
    """How a shape lies on the canvas: x, y = centre + size / 2 * rotation * points."""

    center: np.ndarray
    matrix: np.ndarray


def _pose(rng: np.random.Generator, height: int, width: int, smallest: float, largest: float, tilt: float = 180.0):
    size = np.exp(rng.uniform(np.log(smallest), np.log(largest))) * min(height, width)
    angle, squeeze = np.radians(rng.uniform(-tilt, tilt)), rng.uniform(0.8, 1.0)
    flip = rng.choice([-1.0, 1.0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    center = np.array([rng.uniform(0, width), rng.uniform(0, height)])
    return _Pose(center, turn @ np.diag([squeeze * flip, 1.0]) * size / 2)


def _place(
    rng: np.random.Generator, parts: list[Part], masks: list[np.ndarray], height: int, width: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """A raster that lies inside of the picture and hides none of `masks` too much; None if no try succeeds."""
    outline = np.concatenate([points for points, _ in parts])
    for attempt in range(30):
        largest = MAX_SCALE if attempt < 10 else MAX_SCALE / 2
        pose = _pose(rng, height, width, MIN_SCALE, largest, tilt=60.0)
        reach = outline @ pose.matrix.T
        # The longer side of the box, not of the shape before its rotation, is what the scale is about.
        reach *= (scale := 2 * np.linalg.norm(pose.matrix[:, 1]) / np.ptp(reach, axis=0).max())
        low, high = 2 - reach.min(0), np.array([width, height]) - 3 - reach.max(0)
        if np.any(low >= high):
            continue
        pose = _Pose(rng.uniform(low, high), pose.matrix * scale)
        tone, mask = _raster(parts, pose, height, width)
        if _free(mask, masks):
            return tone, mask
    return None


def _free(mask: np.ndarray, masks: list[np.ndarray]) -> bool:
    """Whether an object may be painted on those of `masks` (in painting order).

    None of them may end up hidden too much by all painted later, nor may the new one lie mostly on another: small on
    large would hide little and still be hard to tell.
    """
    above = mask
    for below in reversed(masks):
        if (below & above).sum() > MAX_HIDDEN * below.sum() or (below & mask).sum() > MAX_HIDDEN * mask.sum():
            return False
        above = above | below
    return True


def _raster(parts: list[Part], pose: _Pose, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Tone float `[height, width]` and mask bool of the posed shape."""
    tone = Image.new("F", (width, height), 0.0)
    draw = ImageDraw.Draw(tone)
    for points, value in parts:
        draw.polygon([tuple(p) for p in points @ pose.matrix.T + pose.center], fill=value)
    values = np.asarray(tone, np.float64)
    return values, values > 0


def _distractor(rng: np.random.Generator) -> list[Part]:
    """A blob, dot, chip or stick: nothing that any class looks like."""
    kind = rng.integers(4)
    if kind == 0:
        angle = np.linspace(0, 2 * np.pi, 14)[:-1]
        radius = rng.uniform(0.5, 1.0, 13)[:, None]
        return [(radius * np.stack([np.cos(angle), np.sin(angle)], 1), 1.0)]
    if kind == 1:
        return [(ellipse(0, 0, 0.7, 0.7), 1.0)]
    if kind == 2:
        return [(rng.uniform(-1, 1, (3, 2)), 1.0)]
    return [(np.array([[-3.0, -0.12], [3.0, -0.12], [3.0, 0.12], [-3.0, 0.12]]), 0.8)]


def _paint(canvas: np.ndarray, rng: np.random.Generator, tone: np.ndarray, mask: np.ndarray) -> None:
    """Paints a shape on the canvas: soft shadow, one hue, light from one side, dark rim."""
    color = _color(rng, (0.45, 0.95), (0.45, 1.0))
    angle = rng.uniform(0, 2 * np.pi)
    if not mask.any():
        return
    short = min(mask.shape)
    offset = max(1, round(short / 90))
    rows, columns = (_window(mask.any(axis), margin=short // 20) for axis in (1, 0))
    canvas, tone, mask = canvas[rows, columns], tone[rows, columns], mask[rows, columns]
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    shadow = np.asarray(picture.filter(ImageFilter.GaussianBlur(short / 80)), np.float64) / 255
    canvas[offset:, offset:] *= 1 - 0.4 * shadow[:-offset, :-offset, None]
    y, x = np.nonzero(mask)
    light = (x - x.mean()) * np.cos(angle) + (y - y.mean()) * np.sin(angle)
    light = 1 + 0.18 * light / (np.abs(light).max() + 1e-9)
    rim = ~np.asarray(picture.filter(ImageFilter.MinFilter(3)), bool)[y, x]
    shade = tone[y, x] * light * np.where(rim, 0.55, 1.0)
    canvas[y, x] = color * np.minimum(shade, 1)[:, None] + (255 - color) * np.clip(shade - 1, 0, 1)[:, None]


def _color(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> np.ndarray:
    return 255 * np.array(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(*saturation), rng.uniform(*value)))


def _window(marked: np.ndarray, margin: int) -> slice:
    """The range of indices that holds all that is marked, and a margin."""
    where = np.nonzero(marked)[0]
    return slice(max(0, where[0] - margin), where[-1] + margin + 1)


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Normalised `[ymin, xmin, ymax, xmax]` around the mask."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    height, width = mask.shape
    return rows[0] / height, columns[0] / width, (rows[-1] + 1) / height, (columns[-1] + 1) / width
