"""From pixel values to what a pretrained network wants."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf


class Normalization(NamedTuple):
    """x -> scale * x + offset, for pixel values x of 0..255."""

    # one for all channels, or one for each
    scale: float | tuple[float, ...]
    offset: float | tuple[float, ...]

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Any shape and type -> float32 of the same shape."""
        return tf.constant(self.scale) * tf.cast(images, tf.float32) + tf.constant(self.offset)

    def inverse(self, values: tuple[float, ...]) -> tuple[float, ...]:
        """The pixel that becomes `values`, one per channel."""
        scales, offsets = np.broadcast_to(self.scale, len(values)), np.broadcast_to(self.offset, len(values))
        return tuple(float((value - b) / a) for value, a, b in zip(values, scales, offsets, strict=True))


SYMMETRIC = Normalization(2.0 / 255.0, -1.0)  # -1..1
EFFICIENTNET_LITE = Normalization(1.0 / 128.0, -127.0 / 128.0)  # (x - 127) / 128
# (x / 255 - mean) / deviation, of ImageNet's colours
IMAGENET = Normalization(
    (1.0 / (255.0 * 0.229), 1.0 / (255.0 * 0.224), 1.0 / (255.0 * 0.225)),
    (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225),
)
