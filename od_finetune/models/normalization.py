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
        """`[..., C]` of any type -> float32 of the same shape; unchanged where there are numbers per channel and an
        image has another number of channels (grey ones), as in the OD API."""
        images = tf.cast(images, tf.float32)
        if any(isinstance(each, tuple) and images.shape[-1] != len(each) for each in self):
            return images
        return tf.constant(self.scale) * images + tf.constant(self.offset)

    def inverse(self, values: tuple[float, ...]) -> tuple[float, ...]:
        """The pixel that becomes `values`, one per channel."""
        scales, offsets = np.broadcast_to(self.scale, len(values)), np.broadcast_to(self.offset, len(values))
        return tuple(float((value - b) / a) for value, a, b in zip(values, scales, offsets, strict=True))


SYMMETRIC = Normalization(2.0 / 255.0, -1.0)  # -1..1
EFFICIENTNET_LITE = Normalization(1.0 / 128.0, -127.0 / 128.0)  # (x - 127) / 128
# The mean colour of ImageNet as (red, green, blue), for nets that follow Caffe's ResNets and VGG (Simonyan & Zisserman
# 2015). Caffe's own nets want blue first; slim's and the OD API's take red first.
IMAGENET_MEANS = Normalization(1.0, (-123.68, -116.779, -103.939))

IDENTITY = Normalization(1.0, 0.0)


class ChannelNormalization(NamedTuple):
    """CenterNet's: every channel by a mean and a deviation of its own, then what the backbone's weights expect."""

    means: tuple[float, ...] = (0.0, 0.0, 0.0)
    deviations: tuple[float, ...] = (1.0, 1.0, 1.0)
    reverse: bool = False  # blue, green, red before that; means and deviations are in this order then
    then: Normalization = IDENTITY
    then_reverse: bool = False  # the order of the channels, before `then`

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """`[..., 3]` of any type -> float32 of the same shape."""
        images = tf.cast(images, tf.float32)
        images = images[..., ::-1] if self.reverse else images
        images = (images - tf.constant(self.means)) / tf.constant(self.deviations)
        return self.then(images[..., ::-1] if self.then_reverse else images)
# (x / 255 - mean) / deviation, of ImageNet's colours
IMAGENET = Normalization(
    (1.0 / (255.0 * 0.229), 1.0 / (255.0 * 0.224), 1.0 / (255.0 * 0.225)),
    (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225),
)
