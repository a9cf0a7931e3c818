"""Augmentation steps that crop. Each draws a window, then applies `geometry.crop` to image and boxes alike.

The SSD family (Liu et al., arXiv:1512.02325, section 3.6) first draws which of its operations to apply.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from od_finetune.data import geometry
from od_finetune.data.augment_spatial import random_pad_image, random_pad_to_aspect_ratio
from od_finetune.data.draws import chance, integer, split, uniform
from od_finetune.data.sample import Sample


class Crop(NamedTuple):
    """How to draw a crop. Where a number may be a tensor, the annotation says so."""

    min_object_covered: float | tf.Tensor = 1.0  # at least this share of one box's area is in the crop
    aspect_ratio: tuple[float, float] = (0.75, 1.33)  # range of width / height
    area: tuple[float, float] = (0.1, 1.0)  # range of the share of the image
    overlap_thresh: float | tf.Tensor = 0.3  # a box with a smaller share of its area in the crop is dropped
    clip_boxes: bool = True
    random_coef: float | tf.Tensor = 0.0  # probability of keeping the image as it is


class Pad(NamedTuple):
    """How to pad after a crop: canvas size as a multiple (height, width) of the image before the crop."""

    min_ratio: tuple[float, float] = (1.0, 1.0)
    max_ratio: tuple[float, float] = (2.0, 2.0)
    color: tuple[float, ...] | None = None


_OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


def _ssd_crops(overlaps: tuple[float, ...], aspect_ratio: tuple[float, float]) -> tuple[Crop, ...]:
    return tuple(Crop(overlap, aspect_ratio, (0.1, 1.0), overlap, True, 0.15) for overlap in overlaps)


# What the OD API does where a config names the step without operations.
SSD_CROPS = _ssd_crops(_OVERLAPS, (0.5, 2.0))
SSD_CROP_PADS = tuple((crop, Pad()) for crop in _ssd_crops(_OVERLAPS[1:], (0.5, 2.0)))


def random_crop_image(sample: Sample, seed: tf.Tensor, crop: Crop = Crop()) -> Sample:  # noqa: B008 (immutable)
    """Crops as `crop` says; the whole image where 100 draws find no window that satisfies it."""
    keep_seed, window_seed = split(seed, 2)

    def cropped() -> Sample:
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.shape(sample.image),
            tf.clip_by_value(sample.boxes, 0.0, 1.0)[None],
            window_seed,
            min_object_covered=crop.min_object_covered,
            aspect_ratio_range=crop.aspect_ratio,
            area_range=crop.area,
            max_attempts=100,
            use_image_if_no_bounding_boxes=True,
        )
        return geometry.crop(sample, begin[:2], size[:2], crop.overlap_thresh, crop.clip_boxes)

    if isinstance(crop.random_coef, float) and crop.random_coef <= 0.0:
        return cropped()
    return tf.cond(chance(keep_seed, crop.random_coef), lambda: sample, cropped)


def random_crop_pad_image(
    sample: Sample,
    seed: tf.Tensor,
    crop: Crop = Crop(),  # noqa: B008 (immutable)
    pad: Pad = Pad(),  # noqa: B008
) -> Sample:
    """`random_crop_image`, then `random_pad_image` to between two multiples of the size before the crop."""
    crop_seed, pad_seed = split(seed, 2)
    sides = tf.cast(tf.shape(sample.image)[:2], tf.float32)
    low, high = (tf.cast(sides * tf.constant(ratio), tf.int32) for ratio in (pad.min_ratio, pad.max_ratio))
    return random_pad_image(random_crop_image(sample, crop_seed, crop), pad_seed, low, high, pad.color)


def random_crop_to_aspect_ratio(
    sample: Sample,
    seed: tf.Tensor,
    aspect_ratio: float = 1.0,
    overlap_thresh: float = 0.3,
    clip_boxes: bool = True,
) -> Sample:
    """The largest crop of width / height `aspect_ratio`, at a random place."""
    height, width = geometry.image_size(sample.image)
    wide = tf.cast(width, tf.float32) / tf.cast(height, tf.float32) >= aspect_ratio
    as_wide = tf.cast(tf.round(tf.cast(height, tf.float32) * aspect_ratio), tf.int32)
    as_high = tf.cast(tf.round(tf.cast(width, tf.float32) / aspect_ratio), tf.int32)
    size = tf.where(wide, tf.stack([height, as_wide]), tf.stack([as_high, width]))
    size = tf.clip_by_value(size, 1, tf.stack([height, width]))
    top_seed, left_seed = split(seed, 2)
    begin = tf.stack([integer(top_seed, 0, height - size[0]), integer(left_seed, 0, width - size[1])])
    return geometry.crop(sample, begin, size, overlap_thresh, clip_boxes)


def ssd_random_crop(sample: Sample, seed: tf.Tensor, crops: tuple[Crop, ...] = SSD_CROPS) -> Sample:
    """One of `crops`, drawn evenly."""
    choice_seed, crop_seed = split(seed, 2)
    choice = integer(choice_seed, 0, len(crops) - 1)
    if _alike(crops):
        return random_crop_image(sample, crop_seed, _chosen(crops, choice))
    return tf.switch_case(choice, [lambda crop=crop: random_crop_image(sample, crop_seed, crop) for crop in crops])


def ssd_random_crop_pad(
    sample: Sample, seed: tf.Tensor, crop_pads: tuple[tuple[Crop, Pad], ...] = SSD_CROP_PADS
) -> Sample:
    """One of `crop_pads`, drawn evenly."""
    sample = sample._replace(image=geometry.as_float(sample.image))
    choice_seed, crop_seed = split(seed, 2)
    choice = integer(choice_seed, 0, len(crop_pads) - 1)
    crops, pads = zip(*crop_pads, strict=True)
    if _alike(crops) and len(set(pads)) == 1:
        return random_crop_pad_image(sample, crop_seed, _chosen(crops, choice), pads[0])
    branches = [
        lambda crop=crop, pad=pad: random_crop_pad_image(sample, crop_seed, crop, pad) for crop, pad in crop_pads
    ]
    return tf.switch_case(choice, branches)


def _alike(crops: tuple[Crop, ...]) -> bool:
    """Whether the crops differ only in what may be a tensor: one branch then serves all, a seventh of the graph."""
    return len({(crop.aspect_ratio, crop.area, crop.clip_boxes) for crop in crops}) == 1


def _chosen(crops: tuple[Crop, ...], choice: tf.Tensor) -> Crop:
    names = ("min_object_covered", "overlap_thresh", "random_coef")
    values = {name: tf.constant([getattr(crop, name) for crop in crops], tf.float32)[choice] for name in names}
    return crops[0]._replace(**values)


def ssd_random_crop_fixed_aspect_ratio(
    sample: Sample, seed: tf.Tensor, crops: tuple[Crop, ...] = SSD_CROPS, aspect_ratio: float = 1.0
) -> Sample:
    """`ssd_random_crop` with windows of width / height `aspect_ratio`, and the rest cut to it."""
    choice_seed, cut_seed = split(seed, 2)
    fixed = tuple(crop._replace(aspect_ratio=(aspect_ratio, aspect_ratio)) for crop in crops)
    clip_boxes = all(crop.clip_boxes for crop in crops)
    return random_crop_to_aspect_ratio(
        ssd_random_crop(sample, choice_seed, fixed), cut_seed, aspect_ratio, clip_boxes=clip_boxes
    )


def ssd_random_crop_pad_fixed_aspect_ratio(
    sample: Sample,
    seed: tf.Tensor,
    crops: tuple[Crop, ...] = SSD_CROPS,
    aspect_ratio: float = 1.0,
    min_padded_size_ratio: tuple[float, float] = (1.0, 1.0),
    max_padded_size_ratio: tuple[float, float] = (2.0, 2.0),
) -> Sample:
    """`ssd_random_crop`, then `random_pad_to_aspect_ratio`."""
    crop_seed, pad_seed = split(seed, 2)
    cropped = ssd_random_crop(sample, crop_seed, crops)
    return random_pad_to_aspect_ratio(cropped, pad_seed, aspect_ratio, min_padded_size_ratio, max_padded_size_ratio)


def random_square_crop_by_scale(
    sample: Sample,
    seed: tf.Tensor,
    max_border: int = 128,
    scale_min: float = 0.6,
    scale_max: float = 1.3,
    num_scales: int = 8,
) -> Sample:
    """A square of the longer side times one of `num_scales` scales, around a random point, black outside the image.

    The point keeps a border to the image's edges: `max_border`, halved until it leaves room (CenterNet, Zhou et
    al., arXiv:1904.07850).
    """
    scale_seed, y_seed, x_seed = split(seed, 3)
    height, width = geometry.image_size(sample.image)
    scales = tf.linspace(scale_min, scale_max, num_scales)
    scale = scales[integer(scale_seed, 0, num_scales - 1)]
    side = tf.maximum(tf.cast(tf.cast(tf.maximum(height, width), tf.float32) * scale, tf.int32), 1)
    y, x = (
        integer(point_seed, _border(max_border, length), tf.maximum(length - _border(max_border, length) - 1, 0))
        for point_seed, length in ((y_seed, height), (x_seed, width))
    )
    return _crop_with_margin(sample, tf.stack([y, x]) - side // 2, tf.stack([side, side]))


def _border(max_border: int, length: tf.Tensor) -> tf.Tensor:
    """`max_border` halved until it is less than half of `length`."""
    ratio = 2.0 * float(max_border) / tf.cast(length, tf.float32)
    halvings = tf.maximum(tf.math.ceil(tf.math.log(tf.maximum(ratio, 1e-6)) / tf.math.log(2.0)), 0.0)
    border = tf.cast(max_border / 2.0**halvings, tf.int32)
    return tf.minimum(border, (length - 1) // 2)


def random_scale_crop_and_pad_to_square(
    sample: Sample, seed: tf.Tensor, output_size: int = 512, scale_min: float = 0.1, scale_max: float = 2.0
) -> Sample:
    """Fits the image into a square of output_size times a drawn scale, then crops or pads (black, right and below)
    to output_size (large-scale jitter, Ghiasi et al., arXiv:2012.07177)."""
    scale_seed, y_seed, x_seed = split(seed, 3)
    sides = tf.cast(tf.shape(sample.image)[:2], tf.float32)
    factor = uniform(scale_seed, scale_min, scale_max) * output_size / tf.reduce_max(sides)
    size = tf.maximum(tf.cast(tf.round(sides * factor), tf.int32), 1)
    resized = geometry.resize(sample, size[0], size[1])
    begin = tf.stack([integer(y_seed, 0, size[0] - output_size), integer(x_seed, 0, size[1] - output_size)])
    return _crop_with_margin(resized, begin, tf.constant([output_size, output_size]))


def _crop_with_margin(sample: Sample, begin: tf.Tensor, size: tf.Tensor) -> Sample:
    """The window of `size` at `begin`, which may reach beyond the image: black there. Boxes are clipped."""
    shape = tf.shape(sample.image)[:2]
    top_left, bottom_right = tf.maximum(begin, 0), tf.minimum(begin + size, shape)
    inner = geometry.crop(sample, top_left, bottom_right - top_left)
    return geometry.pad(inner, top_left - begin, size, tf.zeros([3]))
