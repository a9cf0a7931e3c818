"""Feature pyramid (Lin et al. 2017, arXiv:1612.03144) as the OD API builds it."""

from __future__ import annotations

import tensorflow as tf

from od_finetune.fields import ObjectTree
from od_finetune.models import tf2_objects
from od_finetune.models.layers import ConvHyperparams, ConvUnit, conv_layer, spatial_shape
from od_finetune.names import Rules

# Level n has stride 2^n. These are the ones that a backbone has.
FINEST_LEVEL, COARSEST_LEVEL = 2, 5


def tf2_rules(use_depthwise: bool) -> Rules:
    """Canonical name -> full name in the OD API's TF2 checkpoints, without the extractor's own scope in front."""
    kind = "depthwise_conv" if use_depthwise else "conv"
    fpn, top_down = r"^\w+/\w+/fpn", "FeatureMaps/top_down"
    return [
        (rf"{fpn}/(projection_\d+)/", rf"{top_down}/\1/"),
        (rf"{fpn}/(smoothing_\d+)/BatchNorm/", rf"{top_down}/\1_batchnorm/"),
        (rf"{fpn}/(smoothing_\d+)/", rf"{top_down}/\1_{kind}/"),
        (rf"{fpn}/(bottom_up_\w+)/BatchNorm/", r"\1_batchnorm/"),
        (rf"{fpn}/(bottom_up_\w+)/", rf"\1_{kind}/"),
    ]


class FeaturePyramid(tf.Module):
    """From the coarsest backbone level down: twice the size (nearest neighbour) plus the next finer level's 1x1
    projection, each sum smoothed by a 3x3 convolution. The coarsest map is its bare projection. From there up, maps
    coarser than the backbone has come from 3x3 convolutions at stride 2.

    Args:
      scope: canonical scope of the backbone, e.g. `FeatureExtractor/MobilenetV2`; the layers are in `<scope>/fpn`.
      hyperparams: of the new layers; projections have neither norm nor activation.
      levels: names of the backbone's levels, finest first, each at half the resolution of the one before.
      depth: channels of every map.
      coarser: how many maps follow that are coarser than the last level.
      last_layer: number of the backbone's last layer, from which the names of the coarser maps count on.
      layer_name: what the backbone calls its layers, `Conv2d_` for `bottom_up_Conv2d_<the next number>`.
      explicit_padding: see `layers.fixed_padding`.
      use_depthwise: 3x3 convolutions are separable (FPNLite).
      pass_smoothed: the next finer level takes the smoothed map, as in the OD API's TF2 half, not the sum before it,
        as in the paper and TF1.
      tf2_lists: lists without variables that the OD API's TF2 extractor holds first.
      tf2_blocks: the list of its backbone's levels, after them.
    """

    def __init__(
        self,
        scope: str,
        hyperparams: ConvHyperparams,
        levels: tuple[str, ...],
        depth: int,
        coarser: int,
        last_layer: int,
        explicit_padding: bool = False,
        use_depthwise: bool = False,
        pass_smoothed: bool = False,
        tf2_lists: tuple[str, ...] = (),
        layer_name: str = "Conv2d_",
        tf2_blocks: str = "_feature_blocks",
    ):
        super().__init__()
        self._levels = tuple(levels)
        self._tf2_lists = (*tf2_lists, tf2_blocks)
        self._pass_smoothed = pass_smoothed

        def conv3x3(name: str, stride: int) -> ConvUnit:
            return ConvUnit(
                f"{scope}/fpn/{name}", hyperparams, depth, 3, stride, explicit_padding, separable=use_depthwise
            )

        def projection(number: int) -> tf.Module:
            return conv_layer(f"{scope}/fpn/projection_{number}", hyperparams, depth, 1)

        self._top = projection(len(levels))
        # One pair per finer level, coarsest first.
        self._down = [(projection(n), conv3x3(f"smoothing_{n}", 1)) for n in range(len(levels) - 1, 0, -1)]
        self._up = [conv3x3(f"bottom_up_{layer_name}{last_layer + n}", 2) for n in range(1, coarser + 1)]

    def tf2_objects(self, backbone: ObjectTree) -> ObjectTree:
        """The OD API's TF2 extractor, `backbone` in it, in the object graph of its checkpoints."""
        layer, unit, listed = tf2_objects.layer, tf2_objects.unit, tf2_objects.listed
        # Where padding is explicit, a layer cuts the enlarged map to the size of the finer one.
        cut: list[list[ObjectTree]] = [[{}] * smooth.explicit_padding for _, smooth in self._down]
        return {
            **{name: {} for name in self._tf2_lists},
            "_coarse_feature_layers": listed(listed(unit(up)) for up in self._up),
            "classification_backbone": backbone,
            "_fpn_features_generator": {
                "top_layers": listed([layer(self._top)]),
                "residual_blocks": listed(listed([layer(project)]) for project, _ in self._down),
                "top_down_blocks": listed(listed([{}]) for _ in self._down),
                "reshape_blocks": listed(map(listed, cut)),
                "conv_layers": listed(listed(unit(smooth)) for _, smooth in self._down),
            },
        }

    def tf2_model(self, backbone: ObjectTree) -> ObjectTree:
        """The same as the node of a two-stage detector's first stage: a Keras model of its own."""
        own = self.tf2_objects({})
        return {
            "classification_backbone": backbone,
            "fpn_features_generator": own["_fpn_features_generator"],
            "coarse_feature_layers": own["_coarse_feature_layers"],
            "_resnet_block_names": {},
        }

    def __call__(self, features: dict[str, tf.Tensor], training: bool = False) -> list[tf.Tensor]:
        """Backbone levels by name -> maps `[B, h, w, depth]`, finest first."""
        sources = [features[level] for level in self._levels]
        top_down = self._top(sources[-1])
        maps = [top_down]
        for (project, smooth), source in zip(self._down, reversed(sources[:-1]), strict=True):
            top_down = _enlarged(top_down, source) + project(source)
            maps.insert(0, smooth(top_down, training))
            if self._pass_smoothed:
                top_down = maps[0]
        for unit in self._up:
            maps.append(unit(maps[-1], training))
        return maps


def _enlarged(features: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Twice as large; a row or column too many, of a level whose size is odd, is cut off."""
    height, width = spatial_shape(features)
    rows, columns = spatial_shape(like)
    return tf.image.resize(features, [2 * height, 2 * width], method="nearest")[:, :rows, :columns, :]
