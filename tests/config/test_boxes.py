from __future__ import annotations

import re

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format

from od_finetune.boxes import anchors, coders, losses, matching, sampling, similarity
from od_finetune.config import boxes
from od_finetune.errors import UserError
from od_finetune.protos import (
    anchor_generator_pb2,
    box_coder_pb2,
    losses_pb2,
    matcher_pb2,
    pipeline_pb2,
    post_processing_pb2,
    region_similarity_calculator_pb2,
    ssd_pb2,
)

GOLDENS = ["tf1_ssd_mobilenet_v2_coco", "tf1_ssd_mobilenet_v2_fullyconv_coco", "tf1_ssdlite_mobilenet_v2_coco",
           "tf1_embedded_ssd_mobilenet_v1_coco", "tf1_facessd_mobilenet_v2_quantized_320x320_open_image_v4",
           "tf1_ssd_mobilenet_v1_ppn_shared_box_predictor_300x300_coco14_sync",
           "tf1_ssd_resnet50_v1_fpn_shared_box_predictor_640x640_coco14_sync",
           "tf2_ssd_efficientdet_d0_512x512_coco17_tpu-8", "tf2_ssd_mobilenet_v2_320x320_coco17_tpu-8",
           "tf2_ssd_mobilenet_v2_fpnlite_320x320_coco17_tpu-8"]


@pytest.mark.parametrize("name", GOLDENS)
def test_anchors_equal_the_recorded_ones(shared, name):
    folder = shared / "reference/goldens" / name
    config = text_format.Parse((folder / "pipeline.config").read_text(), pipeline_pb2.TrainEvalPipelineConfig())
    golden = np.load(folder / "outputs.npz")
    keys = sorted((key for key in golden if re.fullmatch(r"pred/feature_maps/\d+@shape", key)),
                  key=lambda key: int(re.search(r"\d+", key).group()))
    shapes = [tuple(golden[key][1:3].tolist()) for key in keys]
    generator = boxes.build_anchor_generator(config.model.ssd.anchor_generator)
    ours = generator(shapes, tuple(golden["preprocessed_inputs@shape"][1:3].tolist())).numpy()
    assert ours.shape == tuple(golden["anchors@shape"])
    assert len(ours) == sum(n * h * w for n, (h, w) in zip(generator.num_anchors_per_location(), shapes, strict=True))
    sampled = ours[golden["anchors@rows"]][:, golden["anchors@cols"]]
    np.testing.assert_allclose(sampled, golden["anchors@values"], atol=1e-5)


def test_every_published_ssd_config_builds(shared):
    built = 0
    for path in sorted((shared / "reference/configs").glob("*/*.config")):
        ssd = text_format.Parse(path.read_text(), pipeline_pb2.TrainEvalPipelineConfig()).model.ssd
        if not ssd.HasField("loss"):
            continue
        boxes.build_anchor_generator(ssd.anchor_generator)
        boxes.build_target_assigner(ssd)
        boxes.build_losses(ssd.loss)
        boxes.build_loss_options(ssd)
        boxes.build_postprocess(ssd.post_processing)
        built += 1
    assert built > 10


def anchor_generator(text):
    return boxes.build_anchor_generator(text_format.Parse(text, anchor_generator_pb2.AnchorGenerator()))


@pytest.mark.parametrize(("text", "kind", "numbers"), [
    ("ssd_anchor_generator { num_layers: 2 aspect_ratios: [1, 2] }", anchors.SsdAnchors, [3, 3]),
    ("ssd_anchor_generator { num_layers: 1 scales: 0.5 aspect_ratios: 1 reduce_boxes_in_lowest_layer: false "
     "interpolated_scale_aspect_ratio: 0 }", anchors.SsdAnchors, [1]),
    ("grid_anchor_generator { scales: [1, 2] aspect_ratios: [1, 2, 3] }", anchors.GridAnchors, [6]),
    ("multiscale_anchor_generator { aspect_ratios: [1, 2] }", anchors.MultiscaleAnchors, [4] * 5),
    ("flexible_grid_anchor_generator { anchor_grid { base_sizes: [8, 9] aspect_ratios: [1, 2] height_stride: 4 "
     "width_stride: 4 } }", anchors.FlexibleGridAnchors, [2]),
])
def test_every_anchor_generator(text, kind, numbers):
    generator = anchor_generator(text)
    assert isinstance(generator, kind) and generator.num_anchors_per_location() == numbers


@pytest.mark.parametrize(("text", "field"), [
    ("", "anchor_generator is empty.*ssd_anchor_generator"),
    ("ssd_anchor_generator { height_stride: 16 }", "1 height_stride but 0 width_stride"),
    ("ssd_anchor_generator { height_stride: 16 width_stride: 16 }", "1 strides for 6 layers"),
    ("ssd_anchor_generator { scales: [0.1, 0.2] }", "2 scales for num_layers 6"),
    ("grid_anchor_generator { scales: 1 }", "grid_anchor_generator.aspect_ratios is empty"),
    ("multiscale_anchor_generator { }", "multiscale_anchor_generator.aspect_ratios is empty"),
    ("flexible_grid_anchor_generator { anchor_grid { base_sizes: 8 } }", r"anchor_grid\[0\]: 1 base_sizes but 0"),
])
def test_impossible_anchors_name_the_field(text, field):
    with pytest.raises(UserError, match=field):
        anchor_generator(text)


@pytest.mark.parametrize(("text", "kind", "size"), [
    ("faster_rcnn_box_coder { y_scale: 1 x_scale: 1 }", coders.FasterRcnnCoder, 4),
    ("mean_stddev_box_coder { stddev: 0.5 }", coders.MeanStddevCoder, 4),
    ("square_box_coder { }", coders.SquareCoder, 3),
    ("keypoint_box_coder { num_keypoints: 3 }", coders.KeypointCoder, 10),
])
def test_every_box_coder(text, kind, size):
    coder = boxes.build_box_coder(text_format.Parse(text, box_coder_pb2.BoxCoder()))
    assert isinstance(coder, kind) and coder.code_size == size


def test_box_coder_scales_arrive():
    text = "faster_rcnn_box_coder { y_scale: 1 x_scale: 2 height_scale: 3 width_scale: 4 }"
    coder = boxes.build_box_coder(text_format.Parse(text, box_coder_pb2.BoxCoder()))
    code = coder.encode(np.array([[1, 1, 3, 3]], np.float32), np.array([[0, 0, 1, 1]], np.float32))
    np.testing.assert_allclose(code, [[1.5, 3, 3 * np.log(2), 4 * np.log(2)]], rtol=1e-5)


def test_keypoints_must_be_counted():
    with pytest.raises(UserError, match="num_keypoints"):
        boxes.build_box_coder(text_format.Parse("keypoint_box_coder { }", box_coder_pb2.BoxCoder()))


def matcher(text):
    return boxes.build_matcher(text_format.Parse(text, matcher_pb2.Matcher()))


def test_every_matcher():
    similar, valid = tf.constant([[[0.2, 0.4, 0.6]]]), tf.constant([[True]])
    assert isinstance(matcher("bipartite_matcher { }"), matching.BipartiteMatcher)
    for text, expected in [("", [-1, -1, 0]), ("unmatched_threshold: 0.3", [-1, -2, 0]),
                           ("unmatched_threshold: 0.3 negatives_lower_than_unmatched: false", [-2, -1, 0]),
                           ("matched_threshold: 0.7", [-1, -1, -2]), ("ignore_thresholds: true", [0, 0, 0]),
                           ("matched_threshold: 0.7 force_match_for_each_row: true", [-1, -1, 0])]:
        assert matcher(f"argmax_matcher {{ {text} }}")(similar, valid).numpy().tolist() == [expected], text


def test_contradicting_matcher_thresholds():
    with pytest.raises(UserError, match="argmax_matcher: unmatched_threshold"):
        matcher("argmax_matcher { matched_threshold: 0.3 }")


def test_every_similarity():
    def build(text):
        return boxes.build_similarity(
            text_format.Parse(text, region_similarity_calculator_pb2.RegionSimilarityCalculator()))

    assert build("iou_similarity { }") is similarity.iou_similarity
    assert build("ioa_similarity { }") is similarity.ioa_similarity
    assert build("neg_sq_dist_similarity { }") is similarity.neg_sq_dist_similarity
    box = tf.constant([[[0, 0, 1, 1]]], tf.float32)
    assert build("thresholded_iou_similarity { iou_threshold: 0.9 }")(box, 0.8 * box[0]).numpy() == 0.0
    assert build("thresholded_iou_similarity { }")(box, 0.8 * box[0]).numpy() == 1.0
    with pytest.raises(UserError, match="similarity_calculator is empty"):
        build("")


@pytest.mark.parametrize("field", list(losses_pb2.LocalizationLoss.DESCRIPTOR.fields), ids=lambda f: f.name)
def test_every_localization_loss(field):
    loss = boxes.build_localization_loss(losses_pb2.LocalizationLoss(**{field.name: {}}))
    box = tf.constant([[[0, 0, 1, 1]]], tf.float32)
    assert loss(box, box, tf.ones([1, 1])).numpy().tolist() == [[0.0]]
    assert loss(box, 2 * box, tf.ones([1, 1])).numpy() > 0.0


@pytest.mark.parametrize("field", list(losses_pb2.ClassificationLoss.DESCRIPTOR.fields), ids=lambda f: f.name)
def test_every_classification_loss(field):
    loss = boxes.build_classification_loss(losses_pb2.ClassificationLoss(**{field.name: {}}))
    logits, targets = tf.constant([[[3.0, -3.0]]]), tf.constant([[[1.0, 0.0]]])
    good, bad = (tf.reduce_sum(loss(x, targets, tf.ones([1, 1, 2]))).numpy() for x in (logits, -logits))
    # With alpha 0, the default of its message, bootstrapping does not listen to the targets at all.
    assert good == pytest.approx(bad) if field.name == "bootstrapped_sigmoid" else good < bad


def loss_parts(text):
    base = "localization_loss { weighted_smooth_l1 { } } "
    if "classification_loss" not in text:
        base += "classification_loss { weighted_sigmoid { } } "
    return boxes.build_losses(text_format.Parse(base + text, losses_pb2.Loss()))


def test_loss_parts():
    parts = loss_parts("classification_weight: 2 localization_weight: 3")
    assert (parts.classification_weight, parts.localization_weight) == (2.0, 3.0)
    assert isinstance(parts.localization, losses.SmoothL1LocalizationLoss)
    assert (parts.miner, parts.sampler, parts.expected_weights) == (None, None, None)
    parts = loss_parts("random_example_sampler { } expected_loss_weights: EXPECTED_SAMPLING")
    assert isinstance(parts.sampler, sampling.RandomExampleSampler)
    assert type(parts.expected_weights) is sampling.ExpectedSampling
    parts = loss_parts("expected_loss_weights: REWEIGHTING_UNMATCHED_ANCHORS")
    assert type(parts.expected_weights) is sampling.ReweightUnmatched


def test_miner_options_arrive():
    def mined(text):
        miner = loss_parts(f"hard_example_miner {{ {text} }}").miner
        box = tf.constant([[[0, 0, 1, 1], [0, 0, 1, 0.8], [2, 2, 3, 3]]], tf.float32)
        return miner(tf.constant([[1.0, 3, 0]]), tf.constant([[2.0, 1, 9]]), box, tf.constant([[0, -1, -1]])).numpy()[0]

    assert mined("").tolist() == [0, 1, 1]  # IoU 0.8 is above the default of 0.7
    assert mined("iou_threshold: 0.9").tolist() == [1, 1, 1]
    assert mined("iou_threshold: 0.9 max_negatives_per_positive: 1").tolist() == [1, 0, 1]
    assert mined("num_hard_examples: 1 loss_type: LOCALIZATION").tolist() == [0, 1, 0]
    assert mined("num_hard_examples: 0 iou_threshold: 0.9 loss_type: CLASSIFICATION").tolist() == [1, 1, 1]


@pytest.mark.parametrize(("text", "field"), [
    ("equalization_loss { weight: 1 }", "equalization_loss.weight"),
    ("hard_example_miner { } classification_loss { weighted_sigmoid_focal { } }", "hard_example_miner cannot"),
    ("classification_loss { weighted_dice_classification_loss { } }", "dice"),
    ("random_example_sampler { positive_sample_fraction: 0 }", "positive_sample_fraction"),
    ("classification_loss { }", "classification_loss is empty.*weighted_sigmoid_focal"),
])
def test_losses_that_cannot_be(text, field):
    with pytest.raises(UserError, match=field):
        loss_parts(text)


@pytest.mark.parametrize(("text", "expected"), [
    ("num_classes: 2", [1, 0, 0]),
    ("num_classes: 2 encode_background_as_zeros: true", [0, 0, 0]),
    ("num_classes: 2 add_background_class: false", [1, 0]),
    ("num_classes: 2 add_background_class: false explicit_background_class: true", [1, 0]),
])
def test_unmatched_class_target(text, expected):
    assert boxes.unmatched_class_target(text_format.Parse(text, ssd_pb2.Ssd())) == expected


def test_background_is_added_or_explicit_not_both():
    with pytest.raises(UserError, match="explicit_background_class"):
        boxes.unmatched_class_target(ssd_pb2.Ssd(explicit_background_class=True))
    assert boxes.has_background(ssd_pb2.Ssd())
    assert not boxes.has_background(ssd_pb2.Ssd(add_background_class=False))


def converter(text):
    return boxes.build_score_converter(text_format.Parse(text, post_processing_pb2.PostProcessing()))


@pytest.mark.parametrize(("text", "expected"), [
    ("", [0.0, 2.0]),
    ("score_converter: SIGMOID", [0.5, 0.8808]),
    ("score_converter: SOFTMAX logit_scale: 2", [0.2689, 0.7311]),
    ("score_converter: SIGMOID calibration_config { temperature_scaling_calibration { scaler: 2 } }", [0.5, 0.7311]),
    ("score_converter: SIGMOID calibration_config { sigmoid_calibration { sigmoid_parameters { a: 0 } } }", [0.5, 0.5]),
    ("score_converter: SIGMOID calibration_config { class_id_sigmoid_calibrations { class_id_sigmoid_parameters_map { "
     "key: 1 value { a: 0 } } } }", [0.5, 0.5]),
    ("calibration_config { function_approximation { x_y_pairs { x_y_pair { x: 0 y: 0.1 } "
     "x_y_pair { x: 4 y: 0.9 } } } }", [0.1, 0.5]),
    ("calibration_config { class_id_function_approximations { class_id_xy_pairs_map { key: 1 value { "
     "x_y_pair { x: 0 y: 0.1 } x_y_pair { x: 4 y: 0.9 } } } } }", [0.0, 0.5]),
])
def test_every_score_converter_and_calibration(text, expected):
    np.testing.assert_allclose(converter(text)(tf.constant([[0.0, 2.0]])), [expected], atol=1e-4)


def test_nms_options_carry_every_field_of_the_message():
    message = post_processing_pb2.BatchNonMaxSuppression
    nms = boxes.build_nms(message(score_threshold=0.25, max_total_detections=7, max_detections_per_class=6))
    assert set(nms.options._fields) == set(message.DESCRIPTOR.fields_by_name)
    assert (nms.options.score_threshold, nms.options.max_total_detections) == (0.25, 7)
    assert nms.options.change_coordinate_frame
    with pytest.raises(UserError, match="max_detections_per_class"):
        boxes.build_nms(message(max_total_detections=7))
