"""TABLE: feature_extractor.type -> backbone, neck and their arguments. A new family is its files: the network's in
`models/backbones`, and its rows in `config/families`."""

from __future__ import annotations

import logging
from typing import NamedTuple

import tensorflow as tf

from od_finetune.config import necks
from od_finetune.config.families import (
    efficientnet,
    efficientnet_lite,
    inception,
    mobiledet,
    mobilenet,
    mobilenet_v3,
    resnet,
)
from od_finetune.config.hyperparams import build_hyperparams
from od_finetune.config.rows import Row, find
from od_finetune.errors import UserError
from od_finetune.models.normalization import Normalization
from od_finetune.names import Rules, Vocabulary
from od_finetune.protos import ssd_pb2

logger = logging.getLogger(__name__)

TABLE: dict[str, Row] = {
    **efficientnet.ROWS,
    **efficientnet_lite.ROWS,
    **inception.ROWS,
    **mobiledet.ROWS,
    **mobilenet.ROWS,
    **mobilenet_v3.ROWS,
    **resnet.ROWS,
}


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


def build_extractor(proto: ssd_pb2.SsdFeatureExtractor, freeze_batchnorm: bool = False) -> Extractor:
    """Backbone and neck of an SSD.

    Raises:
      UserError: the type is not in TABLE, or a field asks for what it does not have.
    """
    row = find(TABLE, proto.type, "model.ssd.feature_extractor")
    family = row.family
    hyperparams = build_hyperparams(proto.conv_hyperparams, "model.ssd.feature_extractor.conv_hyperparams")
    overridden = proto.override_base_feature_extractor_hyperparams
    base = family.override(hyperparams, row.keras) if overridden else row.defaults
    if base is None:
        raise UserError(
            f"model.ssd.feature_extractor.override_base_feature_extractor_hyperparams: found false, expected true, as "
            f"{proto.type} has no hyperparams but those of conv_hyperparams; write it out"
        )
    if overridden and base is row.defaults:
        logger.warning(
            "model.ssd.feature_extractor.override_base_feature_extractor_hyperparams has no effect on %s: as in the OD "
            "API, its backbone keeps the hyperparameters that it was published with",
            proto.type,
        )
    # In TF2 the config says nothing about the 1x1 half of a separable convolution.
    hyperparams = hyperparams._replace(plain_pointwise=row.keras)
    if freeze_batchnorm:
        base, hyperparams = base.frozen_batchnorm(), hyperparams.frozen_batchnorm()
    source = necks.NeckSource(
        family.scope, row.levels, row.tf2_scope, row.tf2_neck, row.tf2_lists, row.keras, family.last_layer,
        family.layer_name, base,
    )
    neck = row.neck(proto, source, hyperparams)
    backbone = family.backbone(
        family.scope,
        base,
        neck.levels,
        depth_multiplier=proto.depth_multiplier,
        min_depth=proto.min_depth,
        explicit_padding=proto.use_explicit_padding,
        **row.arguments,
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
