"""TABLE: feature_extractor.type -> backbone, neck and their arguments. A new family is its files and a row here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from od_finetune.config import necks
from od_finetune.config.hyperparams import build_hyperparams
from od_finetune.errors import UserError
from od_finetune.models.backbones import efficientnet_lite, mobilenet_v1, mobilenet_v2
from od_finetune.models.layers import ConvHyperparams
from od_finetune.models.normalization import EFFICIENTNET_LITE, SYMMETRIC, Normalization
from od_finetune.names import Rules, Vocabulary, nearest
from od_finetune.protos import ssd_pb2


class Family(NamedTuple):
    """A backbone, whatever neck is on it."""

    backbone: Callable[..., tf.Module]  # (scope, hyperparams, levels, depth_multiplier, min_depth, explicit_padding)
    scope: str
    override: Callable[[ConvHyperparams, bool], ConvHyperparams]  # (the config's hyperparams, keras)
    backbone_rules: Rules  # canonical -> TF2 name
    vocabularies: tuple[Vocabulary, ...]  # of published classification nets
    last_layer: int  # its number, from which names of layers count on
    normalize: Normalization = SYMMETRIC


class Row(NamedTuple):
    """One feature extractor type."""

    family: Family
    defaults: ConvHyperparams  # of the backbone, unless the config overrides them
    keras: bool  # a type of the OD API's TF2 half
    neck: Callable[[ssd_pb2.SsdFeatureExtractor, necks.NeckSource, ConvHyperparams], necks.Neck]
    levels: tuple[str, ...]  # of the backbone, those the neck may take, finest first
    tf2_scope: str  # in front of the neck's TF2 names
    tf2_neck: str = ""  # see necks.NeckSource; empty where the OD API has no such type
    tf2_lists: tuple[str, ...] = ()  # see necks.NeckSource
    lite: dict[str, Any] = {}  # further arguments of the backbone where use_depthwise is set


class Extractor(NamedTuple):
    """What a row makes of a feature_extractor message."""

    backbone: tf.Module
    neck: tf.Module
    num_maps: int
    pad_to_multiple: int
    backbone_rules: Rules
    neck_rules: Rules
    keras: bool
    vocabularies: tuple[Vocabulary, ...]
    normalize: Normalization


MOBILENET_V1 = Family(
    backbone=mobilenet_v1.MobilenetV1,
    scope="FeatureExtractor/MobilenetV1",
    override=mobilenet_v1.override,
    backbone_rules=mobilenet_v1.TF2_RULES,
    vocabularies=mobilenet_v1.VOCABULARIES,
    last_layer=13,
)
MOBILENET_V2 = Family(
    backbone=mobilenet_v2.MobilenetV2,
    scope="FeatureExtractor/MobilenetV2",
    override=mobilenet_v2.override,
    backbone_rules=mobilenet_v2.TF2_RULES,
    vocabularies=mobilenet_v2.VOCABULARIES,
    last_layer=19,
)

EFFICIENTNET_LITE0 = Family(
    backbone=efficientnet_lite.EfficientNetLite0,
    scope=f"FeatureExtractor/{efficientnet_lite.SCOPE}",
    override=efficientnet_lite.override,
    backbone_rules=efficientnet_lite.TF2_RULES,
    vocabularies=efficientnet_lite.VOCABULARIES,
    last_layer=efficientnet_lite.NUM_BLOCKS,
    normalize=EFFICIENTNET_LITE,
)


def _mobilenet_v1(keras: bool) -> Row:
    return Row(
        family=MOBILENET_V1,
        defaults=mobilenet_v1.DEFAULTS,
        keras=keras,
        neck=necks.build_multires,
        levels=("Conv2d_11_pointwise", "Conv2d_13_pointwise"),
        tf2_scope="ssd_mobile_net_v1_keras_feature_extractor",
        tf2_neck="_feature_map_generator",
    )


def _mobilenet_v1_fpn(keras: bool) -> Row:
    return _mobilenet_v1(keras)._replace(
        neck=necks.build_fpn,
        levels=("Conv2d_3_pointwise", "Conv2d_5_pointwise", "Conv2d_11_pointwise", "Conv2d_13_pointwise"),
        tf2_scope="ssd_mobile_net_v1_fpn_keras_feature_extractor",
    )


def _mobilenet_v2(keras: bool) -> Row:
    return Row(
        family=MOBILENET_V2,
        defaults=mobilenet_v2.KERAS_DEFAULTS if keras else mobilenet_v2.DEFAULTS,
        keras=keras,
        neck=necks.build_multires,
        levels=("layer_15/expansion_output", "layer_19"),
        tf2_scope="ssd_mobile_net_v2_keras_feature_extractor",
        tf2_neck="feature_map_generator",
    )


def _mobilenet_v2_fpn(keras: bool) -> Row:
    return _mobilenet_v2(keras)._replace(
        neck=necks.build_fpn,
        levels=("layer_4", "layer_7", "layer_14", "layer_19"),
        tf2_scope="ssd_mobile_net_v2_fpn_keras_feature_extractor",
        # TF1's FPNLite has a narrow last convolution; TF2 leaves it as it is.
        lite={} if keras else {"last_filters": 256},
        tf2_lists=("_conv_defs",),
    )


# Not in the OD API: built as its TF2 half builds such extractors.
_EFFICIENTNET_LITE0 = Row(
    family=EFFICIENTNET_LITE0,
    defaults=efficientnet_lite.DEFAULTS,
    keras=True,
    neck=necks.build_multires,
    levels=("block_11/expand", "top"),
    tf2_scope="ssd_efficientnet_lite0_feature_extractor",
)
_EFFICIENTNET_LITE0_FPN = _EFFICIENTNET_LITE0._replace(
    neck=necks.build_fpn,
    levels=("block_2", "block_4", "block_10", "block_15"),
    tf2_scope="ssd_efficientnet_lite0_fpn_feature_extractor",
)

TABLE: dict[str, Row] = {
    "ssd_efficientnet_lite0": _EFFICIENTNET_LITE0,
    "ssd_efficientnet_lite0_fpn": _EFFICIENTNET_LITE0_FPN,
    "ssd_mobilenet_v1": _mobilenet_v1(keras=False),
    "ssd_mobilenet_v1_keras": _mobilenet_v1(keras=True),
    "ssd_mobilenet_v1_fpn": _mobilenet_v1_fpn(keras=False),
    "ssd_mobilenet_v1_fpn_keras": _mobilenet_v1_fpn(keras=True),
    "ssd_mobilenet_v2": _mobilenet_v2(keras=False),
    "ssd_mobilenet_v2_keras": _mobilenet_v2(keras=True),
    "ssd_mobilenet_v2_fpn": _mobilenet_v2_fpn(keras=False),
    "ssd_mobilenet_v2_fpn_keras": _mobilenet_v2_fpn(keras=True),
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
    family = row.family
    hyperparams = build_hyperparams(proto.conv_hyperparams, "model.ssd.feature_extractor.conv_hyperparams")
    overridden = proto.override_base_feature_extractor_hyperparams
    base = family.override(hyperparams, row.keras) if overridden else row.defaults
    # In TF2 the config says nothing about the 1x1 half of a separable convolution.
    hyperparams = hyperparams._replace(plain_pointwise=row.keras)
    if freeze_batchnorm:
        base, hyperparams = base.frozen_batchnorm(), hyperparams.frozen_batchnorm()
    source = necks.NeckSource(
        family.scope, row.levels, row.tf2_scope, row.tf2_neck, row.tf2_lists, row.keras, family.last_layer
    )
    neck = row.neck(proto, source, hyperparams)
    backbone = family.backbone(
        family.scope,
        base,
        neck.levels,
        depth_multiplier=proto.depth_multiplier,
        min_depth=proto.min_depth,
        explicit_padding=proto.use_explicit_padding,
        **(row.lite if proto.use_depthwise else {}),
    )
    return Extractor(
        backbone=backbone,
        neck=neck.module,
        num_maps=neck.num_maps,
        pad_to_multiple=proto.pad_to_multiple,
        backbone_rules=family.backbone_rules,
        neck_rules=neck.rules,
        keras=row.keras,
        vocabularies=tuple(_padding_told(each, proto.use_explicit_padding) for each in family.vocabularies),
        normalize=family.normalize,
    )


def _padding_told(vocabulary: Vocabulary, explicit_padding: bool) -> Vocabulary:
    """With a note for the restore plan where the checkpoint's network pads otherwise than this one."""
    if explicit_padding or not vocabulary.pads_evenly:
        return vocabulary
    note = (
        f"networks of {vocabulary.name} pad their strided convolutions evenly, this model as TensorFlow does; for the "
        "same activations set feature_extractor.use_explicit_padding: true"
    )
    return vocabulary._replace(note=note)
