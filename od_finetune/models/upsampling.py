"""Enlarging feature maps."""

from __future__ import annotations

import tensorflow as tf

from od_finetune.models.layers import spatial_shape

METHODS = ("nearest", "bilinear")


def doubled(features: tf.Tensor, method: str = "nearest") -> tf.Tensor:
    """`[B, H, W, C]` -> `[B, 2 H, 2 W, C]`. `method`: one of METHODS."""
    height, width = spatial_shape(features)
    return tf.image.resize(features, [2 * height, 2 * width], method=method)
