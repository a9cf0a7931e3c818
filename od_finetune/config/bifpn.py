"""feature_extractor message -> bidirectional feature pyramid."""

from __future__ import annotations

from typing import Any

from od_finetune.config.necks import AT, Neck, NeckSource
from od_finetune.errors import UserError
from od_finetune.models.layers import ConvHyperparams
from od_finetune.models.necks import bifpn
from od_finetune.names import nearest
from od_finetune.protos import fpn_pb2, ssd_pb2


def build_bifpn(
    proto: ssd_pb2.SsdFeatureExtractor,
    source: NeckSource,
    hyperparams: ConvHyperparams,
    defaults: fpn_pb2.BidirectionalFeaturePyramidNetworks,
) -> Neck:
    """A bidirectional feature pyramid; without a `bifpn` message as in `defaults`, which also say what one without
    iterations or filters has.

    Raises:
      UserError: another kind of pyramid is asked for, levels that the backbone does not have, or what EfficientDets
        do not have.
    """
    _check_extractor(proto)
    message = fpn_pb2.BidirectionalFeaturePyramidNetworks()
    message.CopyFrom(proto.bifpn if proto.HasField("bifpn") else defaults)
    for name in ("num_iterations", "num_filters"):  # whose defaults in the language are none
        if not message.HasField(name):
            setattr(message, name, getattr(defaults, name))
    low, high = message.min_level, message.max_level
    _check(message, proto)
    base = min(high, bifpn.COARSEST_LEVEL)
    levels = source.levels[low - bifpn.FINEST_LEVEL : base - bifpn.FINEST_LEVEL + 1]
    module = bifpn.BidirectionalFeaturePyramid(
        source.scope,
        hyperparams._replace(plain_pointwise=False),  # unlike in other pyramids of TF2
        levels,
        low,
        high,
        iterations=message.num_iterations,
        filters=max(message.num_filters, proto.min_depth),
        combine_method=message.combine_method,
    )
    rules = [(pattern, f"{source.tf2_scope}/{replacement}") for pattern, replacement in bifpn.TF2_RULES]
    return Neck(levels, module, high - low + 1, rules)


def _check_extractor(proto: ssd_pb2.SsdFeatureExtractor) -> None:
    """Raises where a field is set that EfficientDets do not have."""
    if proto.WhichOneof("feature_pyramid_oneof") == "fpn":
        raise UserError(f"{AT}.fpn: {proto.type} has a bidirectional feature pyramid; write bifpn {{ ... }}")
    for name in ("use_explicit_padding", "use_depthwise"):
        if getattr(proto, name):
            raise UserError(f"{AT}.{name}: found true, but {proto.type} has no such variant; remove the field")


def _check(message: Any, proto: ssd_pb2.SsdFeatureExtractor) -> None:
    low, high = message.min_level, message.max_level
    if not (bifpn.FINEST_LEVEL <= low <= bifpn.COARSEST_LEVEL and low < high):
        raise UserError(f"{AT}.bifpn: found min_level {low} and max_level {high}, expected a min_level of "
                        f"{bifpn.FINEST_LEVEL} to {bifpn.COARSEST_LEVEL} and a greater max_level")
    for name in ("num_iterations", "num_filters"):
        if getattr(message, name) < 1:
            raise UserError(f"{AT}.bifpn.{name}: found {getattr(message, name)}, expected at least 1")
    if message.combine_method not in bifpn.COMBINE_METHODS:
        like = nearest(message.combine_method, bifpn.COMBINE_METHODS)
        hint = f"; the nearest: {', '.join(like)}" if like else ""
        raise UserError(f"{AT}.bifpn.combine_method: found {message.combine_method!r}, expected one of "
                        f"{', '.join(bifpn.COMBINE_METHODS)}{hint}")
    if proto.HasField("num_layers") and proto.num_layers != high - low + 1:
        raise UserError(f"{AT}.num_layers: found {proto.num_layers}, but {proto.type} has a feature map per level of "
                        f"bifpn, {low} to {high}; remove num_layers, or set bifpn.min_level and bifpn.max_level")
