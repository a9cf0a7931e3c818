"""Augmentation steps that flip, turn, scale and pad. Each draws its numbers, then applies `geometry`.

Parameters and defaults are those of the config language (preprocessor.proto).
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from od_finetune.data import geometry
from od_finetune.data import sample as s
from od_finetune.data.draws import chance, integer, split, uniform
from od_finetune.data.geometry import as_float, image_size
from od_finetune.data.sample import Sample

METHODS = ("area", "bicubic", "bilinear", "nearest")


def random_horizontal_flip(
    sample: Sample, seed: tf.Tensor, probability: float = 0.5, keypoint_flip_permutation: tuple[int, ...] = ()
) -> Sample:
    """Mirrors left and right with `probability`; the permutation exchanges left and right keypoints."""
    return _maybe(geometry.flip_horizontally, sample, seed, probability, keypoint_flip_permutation)


def random_vertical_flip(
    sample: Sample, seed: tf.Tensor, probability: float = 0.5, keypoint_flip_permutation: tuple[int, ...] = ()
) -> Sample:
    """Mirrors top and bottom with `probability`; the permutation exchanges left and right keypoints."""
    return _maybe(geometry.flip_vertically, sample, seed, probability, keypoint_flip_permutation)


def random_rotation90(
    sample: Sample, seed: tf.Tensor, probability: float = 0.5, keypoint_rot_permutation: tuple[int, ...] = ()
) -> Sample:
    """A quarter turn anticlockwise with `probability`; the permutation says which keypoint each becomes."""
    return _maybe(geometry.rotate90, sample, seed, probability, keypoint_rot_permutation)


def _maybe(
    move: Callable[[Sample], Sample],
    sample: Sample,
    seed: tf.Tensor,
    probability: float,
    permutation: tuple[int, ...],
) -> Sample:
    return tf.cond(
        chance(seed, probability), lambda: geometry.permute_keypoints(move(sample), permutation), lambda: sample
    )


def random_image_scale(
    sample: Sample, seed: tf.Tensor, min_scale_ratio: float = 0.5, max_scale_ratio: float = 2.0
) -> Sample:
    """Scales both sides by one factor."""
    return _scale(sample, uniform(seed, min_scale_ratio, max_scale_ratio))


def random_downscale_to_target_pixels(
    sample: Sample,
    seed: tf.Tensor,
    random_coef: float = 0.0,
    min_target_pixels: int = 300000,
    max_target_pixels: int = 500000,
) -> Sample:
    """Scales an image with more pixels than a number from the range down to it; not with `random_coef`."""
    keep_seed, target_seed = split(seed, 2)
    height, width = image_size(sample.image)
    target = tf.cast(integer(target_seed, min_target_pixels, max_target_pixels), tf.float32)
    scale = tf.minimum(tf.sqrt(target / tf.cast(height * width, tf.float32)), 1.0)
    return _scale(sample, tf.where(chance(keep_seed, random_coef), 1.0, scale))


def _scale(sample: Sample, factor: tf.Tensor) -> Sample:
    sides = tf.cast(tf.shape(sample.image)[:2], tf.float32)
    size = tf.maximum(tf.cast(tf.round(sides * factor), tf.int32), 1)
    return geometry.resize(sample, size[0], size[1])


def resize_image(
    sample: Sample, seed: tf.Tensor, new_height: int = 0, new_width: int = 0, method: str = "bilinear"
) -> Sample:
    """Resizes to new_height x new_width by one of `METHODS`."""
    del seed
    return geometry.resize(sample, new_height, new_width, method)


def random_resize_method(sample: Sample, seed: tf.Tensor, target_height: int = 0, target_width: int = 0) -> Sample:
    """Resizes to target_height x target_width by a method drawn from `METHODS`."""
    bare = sample._replace(objects={})
    branches = [
        lambda method=method: geometry.resize(bare, target_height, target_width, method).image for method in METHODS
    ]
    image = tf.switch_case(integer(seed, 0, len(METHODS) - 1), branches)
    return geometry.resize_masks(sample._replace(image=image), target_height, target_width)


def random_pad_image(
    sample: Sample,
    seed: tf.Tensor,
    min_size: tf.Tensor | None = None,
    max_size: tf.Tensor | None = None,
    pad_color: tuple[float, ...] | None = None,
) -> Sample:
    """Lays the image at a random place of a larger canvas.

    The canvas's height and width are drawn from min_size..max_size (int32 `[2]`; the image's size and twice it
    where not given), and are never smaller than the image. `pad_color`: RGB, the image's mean where not given.
    """
    height_seed, width_seed, top_seed, left_seed = split(seed, 4)
    image = as_float(sample.image)
    shape = tf.shape(image)[:2]
    low = shape if min_size is None else tf.maximum(min_size, shape)
    high = shape * 2 if max_size is None else tf.maximum(max_size, shape)
    height, width = integer(height_seed, low[0], high[0]), integer(width_seed, low[1], high[1])
    top, left = integer(top_seed, 0, height - shape[0]), integer(left_seed, 0, width - shape[1])
    color = tf.constant(pad_color, tf.float32) if pad_color else tf.reduce_mean(image, axis=[0, 1])
    return geometry.pad(sample, tf.stack([top, left]), tf.stack([height, width]), color)


def random_absolute_pad_image(
    sample: Sample,
    seed: tf.Tensor,
    max_height_padding: int = 0,
    max_width_padding: int = 0,
    pad_color: tuple[float, ...] | None = None,
) -> Sample:
    """`random_pad_image` by at most so many pixels in height and width."""
    margin = tf.constant([max_height_padding, max_width_padding], tf.int32)
    return random_pad_image(sample, seed, max_size=tf.shape(sample.image)[:2] + margin, pad_color=pad_color)


def random_pad_to_aspect_ratio(
    sample: Sample,
    seed: tf.Tensor,
    aspect_ratio: float = 1.0,
    min_padded_size_ratio: tuple[float, float] = (1.0, 1.0),
    max_padded_size_ratio: tuple[float, float] = (2.0, 2.0),
) -> Sample:
    """Pads to a canvas of width / height `aspect_ratio`, between the given multiples of the image's size.

    The smallest canvas of that ratio around the image is scaled by a factor that is drawn.
    """
    scale_seed, pad_seed = split(seed, 2)
    sides = tf.cast(tf.shape(sample.image)[:2], tf.float32)
    wider = sides[1] / sides[0] > aspect_ratio
    height = tf.where(wider, sides[1] / aspect_ratio, sides[0])
    tight = tf.stack([height, height * aspect_ratio])
    most = tf.reduce_min(sides * tf.constant(max_padded_size_ratio) / tight)
    least = tf.minimum(most, tf.reduce_max(sides * tf.constant(min_padded_size_ratio) / tight))
    size = tf.cast(tf.round(tight * tf.maximum(uniform(scale_seed, least, most), 1.0)), tf.int32)
    return random_pad_image(sample, pad_seed, size, size)


def random_self_concat_image(
    sample: Sample,
    seed: tf.Tensor,
    concat_vertical_probability: float = 0.1,
    concat_horizontal_probability: float = 0.1,
) -> Sample:
    """The image twice, one below the other, side by side, or both, each with its probability."""
    vertical, horizontal = split(seed, 2)
    sample = tf.cond(chance(vertical, concat_vertical_probability), lambda: _twice(sample, 0), lambda: sample)
    return tf.cond(chance(horizontal, concat_horizontal_probability), lambda: _twice(sample, 1), lambda: sample)


def _twice(sample: Sample, axis: int) -> Sample:
    scale, shift = tf.constant([[0.5, 1.0], [1.0, 0.5]])[axis], tf.constant([[0.5, 0.0], [0.0, 0.5]])[axis]
    boxes = sample.boxes * tf.tile(scale, [2])
    halves = geometry.move_points(sample, lambda points: points * scale)
    others = geometry.move_points(sample, lambda points: points * scale + shift)
    if s.MASKS in sample.objects:
        masks = sample.objects[s.MASKS]
        halves[s.MASKS] = tf.concat([masks, tf.zeros_like(masks)], axis + 1)
        others[s.MASKS] = tf.concat([tf.zeros_like(masks), masks], axis + 1)
    return Sample(
        tf.concat([sample.image, sample.image], axis),
        tf.concat([boxes, boxes + tf.tile(shift, [2])], 0),
        {name: tf.concat([values, others[name]], 0) for name, values in halves.items()},
    )
