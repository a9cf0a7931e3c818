"""faster_rcnn message -> detector, and the errors on the way."""

from __future__ import annotations

import pytest
import two_stage
from google.protobuf import text_format

from od_finetune.config import lint, lint_deep
from od_finetune.config.faster_rcnn import build_regions_postprocess
from od_finetune.config.kinds import KINDS, model_of
from od_finetune.config.lint_checks import _RANGES
from od_finetune.config.lint_parts import PARTS
from od_finetune.errors import UserError
from od_finetune.protos.faster_rcnn_pb2 import FasterRcnn
from od_finetune.protos.pipeline_pb2 import TrainEvalPipelineConfig

STANDARD = "mask_rcnn_box_predictor"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_classes", 0, "num_classes: found 0"),
        ("number_of_stages", 4, "number_of_stages: found 4, expected 1, 2 or 3"),
        ("feature_extractor", 'type: "faster_rcnn_resnet34"', "type: found 'faster_rcnn_resnet34', expected one of"),
        ("feature_extractor", "first_stage_features_stride: 12", "stride: found 12, expected 8 or 16"),
        ("feature_extractor", "fpn { }", "faster_rcnn_resnet50 has no feature pyramid"),
        ("feature_extractor", "pad_to_multiple: 32", "does not pad its images"),
        ("feature_extractor", "conv_hyperparams { }", "set it, or remove conv_hyperparams"),
        ("feature_extractor", "override_base_feature_extractor_hyperparams: true", "there are no conv_hyperparams"),
        ("first_stage_anchor_generator", "ssd_anchor_generator { num_layers: 1 }", "whose anchors are relative to the"),
        ("first_stage_anchor_generator", "multiscale_anchor_generator { aspect_ratios: 1 }", "makes anchors for 5"),
        ("first_stage_max_proposals", 0, "first_stage_max_proposals: found 0"),
        ("first_stage_nms_iou_threshold", 1.5, "first_stage_nms_iou_threshold: found 1.5"),
        ("first_stage_minibatch_size", 0, "first_stage_minibatch_size: found 0"),
        ("second_stage_balance_fraction", 2.0, "second_stage_balance_fraction: found 2"),
        ("initial_crop_size", 0, "initial_crop_size: found 0"),
        ("maxpool_kernel_size", 5, "maxpool_kernel_size: found 5, expected at most initial_crop_size, 4"),
        ("second_stage_box_predictor", "convolutional_box_predictor { }", "found convolutional_box_predictor"),
        ("second_stage_box_predictor", f"{STANDARD} {{ box_code_size: 5 }}", "box_code_size: found 5, expected 4"),
        ("second_stage_box_predictor", f"{STANDARD} {{ fc_hyperparams {{ op: CONV }} }}", "op: found CONV"),
        ("second_stage_box_predictor", f"{STANDARD} {{ fc_hyperparams {{ batch_norm {{ }} }} }}", "have no norm"),
        ("second_stage_classification_loss", "bootstrapped_sigmoid { alpha: 1 }", "found bootstrapped_sigmoid"),
    ],
)
def test_what_cannot_be(field, value, message):
    with pytest.raises(UserError, match=message):
        two_stage.tiny(**{field: value})


def config(**model: object) -> TrainEvalPipelineConfig:
    text = f"model {{ faster_rcnn {{ {two_stage.TEXT} }} }}"
    parsed = text_format.Parse(text, TrainEvalPipelineConfig())
    for name, value in model.items():
        setattr(parsed.model.faster_rcnn, name, value)
    return parsed


def test_lint_finds_several_errors_at_once():
    found = lint.lint(config(maxpool_stride=0, first_stage_max_proposals=0, first_stage_minibatch_size=0), use=())
    errors = {finding.path for finding in found if finding.severity == lint.ERROR}
    assert errors == {f"model.faster_rcnn.{name}" for name in (
        "maxpool_stride", "first_stage_max_proposals", "first_stage_minibatch_size")}  # fmt: skip


def test_lint_has_nothing_against_a_sound_model():
    assert [finding.text() for finding in lint.lint(config(), use=()) if finding.severity == lint.ERROR] == []


@pytest.mark.parametrize(
    ("activation", "warned"), [("RELU", True), ("RELU_6", False), ("SWISH", True), ("NONE", True)]
)
def test_the_activation_of_the_region_proposal_network_is_what_it_is(activation, warned):
    asking = config()
    text = f"activation: {activation}"
    text_format.Merge(text, asking.model.faster_rcnn.first_stage_box_predictor_conv_hyperparams)
    found = [finding for finding in lint.lint(asking, use=(), deep=False) if finding.severity == lint.WARNING]
    assert len(found) == warned
    if warned:
        assert found[0].path.endswith("box_predictor_conv_hyperparams.activation")
        assert f"{activation} has no effect" in found[0].message and "has RELU_6" in found[0].message


def test_a_context_bank_that_is_not_read_is_warned_of():
    asking = config()
    asking.model.faster_rcnn.context_config.SetInParent()
    asking.train_input_reader.SetInParent()
    path = "train_input_reader.load_context_features"
    found = [finding for finding in lint.lint(asking, use=("train",)) if finding.path == path]
    assert [finding.severity for finding in found] == [lint.WARNING] and "an empty bank" in found[0].message
    asking.train_input_reader.load_context_features = True
    assert not [finding for finding in lint.lint(asking, use=("train",)) if finding.path == path]


def test_a_context_bank_is_read_for_a_model_that_looks_at_it_only():
    asking = config()
    asking.model.faster_rcnn.context_config.SetInParent()
    asking.train_input_reader.load_context_features = True
    asking.eval_input_reader.add().load_context_features = True
    use, refused = ("train", "eval"), "nothing that looks at them"
    assert not [each for each in lint_deep.errors(asking, [], use) if refused in each.message]
    asking.model.faster_rcnn.ClearField("context_config")
    found = [each for each in lint_deep.errors(asking, [], use) if refused in each.message]
    paths = [f"{reader}.load_context_features" for reader in ("train_input_reader", "eval_input_reader[0]")]
    assert found and {each.path for each in found} <= set(paths)


def test_every_kind_of_model_is_in_each_table():
    assert set(KINDS) == set(PARTS) == set(_RANGES)


def test_what_is_asked_about_any_model():
    model = model_of(config())
    assert model.path == "model.faster_rcnn" and model.feature_extractor.type == two_stage.KIND
    assert model.has_softmax and not model.predicts_probabilities and not model.kind.dense
    sigmoid = config()
    sigmoid.model.faster_rcnn.second_stage_classification_loss.weighted_sigmoid.SetInParent()
    assert not model_of(sigmoid).has_softmax
    with pytest.raises(UserError, match="model: found nothing"):
        model_of(TrainEvalPipelineConfig())


@pytest.mark.parametrize("asked", ["true", "false"])
def test_detections_are_relative_to_the_image_whatever_is_asked_for(asked):
    proto = text_format.Parse(two_stage.TEXT, FasterRcnn())
    asked_for = f"batch_non_max_suppression {{ change_coordinate_frame: {asked} }}"
    text_format.Merge(asked_for, proto.second_stage_post_processing)
    assert build_regions_postprocess(proto).nms.options.change_coordinate_frame
    assert proto.second_stage_post_processing.batch_non_max_suppression.change_coordinate_frame == (asked == "true")
