"""TABLE: feature_extractor.type -> backbone, neck and their arguments. A new family is its files and a row here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from od_finetune.config.hyperparams import build_hyperparams
from od_finetune.errors import UserError
from od_finetune.models.backbones import mobilenet_v1, mobilenet_v2
from od_finetune.models.layers import ConvHyperparams
from od_finetune.models.necks import multires
from od_finetune.names import Rules, nearest
from od_finetune.protos import ssd_pb2


class Row(NamedTuple):
    """One feature extractor type."""

    backbone: Callable[..., tf.Module]  # (scope, hyperparams, levels, depth_multiplier, min_depth, explicit_padding)
    scope: str
    levels: tuple[str, ...]  # of the backbone, finest first
    defaults: ConvHyperparams  # of the backbone, unless the config overrides them
    override: Callable[[ConvHyperparams, bool], ConvHyperparams]  # (the config's hyperparams, keras)
    keras: bool  # a type of the OD API's TF2 half
    backbone_rules: Rules  # canonical -> TF2 name
    tf2_scope: str  # in front of the neck's TF2 names
    tf2_neck: str  # the attribute that holds the neck in TF2 checkpoints


class Extractor(NamedTuple):
    """What a row makes of a feature_extractor message."""

    backbone: tf.Module
    neck: tf.Module
    num_maps: int
    pad_to_multiple: int
    backbone_rules: Rules
    neck_rules: Rules


def _mobilenet_v1(keras: bool) -> Row:
    return Row(
        backbone=mobilenet_v1.MobilenetV1,
        scope="FeatureExtractor/MobilenetV1",
        levels=("Conv2d_11_pointwise", "Conv2d_13_pointwise"),
        defaults=mobilenet_v1.DEFAULTS,
        override=mobilenet_v1.override,
        keras=keras,
        backbone_rules=mobilenet_v1.TF2_RULES,
        tf2_scope="ssd_mobile_net_v1_keras_feature_extractor",
        tf2_neck="_feature_map_generator",
    )


def _mobilenet_v2(keras: bool) -> Row:
    return Row(
        backbone=mobilenet_v2.MobilenetV2,
        scope="FeatureExtractor/MobilenetV2",
        levels=("layer_15/expansion_output", "layer_19"),
        defaults=mobilenet_v2.KERAS_DEFAULTS if keras else mobilenet_v2.DEFAULTS,
        override=mobilenet_v2.override,
        keras=keras,
        backbone_rules=mobilenet_v2.TF2_RULES,
        tf2_scope="ssd_mobile_net_v2_keras_feature_extractor",
        tf2_neck="feature_map_generator",
    )


TABLE: dict[str, Row] = {
    "ssd_mobilenet_v1": _mobilenet_v1(keras=False),
    "ssd_mobilenet_v1_keras": _mobilenet_v1(keras=True),
    "ssd_mobilenet_v2": _mobilenet_v2(keras=False),
    "ssd_mobilenet_v2_keras": _mobilenet_v2(keras=True),
}


def build_extractor(proto: ssd_pb2.SsdFeatureExtractor, freeze_batchnorm: bool = False) -> Extractor:
    """Backbone and neck of an SSD.

    Raises:
      UserError: the type is not in TABLE, or a field asks for what it does not have.
    """
    row = TABLE.get(proto.type)
    if row is None:
        like = nearest(proto.type, TABLE) or sorted(TABLE)
        raise UserError(
            f"model.ssd.feature_extractor.type: found {proto.type!r}, expected one of {', '.join(sorted(TABLE))}; "
            f"the nearest: {', '.join(like)}"
        )
    if proto.WhichOneof("feature_pyramid_oneof"):
        raise UserError(
            f"model.ssd.feature_extractor.{proto.WhichOneof('feature_pyramid_oneof')}: {proto.type} has no feature "
            "pyramid; remove the field or choose another type"
        )
    layout = (*(multires.FeatureMap(level=level) for level in row.levels), *multires.SSD_EXTRA_MAPS)
    if not 1 <= proto.num_layers <= len(layout):
        raise UserError(
            f"model.ssd.feature_extractor.num_layers: found {proto.num_layers}, expected 1 to {len(layout)}"
        )
    layout = layout[: proto.num_layers]
    hyperparams = build_hyperparams(proto.conv_hyperparams, "model.ssd.feature_extractor.conv_hyperparams")
    overridden = proto.override_base_feature_extractor_hyperparams
    base = row.override(hyperparams, row.keras) if overridden else row.defaults
    if freeze_batchnorm:
        base, hyperparams = base.frozen_batchnorm(), hyperparams.frozen_batchnorm()
    shared = dict(
        depth_multiplier=proto.depth_multiplier,
        min_depth=proto.min_depth,
        explicit_padding=proto.use_explicit_padding,
    )
    levels = tuple(entry.level for entry in layout if entry.level)
    neck_rules = [(pattern, f"{row.tf2_scope}/{replacement}") for pattern, replacement in multires.TF2_RULES]
    return Extractor(
        backbone=row.backbone(row.scope, base, levels, **shared),
        neck=multires.MultiResolutionFeatureMaps(
            row.scope,
            hyperparams,
            layout,
            use_depthwise=proto.use_depthwise,
            tf2_attribute=row.tf2_neck,
            **shared,
        ),
        num_maps=len(layout),
        pad_to_multiple=proto.pad_to_multiple,
        backbone_rules=row.backbone_rules,
        neck_rules=neck_rules,
    )
