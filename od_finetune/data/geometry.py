"""Deterministic geometry: each function moves the image and the boxes of a sample alike, and draws nothing.

Pixel windows are int32 (top, left, height, width). Images keep their type unless resized.
"""

from __future__ import annotations

import tensorflow as tf

from od_finetune.data.sample import Sample


def image_size(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Height and width, int32 scalars."""
    shape = tf.shape(image)
    return shape[0], shape[1]


def as_float(image: tf.Tensor) -> tf.Tensor:
    """float32, same values."""
    return tf.cast(image, tf.float32)


def flip_horizontally(sample: Sample) -> Sample:
    """Left becomes right."""
    ymin, xmin, ymax, xmax = tf.unstack(sample.boxes, axis=-1)
    boxes = tf.stack([ymin, 1.0 - xmax, ymax, 1.0 - xmin], axis=-1)
    return sample._replace(image=tf.reverse(sample.image, [1]), boxes=boxes)


def flip_vertically(sample: Sample) -> Sample:
    """Top becomes bottom."""
    ymin, xmin, ymax, xmax = tf.unstack(sample.boxes, axis=-1)
    boxes = tf.stack([1.0 - ymax, xmin, 1.0 - ymin, xmax], axis=-1)
    return sample._replace(image=tf.reverse(sample.image, [0]), boxes=boxes)


def rotate90(sample: Sample) -> Sample:
    """A quarter turn anticlockwise: what was right is on top."""
    ymin, xmin, ymax, xmax = tf.unstack(sample.boxes, axis=-1)
    boxes = tf.stack([1.0 - xmax, ymin, 1.0 - xmin, ymax], axis=-1)
    return sample._replace(image=tf.image.rot90(sample.image), boxes=boxes)


def resize(sample: Sample, height: tf.Tensor | int, width: tf.Tensor | int, method: str = "bilinear") -> Sample:
    """Resizes without keeping the aspect ratio; normalised boxes stay. The image becomes float32."""
    image = tf.image.resize(as_float(sample.image), tf.stack([height, width]), method=method)
    if method == "bicubic":  # overshoots at edges
        image = tf.clip_by_value(image, 0.0, 255.0)
    return sample._replace(image=image)


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


def keep_in_window(sample: Sample, window: tf.Tensor, overlap_thresh: tf.Tensor | float, clip: bool) -> Sample:
    """Boxes relative to `window` (normalised, `[4]`); drops those outside it or with less than the overlap in it."""
    share = overlap(sample.boxes, window)
    kept = sample.select(tf.logical_and(share > 0.0, share >= overlap_thresh))
    boxes = to_window(kept.boxes, window)
    return kept._replace(boxes=tf.clip_by_value(boxes, 0.0, 1.0) if clip else boxes)


def crop(
    sample: Sample,
    begin: tf.Tensor,
    size: tf.Tensor,
    overlap_thresh: tf.Tensor | float = 0.0,
    clip: bool = True,
) -> Sample:
    """The part of the image at `begin` (top, left) of `size` (height, width), int32 `[2]` each.

    A box stays if at least `overlap_thresh` of its area (and more than nothing) is inside; `clip` cuts it off at
    the crop's edge.
    """
    image = tf.slice(sample.image, tf.concat([begin, [0]], 0), tf.concat([size, [3]], 0))
    full = tf.cast(tf.tile(tf.shape(sample.image)[:2], [2]), tf.float32)
    window = tf.cast(tf.concat([begin, begin + size], 0), tf.float32) / full
    cropped = keep_in_window(sample, window, overlap_thresh, clip)
    return cropped._replace(image=tf.ensure_shape(image, [None, None, 3]))


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
    return sample._replace(
        image=tf.ensure_shape(image, [None, None, 3]), boxes=tf.clip_by_value(to_window(sample.boxes, window), 0.0, 1.0)
    )
