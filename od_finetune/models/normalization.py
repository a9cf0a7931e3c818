"""From pixel values to what a pretrained network wants."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class Normalization(NamedTuple):
    """x -> scale * x + offset, for pixel values x of 0..255."""

    scale: float
    offset: float | tuple[float, ...]  # one for all channels, or one for each

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Any shape and type -> float32 of the same shape."""
        return self.scale * tf.cast(images, tf.float32) + tf.constant(self.offset)


SYMMETRIC = Normalization(2.0 / 255.0, -1.0)  # -1..1
EFFICIENTNET_LITE = Normalization(1.0 / 128.0, -127.0 / 128.0)  # (x - 127) / 128
