"""Faster R-CNN at a tiny width: it builds, trains, freezes and names its variables."""

from __future__ import annotations

import batches
import numpy as np
import pytest
import tensorflow as tf
import two_stage

from od_finetune import fields, randomness
from od_finetune.boxes import two_stage_loss
from od_finetune.errors import UserError
from od_finetune.fields import ClassLayout
from od_finetune.models.detectors import faster_rcnn as names
from od_finetune.models.detectors.faster_rcnn import FasterRCNN
from od_finetune.training import optimizers, schedules
from od_finetune.training.freeze import FreezePlan, FreezeRequest
from od_finetune.training.trainer import Trainer, TrainerSettings

IMAGES = np.random.RandomState(0).randint(0, 256, (2, 48, 80, 3)).astype(np.uint8)
LOSSES = {
    two_stage_loss.RPN_LOCALIZATION,
    two_stage_loss.RPN_OBJECTNESS,
    two_stage_loss.ROI_LOCALIZATION,
    two_stage_loss.ROI_CLASSIFICATION,
}


@pytest.fixture(scope="module")
def detector() -> FasterRCNN:
    return two_stage.tiny()


def predict(detector: FasterRCNN, training: bool = False) -> dict:
    return detector.predict(*detector.preprocess(tf.convert_to_tensor(IMAGES)), training=training)


def batch(detector: FasterRCNN) -> fields.Batch:
    images = tf.convert_to_tensor(np.random.RandomState(1).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32))
    text = tf.constant(["a", "b"])
    shapes = tf.constant([[64, 64, 3], [48, 56, 3]])
    return fields.Batch(images, shapes, batches.two_objects(), text, text, shapes[:, :2])


def trainer(detector: FasterRCNN, freeze: tuple[str, ...] = ()) -> Trainer:
    detector.build()
    plan = FreezePlan.compute(detector, FreezeRequest(freeze=freeze))
    return Trainer(
        detector, plan, optimizers.Momentum(schedules.constant(0.01), 0.9), settings=TrainerSettings(clip_norm=5.0)
    )


def test_inference(detector):
    predictions = predict(detector)
    shapes = {name: value.shape for name, value in predictions.items() if tf.is_tensor(value)}
    assert shapes[names.RPN_ENCODINGS] == (2, 32, 4) and shapes[names.OBJECTNESS] == (2, 32, 2)
    assert shapes[fields.ANCHORS] == (32, 4) and shapes[names.PROPOSALS] == (2, 6, 4)
    assert shapes[names.REFINED_ENCODINGS] == (12, 2, 4) and shapes[fields.CLASS_PREDICTIONS] == (12, 3)
    assert shapes[names.CLASSIFIER_FEATURES] == (12, 2, 2, 128)
    detections = detector.postprocess(predictions, tf.constant([[64, 64, 3]] * 2))
    assert detections.boxes.shape == (2, 5, 4) and detections.raw_scores.shape == (2, 6, 3)
    assert np.all(detections.boxes >= 0) and np.all(detections.boxes <= 1)
    assert set(detector.losses(predictions, batches.two_objects())) == LOSSES


@pytest.mark.slow
def test_a_batch_of_different_sizes_is_filled_up_with_what_is_zero_to_the_network():
    resizer = "keep_aspect_ratio_resizer { min_dimension: 32 max_dimension: 64 }"
    detector = two_stage.tiny(image_resizer=resizer)
    sizes = (30, 60, 3), (60, 30, 3)
    photographs = [np.random.RandomState(0).uniform(0, 255, size).astype(np.float32) for size in sizes]
    dataset = tf.data.Dataset.from_generator(lambda: photographs, output_signature=tf.TensorSpec([None, None, 3]))
    images, shapes = next(iter(dataset.map(detector.resize).padded_batch(2)))
    assert images.shape == (2, 64, 64, 3) and shapes.numpy().tolist() == [[32, 64, 3], [64, 32, 3]]

    @tf.function(autograph=False)
    def raw(inputs: tf.Tensor, shapes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        predictions = detector.predict(inputs, shapes)
        return predictions[names.RPN_ENCODINGS], predictions[names.OBJECTNESS]

    together = raw(detector.normalize(images, shapes), shapes)
    for index, margins in enumerate(([[0, 32], [0, 0], [0, 0]], [[0, 0], [0, 32], [0, 0]])):
        height, width, _ = shapes[index]
        alone = tf.pad(detector.normalize(images[index, :height, :width]), margins)[None]
        for found, expected in zip(together, raw(alone, shapes[index : index + 1]), strict=True):
            np.testing.assert_allclose(found[index], expected[0], rtol=1e-4, atol=1e-5)


def test_boxes_are_relative_to_the_true_part(detector):
    inputs, _ = detector.preprocess(tf.convert_to_tensor(IMAGES))
    predictions = detector.predict(inputs, tf.constant([[64, 64, 3], [32, 48, 3]]))
    limits = np.array([[64, 64], [32, 48]])
    proposed = predictions[names.PROPOSALS].numpy()
    assert np.all(proposed[..., 2:] <= limits[:, np.newaxis])
    unmoved = predictions | {names.REFINED_ENCODINGS: tf.zeros_like(predictions[names.REFINED_ENCODINGS])}
    detections = detector.postprocess(unmoved, None)
    assert np.all(detections.num_detections > 0)
    for image in range(2):
        found = detections.boxes[image, : int(detections.num_detections[image])] * np.tile(limits[image], 2)
        distances = np.abs(found[:, np.newaxis] - proposed[image]).max(-1)
        assert np.all(distances.min(axis=1) < 1e-3)


def test_training_leaves_the_second_stage_to_the_losses(detector):
    predictions = predict(detector, training=True)
    assert fields.CLASS_PREDICTIONS not in predictions and names.PROPOSALS in predictions
    inside = predictions[fields.ANCHORS].numpy()
    assert 0 < len(inside) < 32 and inside.min() >= 0 and inside.max() <= 64
    assert set(detector.losses(predictions, batches.two_objects())) == LOSSES


def test_anchors_may_be_clipped_instead():
    predictions = predict(two_stage.tiny(clip_anchors_to_image=True), training=True)
    assert predictions[fields.ANCHORS].shape == (32, 4) and np.max(predictions[fields.ANCHORS]) == 64


def test_hard_examples_are_mined_among_all_proposals():
    detector = two_stage.tiny(hard_example_miner="num_hard_examples: 2 iou_threshold: 0.99")
    predictions = predict(detector, training=True)
    assert predictions[fields.CLASS_PREDICTIONS].shape == (12, 3)
    mined = detector.losses(predictions, batches.two_objects())[two_stage_loss.ROI_CLASSIFICATION]
    every = two_stage.tiny().losses(predictions, batches.two_objects())[two_stage_loss.ROI_CLASSIFICATION]
    assert 0 < mined < every


def test_one_stage_detects_objects_of_any_kind():
    detector = two_stage.tiny(number_of_stages=1)
    predictions = predict(detector)
    detections = detector.postprocess(predictions, None)
    assert detections.boxes.shape == (2, 6, 4) and not np.any(detections.classes)
    assert set(detector.losses(predictions, batches.two_objects())) == {
        two_stage_loss.RPN_LOCALIZATION,
        two_stage_loss.RPN_OBJECTNESS,
    }
    assert not any(map(detector.is_class_head, detector.named_variables()))
    assert [stage.names[0] for stage in detector.stages()][-1] == "rpn"


def test_names_parts_and_stages(detector):
    variables = detector.named_variables()
    parts = {name: detector.part(name) for name in variables}
    first, second = "FirstStageFeatureExtractor/resnet_v1_50", "SecondStageFeatureExtractor/resnet_v1_50"
    assert parts[f"{first}/conv1/weights"] == parts[f"{second}/block4/unit_1/bottleneck_v1/conv1/weights"] == "backbone"
    heads = {name for name, part in parts.items() if part == "head"}
    assert {name.split("/")[0] for name in heads} == {"Conv", "FirstStageBoxPredictor", "SecondStageBoxPredictor"}
    stages = detector.stages()
    assert [variable for stage in stages for variable in stage.variables] == list(variables)
    known = {name for stage in stages for name in stage.names}
    assert {"conv1", "block3", "backbone", "rpn", "block4", "second_stage", "head"} <= known
    assert all(name.startswith((first, second)) for name in variables if name not in heads)


def test_class_rows(detector):
    scope = "SecondStageBoxPredictor"
    heads = {name for name in detector.named_variables() if detector.is_class_head(name)}
    assert heads == {f"{scope}/{kind}Predictor/{leaf}" for kind in ("BoxEncoding", "Class")
                     for leaf in ("weights", "biases")}  # fmt: skip
    assert detector.class_layout(f"{scope}/ClassPredictor/weights") == ClassLayout(1, 3, background=0)
    assert detector.class_layout(f"{scope}/BoxEncodingPredictor/biases") == ClassLayout(1, 2, width=4)
    for name in heads:
        assert detector.class_layout(name).size == detector.named_variables()[name].shape[-1]
    shared = two_stage.tiny(second_stage_box_predictor="mask_rcnn_box_predictor { share_box_across_classes: true }")
    assert predict(shared)[names.REFINED_ENCODINGS].shape == (12, 1, 4)
    assert shared.class_layout(f"{scope}/BoxEncodingPredictor/biases") is None


def test_object_graphs_are_of_two_stages(detector):
    assert "_mask_rcnn_box_predictor" in detector.tf2_objects()
    with pytest.raises(UserError, match="mask_rcnn_box_predictor only"):
        two_stage.tiny(number_of_stages=1).tf2_objects()


@pytest.mark.slow
def test_it_overfits_one_batch():
    tf.random.set_seed(0)
    detector = two_stage.tiny(second_stage_box_predictor="mask_rcnn_box_predictor { use_dropout: false }")
    training, one = trainer(detector), batch(detector)
    training.train_dataset = tf.data.Dataset.from_tensors(one).repeat()
    training.train(tf.constant(1))
    before = training.train_loop_end()[fields.TOTAL_LOSS]
    training.train(tf.constant(40))
    training.reset_means()
    training.train(tf.constant(5))
    after = training.train_loop_end()
    assert after[fields.TOTAL_LOSS] < 0.7 * before
    assert all(np.isfinite(value) for value in after.values())


def test_a_frozen_first_stage_has_no_gradient():
    detector = two_stage.tiny()
    training = trainer(detector, ("^FirstStageFeatureExtractor/",))
    traced = tf.function(training.gradients, autograph=False).get_concrete_function(batch(detector))
    _, gradients = traced.structured_outputs
    assert {name.split("/")[0] for name in gradients} == {
        "SecondStageFeatureExtractor", "Conv", "FirstStageBoxPredictor", "SecondStageBoxPredictor",
    }  # fmt: skip
    kinds = [operation.type for operation in traced.graph.get_operations()]
    assert "CropAndResize" in kinds and "CropAndResizeGradImage" not in kinds
    kernels = [name for name in gradients if name.endswith("/weights") and not name.startswith("SecondStageBoxP")]
    assert kinds.count("Conv2DBackpropFilter") == len(kernels)


def test_the_seed_decides_what_is_sampled(detector):
    def losses() -> dict:
        with randomness.step_seed(tf.constant([1, 2])):
            return detector.losses(predict(detector, training=True), batches.two_objects())

    first, second = losses(), losses()
    assert {name: float(loss) for name, loss in first.items()} == {name: float(loss) for name, loss in second.items()}
