"""second_stage_box_predictor -> masks and R-FCN, and the errors on the way."""

from __future__ import annotations

import pytest
from google.protobuf import text_format

from od_finetune.config.faster_rcnn import build_boxes
from od_finetune.config.roi_heads import build_second_stage
from od_finetune.config.two_stage_extractors import TABLE, build_extractor
from od_finetune.errors import UserError
from od_finetune.models.heads import mask, rfcn
from od_finetune.protos import faster_rcnn_pb2

FC = "fc_hyperparams { op: FC }"


def message(text: str, kind: str = "faster_rcnn_inception_v2") -> faster_rcnn_pb2.FasterRcnn:
    proto = text_format.Parse(text, faster_rcnn_pb2.FasterRcnn(num_classes=3, initial_crop_size=7))
    proto.maxpool_kernel_size = proto.maxpool_stride = 1
    proto.feature_extractor.type = kind
    return proto


def second_stage(text: str, **arguments: str):
    proto = message(text, **arguments)
    return build_second_stage(proto, build_extractor(proto.feature_extractor))


def predictor(text: str, stages: int = 3) -> str:
    return f"number_of_stages: {stages} second_stage_box_predictor {{ {text} }}"


def masks(text: str, stages: int = 3) -> str:
    return predictor(f"mask_rcnn_box_predictor {{ {FC} {text} }}", stages)


def test_masks_are_the_third_stage():
    built = second_stage(masks("predict_instance_masks: true mask_prediction_num_conv_layers: 3"))
    assert isinstance(built.module.mask_head, mask.MaskHead)
    assert any("MaskPredictor_conv2d_1" in name for _, name in built.rules)
    assert second_stage(masks("", stages=2)).module.mask_head is None


@pytest.mark.parametrize(("text", "stages", "said"), [("predict_instance_masks: true", 2, "true"), ("", 3, "false")])
def test_a_third_stage_and_masks_need_each_other(text, stages, said):
    with pytest.raises(UserError, match=rf"number_of_stages: found {stages}, but .*predict_instance_masks: {said}"):
        second_stage(masks(text, stages))


def test_masks_have_a_size():
    with pytest.raises(UserError, match="mask_width: found 0, expected at least 1"):
        second_stage(masks("predict_instance_masks: true mask_width: 0"))


def test_rfcn():
    built = second_stage(predictor("rfcn_box_predictor { depth: 8 crop_height: 6 num_spatial_bins_height: 2 }", 2))
    assert isinstance(built.module, rfcn.RfcnClassifier) and built.module.mask_head is None


@pytest.mark.parametrize(
    ("text", "stages", "problem"),
    [
        ("crop_width: 10", 2, "crop_width: found 10, expected a multiple of num_spatial_bins_width, 3"),
        ("num_spatial_bins_height: 0", 2, "crop_height: found 12"),
        ("box_code_size: 5", 2, "box_code_size: found 5, expected 4"),
        ("", 3, "found 3, but rfcn_box_predictor has no masks"),
    ],
)
def test_rfcns_that_cannot_be(text, stages, problem):
    with pytest.raises(UserError, match=problem):
        second_stage(predictor(f"rfcn_box_predictor {{ {text} }}", stages))


def test_how_much_masks_weigh():
    text = masks("predict_instance_masks: true") + " second_stage_mask_prediction_loss_weight: 4.0 "
    text += "first_stage_anchor_generator { grid_anchor_generator { scales: 1.0 aspect_ratios: 1.0 } }"
    assert build_boxes(message(text)).mask_loss.weight == 4.0


@pytest.mark.parametrize("kind", ["faster_rcnn_inception_v2", "faster_rcnn_nas"])
def test_these_have_one_stride(kind):
    assert TABLE[kind].strides == (16,)
    proto = message("", kind=kind)
    proto.feature_extractor.first_stage_features_stride = 8
    with pytest.raises(UserError, match="first_stage_features_stride: found 8, expected 16"):
        build_extractor(proto.feature_extractor)
