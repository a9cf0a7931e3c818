"""TABLE: feature_extractor.type of faster_rcnn -> both parts of its backbone, and the neck between them. A new family
is its files: the network's in `models/backbones`, and its FASTER_RCNN_ROWS in `config/families`."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from od_finetune.config import necks
from od_finetune.config.families import faster_rcnn_resnet, faster_rcnn_resnet_fpn, inception, nasnet
from od_finetune.config.hyperparams import build_hyperparams
from od_finetune.config.rows import TwoStageRow, find
from od_finetune.errors import UserError
from od_finetune.models.layers import ConvHyperparams
from od_finetune.models.necks.levels import Levels
from od_finetune.models.normalization import Normalization
from od_finetune.names import Rules, Vocabulary
from od_finetune.protos import faster_rcnn_pb2

AT = "model.faster_rcnn.feature_extractor"
FIRST, SECOND = "FirstStageFeatureExtractor", "SecondStageFeatureExtractor"

TABLE: dict[str, TwoStageRow] = {
    **faster_rcnn_resnet.FASTER_RCNN_ROWS,
    **faster_rcnn_resnet_fpn.FASTER_RCNN_ROWS,
    **inception.FASTER_RCNN_ROWS,
    **nasnet.FASTER_RCNN_ROWS,
}


class TwoStageExtractor(NamedTuple):
    """What a row makes of a feature_extractor message."""

    backbone: tf.Module  # (images, training) -> {level: features}
    neck: tf.Module  # ({level: features}, training) -> [feature map]
    num_maps: int
    second: tf.Module  # (crops, training) -> features
    backbone_rules: Rules  # of both parts
    neck_rules: Rules
    keras: bool
    vocabularies: tuple[Vocabulary, ...]
    normalize: Normalization
    pad_to_multiple: int


def build_extractor(proto: faster_rcnn_pb2.FasterRcnnFeatureExtractor) -> TwoStageExtractor:
    """Both parts of the backbone, and the neck, of a Faster R-CNN.

    Raises:
      UserError: the type is not in TABLE, or a field asks for what it does not have.
    """
    row = find(TABLE, proto.type, AT)
    _check(proto, row)
    family, base, neck_hyperparams = row.family, *_hyperparams(proto, row)
    scopes = [f"{part}/{family.scope}".rstrip("/") for part in (FIRST, SECOND)]
    if row.neck is None:
        neck = necks.Neck(row.levels, Levels(row.levels), len(row.levels), [])
        strides = {"output_stride": proto.first_stage_features_stride}
    else:
        source = necks.NeckSource(
            scopes[0], row.levels, row.tf2_scope, "", (), row.keras, family.last_layer, family.layer_name, base
        )
        neck, strides = row.neck(proto, source, neck_hyperparams), {}
    return TwoStageExtractor(
        backbone=family.first(scopes[0], base, neck.levels, **strides, **row.arguments),
        neck=neck.module,
        num_maps=neck.num_maps,
        second=family.second(scopes[1], base if row.neck is None else neck_hyperparams, **row.second_arguments),
        backbone_rules=family.backbone_rules,
        neck_rules=neck.rules,
        keras=row.keras,
        vocabularies=family.vocabularies,
        normalize=family.normalize,
        pad_to_multiple=1 if row.neck is None else proto.pad_to_multiple,
    )


def _hyperparams(
    proto: faster_rcnn_pb2.FasterRcnnFeatureExtractor, row: TwoStageRow
) -> tuple[ConvHyperparams, ConvHyperparams]:
    """Of the backbone, of the neck. Unless `batch_norm_trainable`, the backbone's norms stay in inference mode."""
    given = build_hyperparams(proto.conv_hyperparams, f"{AT}.conv_hyperparams")
    base = row.family.override(given, row.keras) if proto.override_base_feature_extractor_hyperparams else row.defaults
    if proto.batch_norm_trainable:
        return base, given
    return base.frozen_batchnorm(), given.frozen_batchnorm()


def _check(proto: faster_rcnn_pb2.FasterRcnnFeatureExtractor, row: TwoStageRow) -> None:
    """What is asked for that the type does not have."""
    if proto.HasField("fpn") and row.neck is None:
        raise UserError(f"{AT}.fpn: {proto.type} has no feature pyramid; remove the field or choose another type")
    if proto.HasField("pad_to_multiple") and row.neck is None:
        raise UserError(f"{AT}.pad_to_multiple: {proto.type} does not pad its images; remove the field")
    if row.neck is None and proto.first_stage_features_stride not in row.strides:
        raise UserError(
            f"{AT}.first_stage_features_stride: found {proto.first_stage_features_stride}, expected "
            f"{' or '.join(map(str, row.strides))}"
        )
    elsewhere = proto.DESCRIPTOR.fields_by_name["first_stage_features_stride"].default_value
    if row.neck is not None and proto.first_stage_features_stride != elsewhere:
        raise UserError(
            f"{AT}.first_stage_features_stride: found {proto.first_stage_features_stride}, but {proto.type} has a map "
            "for each level of its pyramid, 2^level the stride of each; remove the field"
        )
    needed = proto.override_base_feature_extractor_hyperparams
    if needed and not proto.HasField("conv_hyperparams"):
        raise UserError(f"{AT}.override_base_feature_extractor_hyperparams: is true, but there are no conv_hyperparams")
    if proto.HasField("conv_hyperparams") and not needed and row.neck is None:
        raise UserError(
            f"{AT}.conv_hyperparams: {proto.type} has layers of the backbone only, which take them only with "
            "override_base_feature_extractor_hyperparams: true; set it, or remove conv_hyperparams"
        )
