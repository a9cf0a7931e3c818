"""feature_extractor message -> neck: one builder per kind of neck, chosen by the rows of `extractors.TABLE`."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from od_finetune.errors import UserError
from od_finetune.models.backbones.mobilenet_v2 import divisible
from od_finetune.models.layers import ConvHyperparams
from od_finetune.models.necks import fpn, mnasfpn, multires, ppn
from od_finetune.names import Rules
from od_finetune.protos import faster_rcnn_pb2, ssd_pb2

AT = "model.ssd.feature_extractor"
_TWO_STAGE_LEVELS = (2, 6)  # of a pyramid that no fpn message describes


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
    base: ConvHyperparams  # of the backbone


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
    _refuse_pyramid(proto)
    layout = (*(multires.FeatureMap(level=level) for level in source.levels), *extra)
    count = proto.num_layers if proto.HasField("num_layers") else len(layout)
    if not 1 <= count <= len(layout):
        raise UserError(f"{AT}.num_layers: found {count}, expected 1 to {len(layout)}")
    layout = layout[:count]
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


def build_ppn(proto: ssd_pb2.SsdFeatureExtractor, source: NeckSource, hyperparams: ConvHyperparams) -> Neck:
    """A pooling pyramid on the first of the backbone's levels; the others are built, too, as checkpoints have them.

    Raises:
      UserError: the message asks for a feature pyramid, or for no map.
    """
    del hyperparams  # there is no convolution
    _refuse_pyramid(proto)
    if proto.num_layers < 1:
        raise UserError(f"{AT}.num_layers: found {proto.num_layers}, expected at least 1")
    module = ppn.PoolingPyramid(source.levels[0], proto.num_layers)
    return Neck(source.levels, module, proto.num_layers, [])


def build_mnasfpn(proto: ssd_pb2.SsdFeatureExtractor, source: NeckSource, hyperparams: ConvHyperparams) -> Neck:
    """MnasFPN. The OD API builds it, and the backbone below it, with hyperparams of its own, whatever the config says.

    Raises:
      UserError: another kind of pyramid is asked for, or other levels than MnasFPN has.
    """
    del hyperparams
    if proto.WhichOneof("feature_pyramid_oneof") == "bifpn":
        raise UserError(f"{AT}.bifpn: {proto.type} has MnasFPN; write fpn {{ ... }}")
    low, high, depth = mnasfpn.FINEST_LEVEL, mnasfpn.COARSEST_LEVEL, mnasfpn.DEPTH
    if proto.HasField("fpn"):
        depth = proto.fpn.additional_layer_depth
        if (proto.fpn.min_level, proto.fpn.max_level) != (low, high):
            raise UserError(f"{AT}.fpn: found min_level {proto.fpn.min_level} and max_level {proto.fpn.max_level}, "
                            f"expected {low} and {high}, the levels of MnasFPN")
    count = high - low + 1
    if proto.HasField("num_layers") and proto.num_layers != count:
        raise UserError(f"{AT}.num_layers: found {proto.num_layers}, but {proto.type} has {count} feature maps; "
                        "remove num_layers")
    module = mnasfpn.MnasFpn(
        source.scope.rpartition("/")[0] + "/MnasFPN",
        source.base,
        source.levels,
        depth=depth,
        scaled=lambda width: divisible(width * proto.depth_multiplier, minimum=proto.min_depth),
        explicit_padding=proto.use_explicit_padding,
    )
    return Neck(source.levels, module, count, [])


def build_fpn(proto: ssd_pb2.SsdFeatureExtractor, source: NeckSource, hyperparams: ConvHyperparams) -> Neck:
    """A feature pyramid; without an `fpn` message, the one that its defaults describe.

    Raises:
      UserError: another kind of pyramid is asked for, or levels that the backbone does not have.
    """
    if proto.WhichOneof("feature_pyramid_oneof") == "bifpn":
        raise UserError(f"{AT}.bifpn: {proto.type} has a plain feature pyramid; write fpn {{ ... }}")
    low, high = _pyramid_levels(proto.fpn.min_level, proto.fpn.max_level, AT)
    if proto.HasField("num_layers") and proto.num_layers != high - low + 1:
        raise UserError(f"{AT}.num_layers: found {proto.num_layers}, but {proto.type} has a feature map per level of "
                        f"fpn, {low} to {high}; remove num_layers, or set fpn.min_level and fpn.max_level")
    return _pyramid(
        source,
        hyperparams,
        (low, high),
        depth=max(int(proto.fpn.additional_layer_depth * proto.depth_multiplier), proto.min_depth),
        explicit_padding=proto.use_explicit_padding,
        use_depthwise=proto.use_depthwise,
    )


def build_two_stage_fpn(
    proto: faster_rcnn_pb2.FasterRcnnFeatureExtractor, source: NeckSource, hyperparams: ConvHyperparams
) -> Neck:
    """A feature pyramid to propose on and to crop from; without an `fpn` message, levels 2 to 6.

    Raises:
      UserError: levels that the backbone does not have, or no hyperparams for the new layers.
    """
    at = "model.faster_rcnn.feature_extractor"
    if not proto.HasField("conv_hyperparams"):
        raise UserError(f"{at}.conv_hyperparams: {proto.type} needs them for its feature pyramid; found none")
    given = (proto.fpn.min_level, proto.fpn.max_level) if proto.HasField("fpn") else _TWO_STAGE_LEVELS
    levels = _pyramid_levels(*given, at)
    return _pyramid(source, hyperparams, levels, depth=proto.fpn.additional_layer_depth)


def _pyramid_levels(low: int, high: int, at: str) -> tuple[int, int]:
    if not (fpn.FINEST_LEVEL <= low <= fpn.COARSEST_LEVEL and low <= high):
        raise UserError(f"{at}.fpn: found min_level {low} and max_level {high}, expected a min_level of "
                        f"{fpn.FINEST_LEVEL} to {fpn.COARSEST_LEVEL} and a max_level that is not less")
    return low, high


def _pyramid(
    source: NeckSource,
    hyperparams: ConvHyperparams,
    levels: tuple[int, int],
    depth: int,
    explicit_padding: bool = False,
    use_depthwise: bool = False,
) -> Neck:
    low, high = levels
    base = min(high, fpn.COARSEST_LEVEL)
    names = source.levels[low - fpn.FINEST_LEVEL : base - fpn.FINEST_LEVEL + 1]
    module = fpn.FeaturePyramid(
        source.scope,
        hyperparams,
        names,
        depth=depth,
        coarser=high - base,
        last_layer=source.last_layer,
        explicit_padding=explicit_padding,
        use_depthwise=use_depthwise,
        pass_smoothed=source.keras,
        tf2_lists=source.tf2_lists if use_depthwise else (),
        layer_name=source.layer_name,
        tf2_blocks=source.tf2_neck,
    )
    return Neck(names, module, high - low + 1, _in_scope(source.tf2_scope, fpn.tf2_rules(use_depthwise)))


def _refuse_pyramid(proto: ssd_pb2.SsdFeatureExtractor) -> None:
    if pyramid := proto.WhichOneof("feature_pyramid_oneof"):
        raise UserError(f"{AT}.{pyramid}: {proto.type} has no feature pyramid; remove the field or choose another type")


def _in_scope(scope: str, rules: Rules) -> Rules:
    return [(pattern, f"{scope}/{replacement}") for pattern, replacement in rules]
