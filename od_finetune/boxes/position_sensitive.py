"""Position-sensitive pooling of regions (Dai et al. 2016, arXiv:1605.06409, equation 1)."""

from __future__ import annotations

import tensorflow as tf


def pool(features: tf.Tensor, boxes: tf.Tensor, bins: tuple[int, int], crop_size: tuple[int, int]) -> tf.Tensor:
    """Each bin of a region looks at channels of its own; the region's value is the mean over all bins.

    Args:
        features: `[B, h, w, bins * D]`, the bins in rows, the D channels of a bin side by side.
        boxes: `[B, P, 4]`, normalised to the image.
        bins: how many a region has, vertically and horizontally.
        crop_size: points that the features of a region are looked up at, of all its bins together.

    Returns:
        `[B * P, D]`.
    """
    rows, columns = bins
    batch, count = tf.unstack(tf.shape(boxes)[:2])
    images = tf.repeat(tf.range(batch), count)
    size = [crop_size[0] // rows, crop_size[1] // columns]
    parts = tf.split(features, rows * columns, axis=-1)
    total = 0.0
    for index, part in enumerate(parts):
        own = tf.reshape(_bin(boxes, *divmod(index, columns), bins), [-1, 4])
        crops = tf.image.crop_and_resize(part, own, images, size)
        total += tf.reduce_mean(crops, axis=[1, 2])
    return total / len(parts)


def _bin(boxes: tf.Tensor, row: int, column: int, bins: tuple[int, int]) -> tf.Tensor:
    """`[..., 4]` -> the same of one of the bins that divide each box evenly."""
    ymin, xmin, ymax, xmax = tf.unstack(boxes, axis=-1)
    height, width = (ymax - ymin) / bins[0], (xmax - xmin) / bins[1]
    return tf.stack(
        [ymin + row * height, xmin + column * width, ymin + (row + 1) * height, xmin + (column + 1) * width], axis=-1
    )
