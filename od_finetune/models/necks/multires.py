"""SSD's feature maps of many resolutions (Liu et al. 2016, arXiv:1512.02325): backbone levels, then extra layers."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from od_finetune.fields import ObjectTree
from od_finetune.models import tf2_objects
from od_finetune.models.layers import ConvHyperparams, ConvUnit


class FeatureMap(NamedTuple):
    """One feature map: a level of the backbone as it is, or a new one at half the resolution of the one before."""

    level: str = ""  # name of a backbone level; empty: a new map
    depth: int = 0  # channels of a new map, before depth_multiplier
    kernel_size: int = 3  # of the convolution at stride 2 that makes it


# What the MobileNet extractors of the OD API append to two levels of the backbone.
SSD_EXTRA_MAPS = (FeatureMap(depth=512), FeatureMap(depth=256), FeatureMap(depth=256), FeatureMap(depth=128))
# The embedded one's last kernel is no larger than the 2x2 map that it reads (of a 256x256 image).
EMBEDDED_EXTRA_MAPS = (FeatureMap(depth=512), FeatureMap(depth=256), FeatureMap(depth=256, kernel_size=2))

# Canonical name -> full name in the OD API's TF2 checkpoints, without the extractor's own scope in front.
TF2_RULES = [
    (r"^FeatureExtractor/\w+/(\w+)_depthwise/BatchNorm/", r"FeatureMaps/\1_depthwise_batchnorm/"),
    (r"^FeatureExtractor/\w+/(\w+)_depthwise/", r"FeatureMaps/\1_depthwise_conv/"),
    (r"^FeatureExtractor/\w+/(\w+)/BatchNorm/", r"FeatureMaps/\1_batchnorm/"),
    (r"^FeatureExtractor/\w+/(\w+)/", r"FeatureMaps/\1_conv/"),
]


class MultiResolutionFeatureMaps(tf.Module):
    """A new map is a 1x1 convolution to half its depth, then a 3x3 (or other) one at stride 2 to its depth.

    Args:
      scope: canonical scope, e.g. `FeatureExtractor/MobilenetV2`.
      hyperparams: of the new layers.
      layout: the maps in order; new ones are named after the last backbone level before them.
      depth_multiplier, min_depth: a depth becomes max(int(depth * depth_multiplier), min_depth).
      explicit_padding: see `layers.fixed_padding`.
      use_depthwise: the 3x3 convolution is a depthwise one and a 1x1 (SSDLite).
      tf2_attribute: what the OD API's TF2 extractor calls this.
    """

    def __init__(
        self,
        scope: str,
        hyperparams: ConvHyperparams,
        layout: tuple[FeatureMap, ...],
        depth_multiplier: float = 1.0,
        min_depth: int = 16,
        explicit_padding: bool = False,
        use_depthwise: bool = False,
        tf2_attribute: str = "feature_map_generator",
    ):
        super().__init__()
        self._tf2_attribute = tf2_attribute
        self._sources = tuple(entry.level for entry in layout)
        self._new: list[list[ConvUnit]] = []

        def scaled(depth: float) -> int:
            return max(int(depth * depth_multiplier), min_depth)

        base = ""
        for index, (level, depth, kernel_size) in enumerate(layout):
            if level:
                base = level.replace("/", "_")
                continue
            squeeze, final = scaled(depth / 2), scaled(depth)
            name = f"{scope}/{base}_2_Conv2d_{index}_{kernel_size}x{kernel_size}_s2_{final}"
            units = [ConvUnit(f"{scope}/{base}_1_Conv2d_{index}_1x1_{squeeze}", hyperparams, squeeze)]
            if use_depthwise:
                units.append(ConvUnit(f"{name}_depthwise", hyperparams, None, kernel_size, 2, explicit_padding))
                units.append(ConvUnit(name, hyperparams, final))
            else:
                units.append(ConvUnit(name, hyperparams, final, kernel_size, 2, explicit_padding))
            self._new.append(units)

    def tf2_objects(self, backbone: ObjectTree) -> ObjectTree:
        """The OD API's TF2 extractor, `backbone` in it, in the object graph of its checkpoints."""
        new = iter(self._new)
        units = ([] if level else next(new) for level in self._sources)
        layout: ObjectTree = {"from_layer": {}, "layer_depth": {}}
        convolutions = ([node for unit in group for node in tf2_objects.unit(unit)] for group in units)
        return {
            "_feature_map_layout": layout,
            "classification_backbone": backbone,
            self._tf2_attribute: {
                "feature_map_layout": layout,
                "convolutions": tf2_objects.listed(map(tf2_objects.listed, convolutions)),
            },
        }

    def __call__(self, features: dict[str, tf.Tensor], training: bool = False) -> list[tf.Tensor]:
        """Backbone levels by name -> feature maps, finest first."""
        maps: list[tf.Tensor] = []
        new = iter(self._new)
        for level in self._sources:
            if level:
                maps.append(features[level])
                continue
            outputs = maps[-1]
            for unit in next(new):
                outputs = unit(outputs, training)
            maps.append(outputs)
        return maps
