"""feature_extractor message -> neck: one builder per kind of neck, chosen by the rows of `extractors.TABLE`."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from od_finetune.errors import UserError
from od_finetune.models.layers import ConvHyperparams
from od_finetune.models.necks import fpn, multires
from od_finetune.names import Rules
from od_finetune.protos import ssd_pb2

AT = "model.ssd.feature_extractor"


class Neck(NamedTuple):
    """A neck with what its surroundings need to know."""

    levels: tuple[str, ...]  # the backbone's levels that it takes, finest first
    module: tf.Module  # ({level: features}, training) -> [feature map]
    num_maps: int
    rules: Rules  # canonical -> TF2 name


class NeckSource(NamedTuple):
    """What a neck needs to know of the backbone."""

    scope: str
    levels: tuple[str, ...]  # those that this kind of neck may take, finest first
    tf2_scope: str  # in front of the neck's TF2 names
    # The attribute that holds the neck in TF2 checkpoints, of a pyramid the list beside it, where types differ.
    tf2_neck: str
    tf2_lists: tuple[str, ...]  # lists without variables that the extractor holds there where use_depthwise is set
    keras: bool  # a type of the OD API's TF2 half
    last_layer: int  # the number of the backbone's last layer, where names count on from it
    layer_name: str  # in front of such numbers


def build_multires(
    proto: ssd_pb2.SsdFeatureExtractor,
    source: NeckSource,
    hyperparams: ConvHyperparams,
    extra: tuple[multires.FeatureMap, ...] = multires.SSD_EXTRA_MAPS,
) -> Neck:
    """SSD's feature maps of many resolutions: the backbone's levels, then the `extra` ones.

    Raises:
      UserError: the message asks for a feature pyramid, or for more maps than there are.
    """
    if proto.WhichOneof("feature_pyramid_oneof"):
        raise UserError(f"{AT}.{proto.WhichOneof('feature_pyramid_oneof')}: {proto.type} has no feature pyramid; "
                        "remove the field or choose another type")
    layout = (*(multires.FeatureMap(level=level) for level in source.levels), *extra)
    if not 1 <= proto.num_layers <= len(layout):
        raise UserError(f"{AT}.num_layers: found {proto.num_layers}, expected 1 to {len(layout)}")
    layout = layout[: proto.num_layers]
    module = multires.MultiResolutionFeatureMaps(
        source.scope,
        hyperparams,
        layout,
        depth_multiplier=proto.depth_multiplier,
        min_depth=proto.min_depth,
        explicit_padding=proto.use_explicit_padding,
        use_depthwise=proto.use_depthwise,
        tf2_attribute=source.tf2_neck,
    )
    levels = tuple(entry.level for entry in layout if entry.level)
    return Neck(levels, module, len(layout), _in_scope(source.tf2_scope, multires.TF2_RULES))


def build_fpn(proto: ssd_pb2.SsdFeatureExtractor, source: NeckSource, hyperparams: ConvHyperparams) -> Neck:
    """A feature pyramid; without an `fpn` message, the one that its defaults describe.

    Raises:
      UserError: another kind of pyramid is asked for, or levels that the backbone does not have.
    """
    if proto.WhichOneof("feature_pyramid_oneof") == "bifpn":
        raise UserError(f"{AT}.bifpn: {proto.type} has a plain feature pyramid; write fpn {{ ... }}")
    low, high = proto.fpn.min_level, proto.fpn.max_level
    if not (fpn.FINEST_LEVEL <= low <= fpn.COARSEST_LEVEL and low <= high):
        raise UserError(f"{AT}.fpn: found min_level {low} and max_level {high}, expected a min_level of "
                        f"{fpn.FINEST_LEVEL} to {fpn.COARSEST_LEVEL} and a max_level that is not less")
    if proto.HasField("num_layers") and proto.num_layers != high - low + 1:
        raise UserError(f"{AT}.num_layers: found {proto.num_layers}, but {proto.type} has a feature map per level of "
                        f"fpn, {low} to {high}; remove num_layers, or set fpn.min_level and fpn.max_level")
    base = min(high, fpn.COARSEST_LEVEL)
    levels = source.levels[low - fpn.FINEST_LEVEL : base - fpn.FINEST_LEVEL + 1]
    module = fpn.FeaturePyramid(
        source.scope,
        hyperparams,
        levels,
        depth=max(int(proto.fpn.additional_layer_depth * proto.depth_multiplier), proto.min_depth),
        coarser=high - base,
        last_layer=source.last_layer,
        explicit_padding=proto.use_explicit_padding,
        use_depthwise=proto.use_depthwise,
        pass_smoothed=source.keras,
        tf2_lists=source.tf2_lists if proto.use_depthwise else (),
        layer_name=source.layer_name,
        tf2_blocks=source.tf2_neck,
    )
    return Neck(levels, module, high - low + 1, _in_scope(source.tf2_scope, fpn.tf2_rules(proto.use_depthwise)))


def _in_scope(scope: str, rules: Rules) -> Rules:
    return [(pattern, f"{scope}/{replacement}") for pattern, replacement in rules]
