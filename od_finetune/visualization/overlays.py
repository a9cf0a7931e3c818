"""Masks and keypoints on pictures: uint8 `[H, W, 3]`, never changed in place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from od_finetune.boxes.paste import paste

Color = tuple[int, int, int]

_OPACITY = 0.45


def draw_masks(image: np.ndarray, masks: np.ndarray, boxes: np.ndarray, colors: Sequence[Color]) -> np.ndarray:
    """Tints what each mask covers and traces its outline, the first mask on top.

    Args:
      image: uint8 `[H, W, 3]`.
      masks: `[n, h, w]`, probabilities within the boxes.
      boxes: float `[n, 4]`, normalised; `[0, 0, 1, 1]` for a mask of the whole image.
      colors: one per mask.
    """
    canvas = image.astype(np.float32)
    for mask, box, color in reversed(list(zip(masks, boxes, colors, strict=True))):
        covered = paste(mask, box, image.shape[:2]).astype(bool)
        canvas[covered] += _OPACITY * (np.float32(color) - canvas[covered])
        canvas[_outline(covered)] = color
    return np.rint(canvas).astype(np.uint8)


def _outline(covered: np.ndarray) -> np.ndarray:
    """Pixels of a mask beside one that is not of it; the image's edge is none."""
    padded = np.pad(covered, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return covered & ~inner


def draw_keypoints(
    image: np.ndarray, keypoints: np.ndarray, colors: Sequence[Color], edges: Sequence[tuple[int, int]] = ()
) -> np.ndarray:
    """Dots where keypoints are, joined by `edges`; one that is not finite is left out, its edges too.

    Args:
      image: uint8 `[H, W, 3]`.
      keypoints: float `[n, K, 2]`, normalised y and x.
      colors: one per object.
      edges: places of two keypoints each; those that an object does not have are passed over.
    """
    canvas = Image.fromarray(np.array(image, np.uint8))
    draw = ImageDraw.Draw(canvas)
    radius = max(2, round(min(canvas.size) / 130))
    scale = np.array([canvas.height - 1, canvas.width - 1])
    for points, color in reversed(list(zip(keypoints, colors, strict=True))):
        places = {i: tuple(point[::-1] * scale[::-1]) for i, point in enumerate(points) if np.isfinite(point).all()}
        for start, end in edges:
            if start in places and end in places:
                draw.line([places[start], places[end]], fill=(0, 0, 0), width=radius + 2)
                draw.line([places[start], places[end]], fill=color, width=radius)
        for x, y in places.values():
            draw.ellipse((x - radius - 1, y - radius - 1, x + radius + 1, y + radius + 1), fill=(0, 0, 0))
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    return np.asarray(canvas)
