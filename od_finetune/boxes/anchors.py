"""Anchor generators: one grid of anchors per feature map, normalised `[A, 4]`, feature maps one after the other.

Within a map anchors run over rows, columns, then the anchors of one location. Anchors are not clipped to the image.
The generators of tf-models-official order and normalise anchors otherwise than the published checkpoints expect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from od_finetune.boxes import box_ops
from od_finetune.errors import UserError

Size = int | tf.Tensor
Pair = tuple[float, float]


class AnchorGenerator(Protocol):
    """What a detector needs of a generator."""

    def num_anchors_per_location(self) -> list[int]:
        """One number per feature map."""

    def __call__(self, feature_shapes: Sequence[tuple[Size, Size]], image_shape: tuple[Size, Size]) -> tf.Tensor:
        """(height, width) of each feature map and of the network's input in pixels -> float32 `[A, 4]`."""


class AnchorSpec(NamedTuple):
    """One anchor of a location: a scale (a factor of the base size) and a ratio of width to height."""

    scale: float
    aspect_ratio: float


def tile_anchors(feature_shape: tuple[Size, Size], specs: Sequence[AnchorSpec], base_size: tuple, stride: tuple,
                 offset: tuple) -> tf.Tensor:
    """Anchors `[height * width * len(specs), 4]` centred on a grid of `offset + index * stride` (any one unit)."""
    scales = np.array([spec.scale for spec in specs], np.float32)
    ratio_roots = np.sqrt(np.array([spec.aspect_ratio for spec in specs], np.float32))
    heights = tf.constant(scales / ratio_roots) * base_size[0]
    widths = tf.constant(scales * ratio_roots) * base_size[1]
    y = tf.cast(tf.range(feature_shape[0]), tf.float32) * stride[0] + offset[0]
    x = tf.cast(tf.range(feature_shape[1]), tf.float32) * stride[1] + offset[1]
    y, x, _ = tf.meshgrid(y, x, heights, indexing="ij")
    boxes = box_ops.from_center(y, x, tf.broadcast_to(heights, tf.shape(y)), tf.broadcast_to(widths, tf.shape(y)))
    return tf.reshape(boxes, [-1, 4])


class SsdAnchors:
    """Anchors of SSD (Liu et al., 2016): scales are fractions of the image's shorter side."""

    def __init__(self, specs: Sequence[Sequence[AnchorSpec]], base_size: Pair = (1.0, 1.0),
                 strides: Sequence[Pair] | None = None, offsets: Sequence[Pair] | None = None):
        """One list of specs per layer. `strides` and `offsets` in pixels, one pair (y, x) per layer; without
        them the grid divides the image evenly, and offsets are half a stride."""
        for name, pairs in (("strides", strides), ("offsets", offsets)):
            if pairs and len(pairs) != len(specs):
                raise UserError(f"ssd_anchor_generator: {len(pairs)} {name} for {len(specs)} layers; give as many")
        self._specs = [list(layer) for layer in specs]
        self._base_size, self._strides, self._offsets = base_size, strides, offsets

    @classmethod
    def from_scales(cls, num_layers: int, min_scale: float, max_scale: float, aspect_ratios: Sequence[float],
                    scales: Sequence[float] = (), interpolated_scale_aspect_ratio: float = 1.0,
                    reduce_boxes_in_lowest_layer: bool = True, **grid: object) -> SsdAnchors:
        """Scales spaced evenly over the layers unless given; each layer adds one anchor between its scale and the
        next (geometric mean) if `interpolated_scale_aspect_ratio` > 0; a reduced lowest layer has three anchors."""
        if scales and len(scales) != num_layers:
            raise UserError(f"ssd_anchor_generator: {len(scales)} scales for num_layers {num_layers}; give as many")
        steps = max(num_layers - 1, 1)
        scales = list(scales) or [min_scale + (max_scale - min_scale) * i / steps for i in range(num_layers)]
        specs = []
        for layer, (scale, following) in enumerate(zip(scales, [*scales[1:], 1.0], strict=True)):
            if layer == 0 and reduce_boxes_in_lowest_layer:
                specs.append([AnchorSpec(0.1, 1.0), AnchorSpec(scale, 2.0), AnchorSpec(scale, 0.5)])
                continue
            specs.append([AnchorSpec(scale, ratio) for ratio in aspect_ratios])
            if interpolated_scale_aspect_ratio > 0.0:
                specs[-1].append(AnchorSpec(math.sqrt(scale * following), interpolated_scale_aspect_ratio))
        return cls(specs, **grid)

    def num_anchors_per_location(self) -> list[int]:
        """One number per layer."""
        return [len(layer) for layer in self._specs]

    def __call__(self, feature_shapes: Sequence[tuple[Size, Size]], image_shape: tuple[Size, Size]) -> tf.Tensor:
        """See `AnchorGenerator`."""
        _check_count(feature_shapes, len(self._specs), "ssd_anchor_generator.num_layers")
        height, width = (tf.cast(side, tf.float32) for side in image_shape[:2])
        shorter = tf.minimum(height, width)
        base = (self._base_size[0] * shorter / height, self._base_size[1] * shorter / width)
        grids = []
        for layer, (shape, specs) in enumerate(zip(feature_shapes, self._specs, strict=True)):
            if self._strides:
                stride = (self._strides[layer][0] / height, self._strides[layer][1] / width)
            else:
                stride = tuple(1.0 / tf.cast(side, tf.float32) for side in shape)
            if self._offsets:
                offset = (self._offsets[layer][0] / height, self._offsets[layer][1] / width)
            else:
                offset = (0.5 * stride[0], 0.5 * stride[1])
            grids.append(tile_anchors(shape, specs, base, stride, offset))
        return tf.concat(grids, axis=0)


class GridAnchors:
    """One grid of anchors for one feature map (Ren et al., 2015); sizes, stride and offset in pixels."""

    def __init__(self, scales: Sequence[float], aspect_ratios: Sequence[float], base_size: Pair = (256.0, 256.0),
                 stride: Pair = (16.0, 16.0), offset: Pair = (0.0, 0.0), normalize: bool = True):
        """`normalize` false: anchors in pixels, as two-stage detectors use them."""
        self._specs = [AnchorSpec(scale, ratio) for ratio in aspect_ratios for scale in scales]
        self._base_size, self._stride, self._offset, self._normalize = base_size, stride, offset, normalize

    def num_anchors_per_location(self) -> list[int]:
        """A single number."""
        return [len(self._specs)]

    def __call__(self, feature_shapes: Sequence[tuple[Size, Size]], image_shape: tuple[Size, Size]) -> tf.Tensor:
        """See `AnchorGenerator`."""
        _check_count(feature_shapes, 1, "grid_anchor_generator")
        boxes = tile_anchors(feature_shapes[0], self._specs, self._base_size, self._stride, self._offset)
        return box_ops.normalize(boxes, *image_shape[:2]) if self._normalize else boxes


class MultiscaleAnchors:
    """Anchors of a feature pyramid (RetinaNet, Lin et al., 2017): level l has stride 2^l, base `anchor_scale` * 2^l."""

    def __init__(self, min_level: int, max_level: int, anchor_scale: float, aspect_ratios: Sequence[float],
                 scales_per_octave: int, normalize: bool = True):
        self._levels = list(range(min_level, max_level + 1))
        self._anchor_scale, self._normalize = anchor_scale, normalize
        scales = [2.0 ** (step / scales_per_octave) for step in range(scales_per_octave)]
        self._specs = [AnchorSpec(scale, ratio) for ratio in aspect_ratios for scale in scales]

    def num_anchors_per_location(self) -> list[int]:
        """The same number for every level."""
        return [len(self._specs)] * len(self._levels)

    def __call__(self, feature_shapes: Sequence[tuple[Size, Size]], image_shape: tuple[Size, Size]) -> tf.Tensor:
        """See `AnchorGenerator`."""
        _check_count(feature_shapes, len(self._levels), "multiscale_anchor_generator's levels")
        grids = []
        for level, shape in zip(self._levels, feature_shapes, strict=True):
            stride = 2.0**level
            offset = tuple(_grid_offset(side, stride) for side in image_shape[:2])
            base = (stride * self._anchor_scale,) * 2
            grids.append(tile_anchors(shape, self._specs, base, (stride, stride), offset))
        boxes = tf.concat(grids, axis=0)
        return box_ops.normalize(boxes, *image_shape[:2]) if self._normalize else boxes


class FlexibleGridAnchors:
    """Grids stated one by one: per anchor a size in pixels and an aspect ratio, per grid stride and offset."""

    def __init__(self, specs: Sequence[Sequence[AnchorSpec]], strides: Sequence[Pair], offsets: Sequence[Pair],
                 normalize: bool = True):
        self._specs, self._strides, self._offsets, self._normalize = specs, strides, offsets, normalize

    def num_anchors_per_location(self) -> list[int]:
        """One number per grid."""
        return [len(layer) for layer in self._specs]

    def __call__(self, feature_shapes: Sequence[tuple[Size, Size]], image_shape: tuple[Size, Size]) -> tf.Tensor:
        """See `AnchorGenerator`."""
        _check_count(feature_shapes, len(self._specs), "flexible_grid_anchor_generator.anchor_grid")
        layers = zip(feature_shapes, self._specs, self._strides, self._offsets, strict=True)
        boxes = tf.concat([tile_anchors(shape, specs, (1.0, 1.0), stride, offset)
                           for shape, specs, stride, offset in layers], axis=0)
        return box_ops.normalize(boxes, *image_shape[:2]) if self._normalize else boxes


def _grid_offset(side: Size, stride: float) -> float:
    """Half a stride; 0 for a side that the stride does not divide, where cells have no centre in common with it.

    A side known only at run time is taken to be divisible, as detectors with such sides pad their images.
    """
    return stride / 2.0 if tf.is_tensor(side) or side % stride == 0 else 0.0


def _check_count(feature_shapes: Sequence, expected: int, field: str) -> None:
    if len(feature_shapes) != expected:
        raise UserError(f"{field}: anchors are configured for {expected} feature maps, but the feature extractor "
                        f"yields {len(feature_shapes)}; make the two agree")
