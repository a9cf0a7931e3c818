"""second_stage_box_predictor message -> heads of the second stage, one builder per kind."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from od_finetune.config.hyperparams import build_dense_hyperparams
from od_finetune.config.two_stage_extractors import TwoStageExtractor
from od_finetune.errors import UserError
from od_finetune.models.heads import roi
from od_finetune.names import Rules
from od_finetune.protos import faster_rcnn_pb2

AT = "model.faster_rcnn.second_stage_box_predictor"


class SecondStage(NamedTuple):
    """What looks at regions, with what its surroundings need to know."""

    module: roi.RoiClassifier
    rules: Rules  # canonical -> TF2 name, of its heads


def build_second_stage(proto: faster_rcnn_pb2.FasterRcnn, extractor: TwoStageExtractor) -> SecondStage:
    """The second stage of the detector, masks included where there is a third one.

    Raises:
      UserError: no or an unknown predictor is described, or one that does not fit.
    """
    kind = proto.second_stage_box_predictor.WhichOneof("box_predictor_oneof")
    if kind not in BUILDERS:
        raise UserError(f"{AT}: found {kind or 'nothing'}, expected {' or '.join(BUILDERS)}")
    return BUILDERS[kind](proto, extractor)


def _mask_rcnn(proto: faster_rcnn_pb2.FasterRcnn, extractor: TwoStageExtractor) -> SecondStage:
    at, predictor = f"{AT}.mask_rcnn_box_predictor", proto.second_stage_box_predictor.mask_rcnn_box_predictor
    if predictor.box_code_size != roi.CODE_SIZE:
        raise UserError(f"{at}.box_code_size: found {predictor.box_code_size}, expected {roi.CODE_SIZE}")
    options = roi.BoxHeadOptions(
        hyperparams=build_dense_hyperparams(predictor.fc_hyperparams, f"{at}.fc_hyperparams"),
        share_box_across_classes=predictor.share_box_across_classes,
        dropout_keep_probability=predictor.dropout_keep_probability if predictor.use_dropout else 1.0,
    )
    head = roi.BoxHead(options, proto.num_classes)
    masks = _mask_head(proto)
    return SecondStage(roi.CropClassifier(build_crop(proto), extractor.second, head, masks), roi.TF2_RULES)


def _mask_head(proto: faster_rcnn_pb2.FasterRcnn) -> tf.Module | None:
    if proto.number_of_stages < 3:
        return None
    raise UserError("model.faster_rcnn.number_of_stages: found 3, expected 1 or 2: there is no mask head yet")


def build_crop(proto: faster_rcnn_pb2.FasterRcnn) -> roi.RoiCrop:
    """What cuts regions out.

    Raises:
      UserError: nothing would be left of them.
    """
    at = "model.faster_rcnn"
    for field in ("initial_crop_size", "maxpool_kernel_size", "maxpool_stride"):
        if getattr(proto, field) < 1:
            raise UserError(f"{at}.{field}: found {getattr(proto, field)}, expected at least 1")
    if proto.maxpool_kernel_size > proto.initial_crop_size:
        raise UserError(
            f"{at}.maxpool_kernel_size: found {proto.maxpool_kernel_size}, expected at most initial_crop_size, "
            f"{proto.initial_crop_size}"
        )
    return roi.RoiCrop(proto.initial_crop_size, proto.maxpool_kernel_size, proto.maxpool_stride)


BUILDERS = {
    "mask_rcnn_box_predictor": _mask_rcnn,
}
