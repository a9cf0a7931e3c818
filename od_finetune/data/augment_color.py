"""Augmentation steps that change pixels only: brightness, contrast, hue, saturation, noise, compression.

Every step takes (sample, seed, options) and gives an image in float32, 0..255; parameters and defaults are those
of the config language (preprocessor.proto). Amounts of brightness refer to a range of 0..1.
"""

from __future__ import annotations

import tensorflow as tf

from od_finetune.data.draws import chance, fold_in, integer, split, uniform
from od_finetune.data.geometry import as_float, image_size
from od_finetune.data.sample import Sample


def random_adjust_brightness(sample: Sample, seed: tf.Tensor, max_delta: float = 0.2) -> Sample:
    """Adds one amount from -max_delta..max_delta (of 255) to all pixels."""
    delta = uniform(seed, -max_delta, max_delta) * 255.0
    return sample._replace(image=_clip(as_float(sample.image) + delta))


def random_adjust_contrast(sample: Sample, seed: tf.Tensor, min_delta: float = 0.8, max_delta: float = 1.25) -> Sample:
    """Scales the distance to each channel's mean by a factor from min_delta..max_delta."""
    factor = uniform(seed, min_delta, max_delta)
    return sample._replace(image=_clip(tf.image.adjust_contrast(as_float(sample.image), factor)))


def random_adjust_hue(sample: Sample, seed: tf.Tensor, max_delta: float = 0.02) -> Sample:
    """Turns the hue by -max_delta..max_delta of a full circle."""
    delta = uniform(seed, -max_delta, max_delta)
    return sample._replace(image=_clip(tf.image.adjust_hue(as_float(sample.image) / 255.0, delta) * 255.0))


def random_adjust_saturation(
    sample: Sample, seed: tf.Tensor, min_delta: float = 0.8, max_delta: float = 1.25
) -> Sample:
    """Scales the saturation by a factor from min_delta..max_delta."""
    factor = uniform(seed, min_delta, max_delta)
    return sample._replace(image=_clip(tf.image.adjust_saturation(as_float(sample.image) / 255.0, factor) * 255.0))


def random_distort_color(sample: Sample, seed: tf.Tensor, color_ordering: int = 0) -> Sample:
    """Brightness, saturation, hue and contrast by wide amounts, in one of two orders (0 or 1)."""
    brightness, saturation, hue, contrast = split(seed, 4)
    sample = random_adjust_brightness(sample, brightness, 32.0 / 255.0)
    if color_ordering == 0:
        sample = random_adjust_saturation(sample, saturation, 0.5, 1.5)
        sample = random_adjust_hue(sample, hue, 0.2)
        return random_adjust_contrast(sample, contrast, 0.5, 1.5)
    sample = random_adjust_contrast(sample, contrast, 0.5, 1.5)
    sample = random_adjust_saturation(sample, saturation, 0.5, 1.5)
    return random_adjust_hue(sample, hue, 0.2)


def random_pixel_value_scale(sample: Sample, seed: tf.Tensor, minval: float = 0.9, maxval: float = 1.1) -> Sample:
    """Multiplies every value by a factor of its own from minval..maxval."""
    image = as_float(sample.image)
    return sample._replace(image=_clip(image * uniform(seed, minval, maxval, tf.shape(image))))


def rgb_to_gray(sample: Sample, seed: tf.Tensor) -> Sample:
    """Luminance in all three channels (the OD API leaves one; here every image of a batch has three)."""
    del seed
    return sample._replace(image=tf.tile(tf.image.rgb_to_grayscale(as_float(sample.image)), [1, 1, 3]))


def random_rgb_to_gray(sample: Sample, seed: tf.Tensor, probability: float = 0.1) -> Sample:
    """`rgb_to_gray` with `probability`."""
    sample = sample._replace(image=as_float(sample.image))
    image = tf.cond(chance(seed, probability), lambda: rgb_to_gray(sample, seed).image, lambda: sample.image)
    return sample._replace(image=image)


def normalize_image(
    sample: Sample,
    seed: tf.Tensor,
    original_minval: float = 0.0,
    original_maxval: float = 0.0,
    target_minval: float = 0.0,
    target_maxval: float = 1.0,
) -> Sample:
    """Maps original_minval..original_maxval linearly onto target_minval..target_maxval."""
    del seed
    scale = (target_maxval - target_minval) / (original_maxval - original_minval)
    return sample._replace(image=(as_float(sample.image) - original_minval) * scale + target_minval)


def subtract_channel_mean(sample: Sample, seed: tf.Tensor, means: tuple[float, ...]) -> Sample:
    """Subtracts one number per channel."""
    del seed
    return sample._replace(image=as_float(sample.image) - tf.constant(means, tf.float32))


def adjust_gamma(sample: Sample, seed: tf.Tensor, gamma: float = 1.0, gain: float = 1.0) -> Sample:
    """`gain * value ** gamma` on values of 0..1."""
    del seed
    return sample._replace(image=_clip(gain * (as_float(sample.image) / 255.0) ** gamma * 255.0))


def random_jpeg_quality(
    sample: Sample, seed: tf.Tensor, random_coef: float = 0.0, min_jpeg_quality: int = 0, max_jpeg_quality: int = 100
) -> Sample:
    """Through JPEG at a quality from min_jpeg_quality..max_jpeg_quality; left as it is with `random_coef`."""
    image = as_float(sample.image)
    keep_seed, quality_seed = split(seed, 2)
    quality = integer(quality_seed, min_jpeg_quality, max_jpeg_quality)

    def compress() -> tf.Tensor:
        encoded = tf.raw_ops.EncodeJpegVariableQuality(images=_as_bytes(image), quality=quality)
        return as_float(tf.io.decode_jpeg(encoded, channels=3))

    return sample._replace(image=tf.cond(chance(keep_seed, random_coef), lambda: image, compress))


def random_black_patches(
    sample: Sample,
    seed: tf.Tensor,
    max_black_patches: int = 10,
    probability: float = 0.5,
    size_to_image_ratio: float = 0.1,
) -> Sample:
    """Up to `max_black_patches` black squares, each with `probability`, of that share of the shorter side."""
    image = as_float(sample.image)
    height, width = image_size(image)
    side = tf.cast(tf.cast(tf.minimum(height, width), tf.float32) * size_to_image_ratio, tf.int32)
    rows, columns = tf.range(height)[:, None], tf.range(width)[None, :]
    black = tf.zeros([height, width], tf.bool)
    for number in range(max_black_patches):
        present_seed, top_seed, left_seed = split(fold_in(seed, number), 3)
        top, left = integer(top_seed, 0, height - side), integer(left_seed, 0, width - side)
        patch = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
        black |= patch & chance(present_seed, probability)
    return sample._replace(image=tf.where(black[..., None], 0.0, image))


def random_patch_gaussian(
    sample: Sample,
    seed: tf.Tensor,
    random_coef: float = 0.0,
    min_patch_size: int = 1,
    max_patch_size: int = 250,
    min_gaussian_stddev: float = 0.0,
    max_gaussian_stddev: float = 1.0,
) -> Sample:
    """Gaussian noise in a square around a random pixel (arXiv:1906.02611); none with `random_coef`.

    The standard deviation refers to a range of 0..1.
    """
    image = as_float(sample.image)
    height, width = image_size(image)
    keep_seed, size_seed, y_seed, x_seed, stddev_seed, noise_seed = split(seed, 6)
    size = integer(size_seed, min_patch_size, max_patch_size)
    top = integer(y_seed, 0, height - 1) - size // 2
    left = integer(x_seed, 0, width - 1) - size // 2
    rows, columns = tf.range(height)[:, None], tf.range(width)[None, :]
    patch = (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)
    noisy = patch & tf.logical_not(chance(keep_seed, random_coef))
    stddev = uniform(stddev_seed, min_gaussian_stddev, max_gaussian_stddev) * 255.0
    noise = tf.random.stateless_normal(tf.shape(image), noise_seed) * stddev
    return sample._replace(image=tf.where(noisy[..., None], _clip(image + noise), image))


def _clip(image: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(image, 0.0, 255.0)


def _as_bytes(image: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.round(_clip(image)), tf.uint8)
