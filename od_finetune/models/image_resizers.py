"""Image resizers of the config language: `image -> (resized image, true shape)`.

Each takes `[H, W, C]` or a batch `[B, H, W, C]` of one size, values 0..255 of any type, and returns float32 and the
shape (height, width, channels; int32 `[3]`) of the part that is not padding, which is always at the top left.
Interpolation is that of TF1 (sampling at the pixels' corners, not centres), which all published models expect.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import tensorflow as tf

from od_finetune.models.layers import pad_to_multiple, spatial_shape

METHODS: dict[str, int] = {
    "bilinear": tf.compat.v1.image.ResizeMethod.BILINEAR,
    "nearest_neighbor": tf.compat.v1.image.ResizeMethod.NEAREST_NEIGHBOR,
    "bicubic": tf.compat.v1.image.ResizeMethod.BICUBIC,
    "area": tf.compat.v1.image.ResizeMethod.AREA,
}


class Resizer(Protocol):
    """What a detector needs of a resizer."""

    @property
    def static_size(self) -> tuple[int | None, int | None]:
        """Height and width of the result, None where they depend on the image."""

    @property
    def channels(self) -> int:
        """Channels of the result, for RGB images."""

    def __call__(self, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """See the module's docstring."""


class FixedShape(NamedTuple):
    """To one size, whatever the aspect ratio."""

    height: int
    width: int
    method: str = "bilinear"
    grayscale: bool = False

    @property
    def static_size(self) -> tuple[int | None, int | None]:
        return self.height, self.width

    @property
    def channels(self) -> int:
        return 1 if self.grayscale else 3

    def __call__(self, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        resized = _grayscale(_resize(image, (self.height, self.width), self.method), self.grayscale)
        return resized, _shape(resized)


class KeepAspectRatio(NamedTuple):
    """The shorter side becomes `min_dimension`, or less where the longer one would exceed `max_dimension`."""

    min_dimension: int
    max_dimension: int
    method: str = "bilinear"
    pad_to_max: bool = False
    grayscale: bool = False
    pad_value: tuple[float, ...] = (0.0, 0.0, 0.0)

    @property
    def static_size(self) -> tuple[int | None, int | None]:
        if self.pad_to_max:
            return self.max_dimension, self.max_dimension
        return None, None

    @property
    def channels(self) -> int:
        return 1 if self.grayscale else 3

    def _new_size(self, image: tf.Tensor) -> tf.Tensor:
        size = tf.cast(tf.stack(spatial_shape(image)), tf.float32)
        large = tf.round(size * (self.min_dimension / tf.reduce_min(size)))
        small = tf.round(size * (self.max_dimension / tf.reduce_max(size)))
        return tf.cast(tf.where(tf.reduce_max(large) > self.max_dimension, small, large), tf.int32)

    def __call__(self, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        resized = _resize(image, self._new_size(image), self.method)
        shape = _shape(resized)
        if self.pad_to_max:
            resized = self._pad(resized, shape)
        if self.grayscale:
            resized, shape = _grayscale(resized, True), tf.concat([shape[:2], [1]], axis=0)
        return resized, shape

    def _pad(self, resized: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
        side = self.max_dimension
        margins = [[0, 0]] * (resized.shape.rank - 3) + [[0, side - shape[0]], [0, side - shape[1]], [0, 0]]
        padded = tf.pad(resized, margins)
        if any(self.pad_value):
            padding = 1.0 - tf.pad(tf.ones_like(resized), margins)
            padded += padding * tf.constant(self.pad_value, tf.float32)
        return tf.ensure_shape(padded, [*resized.shape[:-3], side, side, resized.shape[-1]])


class Identity(NamedTuple):
    """Leaves the size as it is."""

    @property
    def static_size(self) -> tuple[int | None, int | None]:
        return None, None

    @property
    def channels(self) -> int:
        return 3

    def __call__(self, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.cast(image, tf.float32)
        return image, _shape(image)


class ConditionalShape(NamedTuple):
    """Resizes only images whose longer side is above (`greater`) or whose shorter side is below `threshold`.

    That side then becomes `threshold`, the aspect ratio stays.
    """

    greater: bool
    threshold: int
    method: str = "bilinear"
    grayscale: bool = False

    @property
    def static_size(self) -> tuple[int | None, int | None]:
        return None, None

    @property
    def channels(self) -> int:
        return 1 if self.grayscale else 3

    def __call__(self, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        height, width = spatial_shape(image)
        size = tf.cast(tf.stack([height, width]), tf.float32)
        if self.greater:
            scale = tf.minimum(1.0, self.threshold / tf.reduce_max(size))
        else:
            scale = tf.maximum(1.0, self.threshold / tf.reduce_min(size))
        # Unlike the other resizers of the OD API these two truncate and align the corners.
        new_size = tf.cast(size * scale + 1e-4, tf.int32)
        resized = _grayscale(_resize(image, new_size, self.method, align_corners=True), self.grayscale)
        return resized, _shape(resized)


class PadToMultiple(NamedTuple):
    """Pads to the next multiple of `multiple`; the true shape is that of the image."""

    multiple: int
    grayscale: bool = False
    pad_value: tuple[float, ...] = (0.0, 0.0, 0.0)

    @property
    def static_size(self) -> tuple[int | None, int | None]:
        return None, None

    @property
    def channels(self) -> int:
        return 1 if self.grayscale else 3

    def __call__(self, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.cast(image, tf.float32)
        padded = pad_to_multiple(image, self.multiple)
        if any(self.pad_value):
            padding = 1.0 - pad_to_multiple(tf.ones_like(image), self.multiple)
            padded += padding * tf.constant(self.pad_value, tf.float32)
        return _grayscale(padded, self.grayscale), _shape(_grayscale(image, self.grayscale))


def zero_beyond(resizer: Resizer, images: tf.Tensor, true_shapes: tf.Tensor) -> tf.Tensor:
    """Zeros what a batch has been filled up with beyond each of its resized images, and not their own padding.

    Args:
        resizer: that made them, of different sizes.
        images: `[B, H, W, C]`.
        true_shapes: int32 `[B, 3]`, as the resizer gave them.
    """
    sizes = true_shapes[:, :2]
    if isinstance(resizer, PadToMultiple):
        sizes += -sizes % resizer.multiple
    rows, columns = (tf.sequence_mask(sizes[:, axis], tf.shape(images)[1 + axis]) for axis in (0, 1))
    return tf.where(rows[:, :, None, None] & columns[:, None, :, None], images, 0.0)


def _resize(image: tf.Tensor, size: object, method: str, align_corners: bool = False) -> tf.Tensor:
    resized = tf.compat.v1.image.resize_images(image, size, METHODS[method], align_corners=align_corners)
    return tf.cast(resized, tf.float32)


def _grayscale(image: tf.Tensor, convert: bool) -> tf.Tensor:
    return tf.image.rgb_to_grayscale(image) if convert else image


def _shape(image: tf.Tensor) -> tf.Tensor:
    return tf.shape(image)[-3:]
