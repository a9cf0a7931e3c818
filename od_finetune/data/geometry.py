"""Deterministic geometry: each function moves the image, boxes, masks and points of a sample alike, and draws nothing.

Pixel windows are int32 (top, left, height, width). Images keep their type unless resized.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from od_finetune.data import sample as s
from od_finetune.data.sample import Sample


def image_size(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Height and width, int32 scalars."""
    shape = tf.shape(image)
    return shape[0], shape[1]


def as_float(image: tf.Tensor) -> tf.Tensor:
    """float32, same values."""
    return tf.cast(image, tf.float32)


def move_points(
    sample: Sample, points: Callable[[tf.Tensor], tf.Tensor], masks: Callable[[tf.Tensor], tf.Tensor] | None = None
) -> dict[str, tf.Tensor]:
    """The objects with `points` applied to what they have of coordinates (`[..., 2]`) and `masks` to their masks."""
    objects = dict(sample.objects)
    if s.KEYPOINTS in objects:
        objects[s.KEYPOINTS] = points(objects[s.KEYPOINTS])
    if s.DENSE_POSE_SURFACE_COORDS in objects:
        yx, vu = tf.split(objects[s.DENSE_POSE_SURFACE_COORDS], 2, axis=-1)
        objects[s.DENSE_POSE_SURFACE_COORDS] = tf.concat([points(yx), vu], axis=-1)
    if masks is not None and s.MASKS in objects:
        objects[s.MASKS] = masks(objects[s.MASKS])
    return objects


def permute_keypoints(sample: Sample, permutation: Sequence[int] | None) -> Sample:
    """Each keypoint becomes the one with the index that `permutation` has in its place; None leaves all."""
    present = [name for name in s.PER_KEYPOINT if name in sample.objects]
    if not permutation or not present:
        return sample
    moved = {name: tf.gather(sample.objects[name], permutation, axis=1) for name in present}
    return sample._replace(objects={**sample.objects, **moved})


def flip_horizontally(sample: Sample) -> Sample:
    """Left becomes right."""
    ymin, xmin, ymax, xmax = tf.unstack(sample.boxes, axis=-1)
    boxes = tf.stack([ymin, 1.0 - xmax, ymax, 1.0 - xmin], axis=-1)
    objects = move_points(
        sample, lambda yx: tf.stack([yx[..., 0], 1.0 - yx[..., 1]], axis=-1), lambda masks: tf.reverse(masks, [2])
    )
    return Sample(tf.reverse(sample.image, [1]), boxes, objects)


def flip_vertically(sample: Sample) -> Sample:
    """Top becomes bottom."""
    ymin, xmin, ymax, xmax = tf.unstack(sample.boxes, axis=-1)
    boxes = tf.stack([1.0 - ymax, xmin, 1.0 - ymin, xmax], axis=-1)
    objects = move_points(
        sample, lambda yx: tf.stack([1.0 - yx[..., 0], yx[..., 1]], axis=-1), lambda masks: tf.reverse(masks, [1])
    )
    return Sample(tf.reverse(sample.image, [0]), boxes, objects)


def rotate90(sample: Sample) -> Sample:
    """A quarter turn anticlockwise: what was right is on top."""
    ymin, xmin, ymax, xmax = tf.unstack(sample.boxes, axis=-1)
    boxes = tf.stack([1.0 - xmax, ymin, 1.0 - xmin, ymax], axis=-1)
    objects = move_points(
        sample,
        lambda yx: tf.stack([1.0 - yx[..., 1], yx[..., 0]], axis=-1),
        lambda masks: tf.reverse(tf.transpose(masks, [0, 2, 1]), [1]),
    )
    return Sample(tf.image.rot90(sample.image), boxes, objects)


def resize(sample: Sample, height: tf.Tensor | int, width: tf.Tensor | int, method: str = "bilinear") -> Sample:
    """Resizes without keeping the aspect ratio; what is normalised stays. The image becomes float32."""
    image = tf.image.resize(as_float(sample.image), tf.stack([height, width]), method=method)
    if method == "bicubic":  # overshoots at edges
        image = tf.clip_by_value(image, 0.0, 255.0)
    return resize_masks(sample._replace(image=image), height, width)


def resize_masks(sample: Sample, height: tf.Tensor | int, width: tf.Tensor | int) -> Sample:
    """Resizes the masks alone, where there are any, to the nearest pixel."""
    if s.MASKS not in sample.objects:
        return sample
    masks = tf.image.resize(sample.objects[s.MASKS][..., None], tf.stack([height, width]), method="nearest")[..., 0]
    return sample._replace(objects={**sample.objects, s.MASKS: masks})


def masks_like(masks: tf.Tensor, image: tf.Tensor, true_shape: tf.Tensor) -> tf.Tensor:
    """Masks uint8 `[N, H, W]` in the frame of an image that an image_resizer gave: `[N, h, w]`.

    They are resized to the true part (int32 `[3]`) to the nearest pixel, sampled at the pixels' corners as the image
    resizers do, and filled with zeros to the size of the image.
    """
    # resize_nearest_neighbor keeps uint8, and a pixel of the result depends on one of the source
    resized = tf.compat.v1.image.resize_nearest_neighbor(masks[..., None], true_shape[:2])[..., 0]
    margins = tf.shape(image)[:2] - true_shape[:2]
    padded = tf.pad(resized, [[0, 0], [0, margins[0]], [0, margins[1]]])
    return tf.ensure_shape(padded, [None, *image.shape[:2]])


def to_window(boxes: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """Boxes `[N, 4]` relative to `window` `[4]`, both given relative to the same image; not clipped."""
    ymin, xmin, ymax, xmax = tf.unstack(window)
    height, width = ymax - ymin, xmax - xmin
    return (boxes - tf.stack([ymin, xmin, ymin, xmin])) / tf.stack([height, width, height, width])


def overlap(boxes: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """Share of each box's area that lies in the window (IoA), `[N]`; 0 for a box without area."""
    inside = tf.concat([tf.maximum(boxes[:, :2], window[:2]), tf.minimum(boxes[:, 2:], window[2:])], axis=-1)
    return tf.math.divide_no_nan(_area(inside), _area(boxes))


def _area(boxes: tf.Tensor) -> tf.Tensor:
    sides = tf.maximum(boxes[:, 2:] - boxes[:, :2], 0.0)
    return sides[:, 0] * sides[:, 1]


def points_to_window(points: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """Points `[..., 2]` (y, x) relative to `window` `[4]`, both given relative to the same image."""
    return (points - window[:2]) / (window[2:] - window[:2])


def _inside(points: tf.Tensor) -> tf.Tensor:
    """Whether points `[..., 2]` lie within the image, bool `[...]`; False for NaN."""
    return tf.reduce_all((points >= 0.0) & (points <= 1.0), axis=-1)


def drop_points_outside(objects: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Keypoints outside of the image count as not labelled; such DensePose points go, those after them move up."""
    objects = dict(objects)
    if s.KEYPOINTS in objects:
        inside = _inside(objects[s.KEYPOINTS])
        objects[s.KEYPOINTS] = tf.where(inside[..., None], objects[s.KEYPOINTS], float("nan"))
        objects[s.KEYPOINT_VISIBILITIES] = tf.logical_and(objects[s.KEYPOINT_VISIBILITIES], inside)
    if s.DENSE_POSE_NUM_POINTS in objects:
        coords = objects[s.DENSE_POSE_SURFACE_COORDS]
        real = tf.sequence_mask(objects[s.DENSE_POSE_NUM_POINTS], tf.shape(coords)[1])
        kept = tf.logical_and(_inside(coords[..., :2]), real)
        order = tf.argsort(tf.cast(tf.logical_not(kept), tf.int32), axis=1, stable=True)
        count = tf.reduce_sum(tf.cast(kept, tf.int32), axis=1)
        still = tf.sequence_mask(count, tf.shape(coords)[1])
        coords = tf.gather(coords, order, axis=1, batch_dims=1)
        parts = tf.gather(objects[s.DENSE_POSE_PART_IDS], order, axis=1, batch_dims=1)
        objects[s.DENSE_POSE_SURFACE_COORDS] = tf.where(still[..., None], coords, 0.0)
        objects[s.DENSE_POSE_PART_IDS] = tf.where(still, parts, 0)
        objects[s.DENSE_POSE_NUM_POINTS] = count
    return objects


def keep_in_window(sample: Sample, window: tf.Tensor, overlap_thresh: tf.Tensor | float, clip: bool) -> Sample:
    """Boxes and points relative to `window` (normalised, `[4]`); drops boxes outside it or with less than the overlap
    in it and, if `clip`, what remains of boxes and points beyond it."""
    share = overlap(sample.boxes, window)
    kept = sample.select(tf.logical_and(share > 0.0, share >= overlap_thresh))
    boxes = to_window(kept.boxes, window)
    objects = move_points(kept, lambda points: points_to_window(points, window))
    if clip:
        boxes, objects = tf.clip_by_value(boxes, 0.0, 1.0), drop_points_outside(objects)
    return kept._replace(boxes=boxes, objects=objects)


def crop(
    sample: Sample,
    begin: tf.Tensor,
    size: tf.Tensor,
    overlap_thresh: tf.Tensor | float = 0.0,
    clip: bool = True,
) -> Sample:
    """The part of the image at `begin` (top, left) of `size` (height, width), int32 `[2]` each.

    A box stays if at least `overlap_thresh` of its area (and more than nothing) is inside; `clip` cuts it off at
    the crop's edge, and takes keypoints beyond it as not labelled.
    """
    image = tf.slice(sample.image, tf.concat([begin, [0]], 0), tf.concat([size, [3]], 0))
    full = tf.cast(tf.tile(tf.shape(sample.image)[:2], [2]), tf.float32)
    window = tf.cast(tf.concat([begin, begin + size], 0), tf.float32) / full
    cropped = keep_in_window(sample, window, overlap_thresh, clip)
    objects = dict(cropped.objects)
    if s.MASKS in objects:
        objects[s.MASKS] = tf.slice(objects[s.MASKS], tf.concat([[0], begin], 0), tf.concat([[-1], size], 0))
    return Sample(tf.ensure_shape(image, [None, None, 3]), cropped.boxes, objects)


def pad(sample: Sample, offset: tf.Tensor, size: tf.Tensor, color: tf.Tensor) -> Sample:
    """The image laid at `offset` (top, left) on a canvas of `size` (height, width), int32 `[2]` each.

    `color`: float32 `[3]`. The image becomes float32.
    """
    shape = tf.shape(sample.image)[:2]
    margins = tf.stack([offset, size - offset - shape], axis=1)
    # padding the difference from the colour with zeros leaves the colour in the margins
    image = tf.pad(as_float(sample.image) - color, tf.concat([margins, [[0, 0]]], 0)) + color
    old, new = tf.cast(shape, tf.float32), tf.cast(size, tf.float32)
    top_left = tf.cast(offset, tf.float32)
    window = tf.concat([-top_left, new - top_left], 0) / tf.tile(old, [2])
    boxes = tf.clip_by_value(to_window(sample.boxes, window), 0.0, 1.0)
    objects = move_points(
        sample,
        lambda points: points_to_window(points, window),
        lambda masks: tf.pad(masks, tf.concat([[[0, 0]], margins], 0)),
    )
    return Sample(tf.ensure_shape(image, [None, None, 3]), boxes, objects)
