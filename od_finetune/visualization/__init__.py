"""Pictures of detections beside ground truth, for TensorBoard and for files.

Images are uint8 `[H, W, 3]`; boxes are `[ymin, xmin, ymax, xmax]`, normalised to the image.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from od_finetune import fields
from od_finetune.visualization.overlays import Color, draw_keypoints, draw_masks

SMALLEST_SIDE, LARGEST_SIDE = 420, 1024
_BACKGROUND, _CAPTION = (24, 26, 30), (232, 234, 238)


class Style(NamedTuple):
    """What to show; the defaults are EvalConfig's."""

    min_score: float = 0.5
    max_boxes: int = 20
    skip_scores: bool = False
    skip_labels: bool = False
    groundtruth_on_prediction: bool = False
    groundtruth_color: Color = (0, 0, 0)
    keypoint_edges: tuple[tuple[int, int], ...] = ()  # places of two keypoints to join by a line


class Objects(NamedTuple):
    """Boxes to draw on one image, without padding."""

    boxes: np.ndarray  # float [n, 4]
    classes: np.ndarray  # int [n], 0-based
    scores: np.ndarray | None = None  # float [n]; None for ground truth
    notes: Sequence[str] = ()  # appended to the labels, e.g. "crowd"; empty or [n]
    masks: np.ndarray | None = None  # [n, h, w], probabilities (or 0 and 1) within `mask_boxes`
    mask_boxes: np.ndarray | None = None  # float [n, 4]; None: the boxes
    keypoints: np.ndarray | None = None  # float [n, K, 2], normalised y and x; NaN where there is none
    keypoint_scores: np.ndarray | None = None  # float [n, K]; those below the style's `min_score` are not drawn


def class_color(index: int) -> Color:
    """A colour per class: hues a golden angle apart, so that neighbours differ, at two brightnesses."""
    hue = (0.58 + index * 0.381966) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.72 if index % 2 else 0.9, 1.0 if index % 2 else 0.92)
    return round(red * 255), round(green * 255), round(blue * 255)


def fit(image: np.ndarray, smallest: int = SMALLEST_SIDE, largest: int = LARGEST_SIDE) -> np.ndarray:
    """Scales an image, keeping its aspect, so that text on it is legible: longer side in `smallest..largest`."""
    height, width = image.shape[:2]
    scale = min(max(1.0, smallest / max(height, width)), largest / max(height, width))
    if scale == 1.0:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def draw_boxes(image: np.ndarray, boxes: np.ndarray, labels: Sequence[str], colors: Sequence[Color]) -> np.ndarray:
    """Draws boxes, the first on top, each with its label where it hides no other label if there is such a place.

    Args:
      image: uint8 `[H, W, 3]`; not changed.
      boxes: float `[n, 4]`; parts outside of the image are cut off.
      labels: one text per box; "" for none.
      colors: one per box.
    """
    canvas = Image.fromarray(np.array(image, np.uint8))
    draw = ImageDraw.Draw(canvas)
    line = max(2, round(min(canvas.size) / 160))
    font = _font(canvas.size)
    corners = [_corners(box, canvas.size) for box in boxes]
    for (left, top, right, bottom), color in reversed(list(zip(corners, colors, strict=True))):
        halo = (left - 1, top - 1, right + 1, bottom + 1)
        draw.rectangle(halo, outline=(0, 0, 0), width=line + 2)
        draw.rectangle((left, top, right, bottom), outline=color, width=line)
    taken: list[tuple[int, int, int, int]] = []
    for box, label, color in zip(corners, labels, colors, strict=True):
        if label:
            taken.append(_draw_label(draw, font, box, label, color, canvas.size, taken))
    return np.asarray(canvas)


def draw_objects(
    image: np.ndarray,
    objects: Objects,
    names: Mapping[int, str],
    style: Style = Style(),  # noqa: B008 (immutable)
    color: Color | None = None,
) -> np.ndarray:
    """Draws the best `max_boxes` objects of at least `min_score` (ground truth: all), coloured by class.

    Args:
      image: uint8 `[H, W, 3]`.
      objects: what to draw.
      names: category name by label id (1-based); a class without a name shows as its id.
      style: what to show.
      color: one colour for all instead of one per class.
    """
    order = np.arange(len(objects.boxes))
    if objects.scores is not None:
        order = np.argsort(-np.asarray(objects.scores), kind="stable")
        order = order[np.asarray(objects.scores)[order] >= style.min_score][: style.max_boxes]
    labels, colors = [], []
    for i in order:
        index = int(objects.classes[i])
        parts = [] if style.skip_labels else [names.get(index + 1, f"id {index + 1}")]
        if objects.notes and objects.notes[i]:
            parts.append(f"({objects.notes[i]})")
        if objects.scores is not None and not style.skip_scores:
            parts.append(f"{float(objects.scores[i]):.0%}")
        labels.append(" ".join(parts))
        colors.append(color or class_color(index))
    boxes = np.asarray(objects.boxes)[order]
    if objects.masks is not None:
        within = boxes if objects.mask_boxes is None else objects.mask_boxes[order]
        image = draw_masks(image, objects.masks[order], within, colors)
    image = draw_boxes(image, boxes, labels, colors)
    if objects.keypoints is not None:
        image = draw_keypoints(image, _shown_keypoints(objects, style)[order], colors, style.keypoint_edges)
    return image


def _shown_keypoints(objects: Objects, style: Style) -> np.ndarray:
    if objects.keypoint_scores is None:
        return objects.keypoints
    return np.where((objects.keypoint_scores >= style.min_score)[..., None], objects.keypoints, np.nan)


def side_by_side(
    image: np.ndarray,
    groundtruth: Objects,
    detections: Objects,
    names: Mapping[int, str],
    style: Style = Style(),  # noqa: B008 (immutable)
    title: str = "",
) -> np.ndarray:
    """One picture, prediction left, ground truth right, with captions; small images are enlarged first.

    With `style.groundtruth_on_prediction` the ground-truth boxes are drawn on the left as well, below the
    predictions, in `style.groundtruth_color` and without labels.
    """
    image = fit(image)
    left = image
    if style.groundtruth_on_prediction:
        count = len(groundtruth.boxes)
        left = draw_boxes(left, groundtruth.boxes, [""] * count, [style.groundtruth_color] * count)
    left = draw_objects(left, detections, names, style)
    right = draw_objects(image, groundtruth, names, style)
    shown = int(np.sum(np.asarray(detections.scores) >= style.min_score)) if detections.scores is not None else 0
    caption = f"prediction: {min(shown, style.max_boxes)}"
    panels = [_captioned(left, caption, title), _captioned(right, f"ground truth: {len(groundtruth.boxes)}", "")]
    gap = np.full((panels[0].shape[0], 6, 3), _BACKGROUND, np.uint8)
    return np.concatenate([panels[0], gap, panels[1]], axis=1)


def draw_example(
    batch: fields.Batch,
    detections: fields.Detections,
    index: int,
    names: Mapping[int, str],
    style: Style = Style(),  # noqa: B008 (immutable)
) -> np.ndarray:
    """`side_by_side` of image `index` of a batch (eager tensors or numpy), titled by its source id.

    The image is the one the network saw, without padding.
    """
    height, width = (int(side) for side in np.asarray(batch.true_shapes[index])[:2])
    image = np.clip(np.rint(np.asarray(batch.images[index])[:height, :width]), 0, 255).astype(np.uint8)
    source_id = np.asarray(batch.source_ids)[index]
    return side_by_side(
        image,
        _groundtruth(batch.groundtruth, index, (height, width)),
        _detections(detections, index),
        names,
        style,
        source_id.decode("utf-8", "replace") if isinstance(source_id, bytes) else str(source_id),
    )


def draw_batch(
    batch: fields.Batch,
    detections: fields.Detections,
    names: Mapping[int, str],
    style: Style = Style(),  # noqa: B008 (immutable)
    limit: int | None = None,
) -> list[np.ndarray]:
    """`draw_example` of the first `limit` images of a batch; each may have its own size."""
    count = len(batch.true_shapes) if limit is None else min(limit, len(batch.true_shapes))
    return [draw_example(batch, detections, index, names, style) for index in range(count)]


def contact_sheet(images: Sequence[np.ndarray], columns: int | None = None, gap: int = 10) -> np.ndarray:
    """Images of any sizes in a grid as near to a square as their shape allows, each centred in its cell.

    Raises:
      ValueError: no image.
    """
    if not images:
        raise ValueError("contact_sheet: expected at least one image, got none")
    cell_height, cell_width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    if columns is None:
        columns = max(1, min(len(images), round(math.sqrt(len(images) * cell_height / cell_width))))
    rows = math.ceil(len(images) / columns)
    sheet = np.full((rows * (cell_height + gap) + gap, columns * (cell_width + gap) + gap, 3), _BACKGROUND, np.uint8)
    for i, image in enumerate(images):
        height, width = image.shape[:2]
        top = gap + (i // columns) * (cell_height + gap) + (cell_height - height) // 2
        left = gap + (i % columns) * (cell_width + gap) + (cell_width - width) // 2
        sheet[top : top + height, left : left + width] = image
    return sheet


def _detections(detections: fields.Detections, i: int) -> Objects:
    """What was found in image `i`."""
    found = int(detections.num_detections[i])
    names = ("boxes", "classes", "scores", "masks", "keypoints", "keypoint_scores")
    values = {name: getattr(detections, name) for name in names}
    return Objects(**{k: None if v is None else np.asarray(v[i])[:found] for k, v in values.items()})


def _groundtruth(groundtruth: fields.Groundtruth, i: int, size: tuple[int, int]) -> Objects:
    """The real boxes of image `i`, whose true part has `size`; a box of several classes appears once for each."""
    truth = fields.Groundtruth(*(None if value is None else np.asarray(value[i]) for value in groundtruth))
    row, index = np.nonzero(truth.classes[: int(truth.num_boxes)] >= 0.5)
    kinds = (("crowd", truth.is_crowd), ("group", truth.group_of), ("difficult", truth.difficult))
    notes = [", ".join(kind for kind, flags in kinds if flags[r]) for r in row]
    return Objects(
        truth.boxes[row],
        index,
        None,
        notes,
        masks=None if truth.masks is None else truth.masks[row, : size[0], : size[1]],
        mask_boxes=np.tile(np.float32([0, 0, 1, 1]), (len(row), 1)),
        keypoints=None if truth.keypoints is None else truth.keypoints[row],
    )


def _font(size: tuple[int, int]) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font: the same on every machine."""
    return ImageFont.load_default(size=min(28, max(14, round(min(size) / 26))))


def _corners(box: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Normalised box -> left, top, right, bottom in pixels, ordered and inside of the image."""
    top, left, bottom, right = np.nan_to_num(np.clip(np.asarray(box, np.float64), 0.0, 1.0))
    width, height = size[0] - 1, size[1] - 1
    left, right = sorted((round(left * width), round(right * width)))
    top, bottom = sorted((round(top * height), round(bottom * height)))
    return left, top, right, bottom


def _draw_label(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    box: tuple[int, int, int, int],
    label: str,
    color: Color,
    size: tuple[int, int],
    taken: list[tuple[int, int, int, int]],
) -> tuple[int, int, int, int]:
    """Draws the label on a plate of the box's colour; returns the plate (left, top, right, bottom)."""
    _, ascent, text_width, text_bottom = draw.textbbox((0, 0), label, font=font)
    pad = 3
    width, height = int(text_width) + 2 * pad, int(text_bottom - ascent) + 2 * pad
    left, top, right, bottom = box
    places = [(left - 1, top - height), (left, top), (left, bottom - height), (left - 1, bottom), (right - width, top)]
    plates = []
    for x, y in places:
        x, y = max(0, min(x, size[0] - width)), max(0, min(y, size[1] - height))
        plates.append((x, y, x + width, y + height))
    plate = min(plates, key=lambda p: sum(_overlap(p, other) for other in taken))
    draw.rectangle(plate, fill=color)
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    ink = (0, 0, 0) if luminance > 130 else (255, 255, 255)
    draw.text((plate[0] + pad, plate[1] + pad - ascent), label, fill=ink, font=font)
    return plate


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> int:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _captioned(image: np.ndarray, left: str, right: str) -> np.ndarray:
    """A bar above the image: `left` text, and `right` text shortened to what room there is."""
    height, width = image.shape[:2]
    font = _font((width, height))
    bar = Image.new("RGB", (width, round(getattr(font, "size", 12) * 1.7)), _BACKGROUND)
    draw = ImageDraw.Draw(bar)
    draw.text((6, bar.height / 2), left, fill=_CAPTION, font=font, anchor="lm")
    room = width - draw.textlength(left, font=font) - 30
    while right and draw.textlength(right, font=font) > room:
        right = "…" + right[2:] if len(right) > 2 else ""
    draw.text((width - 6, bar.height / 2), right, fill=(150, 156, 166), font=font, anchor="rm")
    return np.concatenate([np.asarray(bar), image], axis=0)
