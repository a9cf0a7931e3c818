"""Maths on boxes `[ymin, xmin, ymax, xmax]`, any leading dimensions, any unit.

`official.vision.ops.box_ops` is not used here: its pairwise IoU marks boxes with negative coordinates as padding and
divides without a guard, and its coordinates are in pixels; anchors legitimately stick out of the image.
"""

from __future__ import annotations

import tensorflow as tf


def area(boxes: tf.Tensor) -> tf.Tensor:
    """`[..., 4]` -> `[...]`; negative for an inverted box."""
    ymin, xmin, ymax, xmax = tf.unstack(boxes, axis=-1)
    return (ymax - ymin) * (xmax - xmin)


def to_center(boxes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """`[..., 4]` -> (y centre, x centre, height, width), each `[...]`."""
    ymin, xmin, ymax, xmax = tf.unstack(boxes, axis=-1)
    height, width = ymax - ymin, xmax - xmin
    return ymin + height / 2.0, xmin + width / 2.0, height, width


def from_center(y: tf.Tensor, x: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """Inverse of `to_center`: four `[...]` -> `[..., 4]`."""
    return tf.stack([y - height / 2.0, x - width / 2.0, y + height / 2.0, x + width / 2.0], axis=-1)


def _overlap(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Intersection area of boxes whose leading dimensions broadcast."""
    height = tf.minimum(a[..., 2], b[..., 2]) - tf.maximum(a[..., 0], b[..., 0])
    width = tf.minimum(a[..., 3], b[..., 3]) - tf.maximum(a[..., 1], b[..., 1])
    return tf.maximum(height, 0.0) * tf.maximum(width, 0.0)


def _all_pairs(a: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.expand_dims(a, -2), tf.expand_dims(b, -3)


def pairwise_intersection(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """`[..., N, 4]`, `[..., A, 4]` -> intersection areas `[..., N, A]`."""
    return _overlap(*_all_pairs(a, b))


def iou(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Intersection over union of boxes whose leading dimensions broadcast; 0 where they do not touch."""
    shared = _overlap(a, b)
    return tf.where(shared > 0.0, tf.math.divide_no_nan(shared, area(a) + area(b) - shared), 0.0)


def pairwise_iou(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """`[..., N, 4]`, `[..., A, 4]` -> intersection over union `[..., N, A]`."""
    return iou(*_all_pairs(a, b))


def pairwise_ioa(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """`[..., N, 4]`, `[..., A, 4]` -> intersection over the area of the second box, `[..., N, A]`."""
    return tf.math.divide_no_nan(pairwise_intersection(a, b), tf.expand_dims(area(b), -2))


def giou(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Generalised IoU (Rezatofighi et al., CVPR 2019) in [-1, 1] of boxes whose leading dimensions broadcast."""
    shared = _overlap(a, b)
    union = area(a) + area(b) - shared
    hull = tf.concat([tf.minimum(a[..., :2], b[..., :2]), tf.maximum(a[..., 2:], b[..., 2:])], axis=-1)
    hull_area = area(hull)
    return tf.math.divide_no_nan(shared, union) - tf.math.divide_no_nan(hull_area - union, hull_area)


def clip_to_window(boxes: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """Clips `[..., K, 4]` to `window` `[..., 4]` (one per leading index); a box outside collapses to zero area."""
    low = tf.expand_dims(tf.concat([window[..., :2], window[..., :2]], -1), -2)
    high = tf.expand_dims(tf.concat([window[..., 2:], window[..., 2:]], -1), -2)
    return tf.maximum(tf.minimum(boxes, high), low)


def change_coordinate_frame(boxes: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """Coordinates of `[..., K, 4]` relative to `window` `[..., 4]`, which becomes [0, 0, 1, 1]."""
    origin = tf.expand_dims(tf.concat([window[..., :2], window[..., :2]], -1), -2)
    size = window[..., 2:] - window[..., :2]
    return (boxes - origin) / tf.expand_dims(tf.concat([size, size], -1), -2)


def normalize(boxes: tf.Tensor, height: float | tf.Tensor, width: float | tf.Tensor) -> tf.Tensor:
    """Pixels `[..., 4]` -> fractions of an image of `height` x `width` pixels."""
    height, width = tf.cast(height, boxes.dtype), tf.cast(width, boxes.dtype)
    return boxes / tf.stack([height, width, height, width])
