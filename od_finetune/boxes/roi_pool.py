"""Cropping regions of interest out of feature maps, bilinearly, to one size (He et al. 2017 without alignment)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

Size = int | tf.Tensor
# A region as large as the images that classification nets are trained on is looked up at the last level but one of
# the pyramid (Lin et al. 2017, arXiv:1612.03144, equation 1).
_CANONICAL_SIDE = 224.0


def crop(feature_maps: Sequence[tf.Tensor], boxes: tf.Tensor, size: int, image_size: tuple[Size, Size]) -> tf.Tensor:
    """Each region out of the feature map of its level.

    Args:
        feature_maps: `[B, h, w, C]` each, finest first.
        boxes: `[B, P, 4]`, normalised to the image.
        size: side of a crop in cells.
        image_size: of the network's input in pixels; the levels depend on it.

    Returns:
        `[B * P, size, size, C]`.
    """
    batch, count = tf.shape(boxes)[0], tf.shape(boxes)[1]
    images = tf.repeat(tf.range(batch), count)
    flat = tf.reshape(boxes, [-1, 4])
    if len(feature_maps) == 1:
        return _crop(feature_maps[0], flat, images, size)
    levels = feature_levels(flat, len(feature_maps), image_size)
    rows, crops = [], []
    for level, features in enumerate(feature_maps):
        here = tf.where(tf.equal(levels, level))[:, 0]
        rows.append(tf.cast(here, tf.int32))
        crops.append(_crop(features, tf.gather(flat, here), tf.gather(images, here), size))
    merged = tf.dynamic_stitch(rows, crops)
    # How many regions a level has is known at run time only, how many all have together may be known before.
    return tf.ensure_shape(merged, [flat.shape[0], size, size, feature_maps[0].shape[-1]])


def feature_levels(boxes: tf.Tensor, num_levels: int, image_size: tuple[Size, Size]) -> tf.Tensor:
    """Index of the feature map, finest first, that each box `[N, 4]` (normalised) is cropped from: int32 `[N]`."""
    height, width = (tf.cast(side, tf.float32) for side in image_size)
    area = (boxes[:, 2] - boxes[:, 0]) * height * (boxes[:, 3] - boxes[:, 1]) * width
    sides = tf.sqrt(tf.maximum(area, 1e-6)) / _CANONICAL_SIDE  # padded boxes have no area
    levels = tf.math.floor(tf.math.log(sides) / math.log(2.0)) + (num_levels - 2)
    return tf.cast(tf.clip_by_value(levels, 0.0, num_levels - 1.0), tf.int32)


def _crop(features: tf.Tensor, boxes: tf.Tensor, images: tf.Tensor, size: int) -> tf.Tensor:
    return tf.image.crop_and_resize(features, boxes, images, [size, size])
