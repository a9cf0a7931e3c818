"""The Inception, NASNet, Mask R-CNN and R-FCN rows at tiny sizes: they train, and freeze."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from od_finetune.config import pipeline
from od_finetune.config.detector import build_detector
from od_finetune.fields import TOTAL_LOSS, Batch, Detector
from od_finetune.training import optimizers, probe, schedules
from od_finetune.training.freeze import FreezePlan, FreezeRequest
from od_finetune.training.trainer import Trainer

SIDE = 96
NUM_CLASSES = 2
SSD = (
    f"model.ssd.num_classes={NUM_CLASSES}",
    f"model.ssd.image_resizer={{fixed_shape_resizer {{ height: {SIDE} width: {SIDE} }}}}",
    "model.ssd.feature_extractor.depth_multiplier=0.1",
    "model.ssd.feature_extractor.min_depth=4",
    # No hard example miner: what it picks changes from step to step.
    "model.ssd.loss={classification_loss {weighted_sigmoid {}} localization_loss {weighted_smooth_l1 {}}}",
)
FASTER_RCNN = (
    f"model.faster_rcnn.num_classes={NUM_CLASSES}",
    f"model.faster_rcnn.image_resizer={{fixed_shape_resizer {{ height: {SIDE} width: {SIDE} }}}}",
    "model.faster_rcnn.first_stage_max_proposals=8",
    "model.faster_rcnn.first_stage_minibatch_size=4096",  # nothing is left to chance
    "model.faster_rcnn.second_stage_batch_size=8",
)
SMALL_CROPS = ("model.faster_rcnn.initial_crop_size=5",)
MASKS = "model.faster_rcnn.second_stage_box_predictor.mask_rcnn_box_predictor"
SMALL_MASKS = (f"{MASKS}.mask_height=5", f"{MASKS}.mask_width=5", f"{MASKS}.mask_prediction_conv_depth=8")
ROWS = {
    "ssd_inception_v2": ("tf1/ssd_inception_v2_coco", SSD),
    "ssd_inception_v3": ("tf1/ssd_inception_v2_coco", (*SSD, "model.ssd.feature_extractor.type=ssd_inception_v3")),
    "faster_rcnn_inception_v2": ("tf1/faster_rcnn_inception_v2_coco", FASTER_RCNN),
    "faster_rcnn_inception_resnet_v2": (
        "tf1/faster_rcnn_inception_resnet_v2_atrous_coco",
        (*FASTER_RCNN, *SMALL_CROPS),
    ),
    "faster_rcnn_nas": ("tf1/faster_rcnn_nas_coco", (*FASTER_RCNN, *SMALL_CROPS)),
    "mask_rcnn_inception_v2": ("tf1/mask_rcnn_inception_v2_coco", (*FASTER_RCNN, *SMALL_MASKS)),
    "mask_rcnn_inception_resnet_v2_keras": (
        "tf2/mask_rcnn_inception_resnet_v2_1024x1024_coco17_gpu-8",
        (*FASTER_RCNN, *SMALL_CROPS, *SMALL_MASKS),
    ),
    "rfcn": (
        "tf1/rfcn_resnet101_coco",
        (*FASTER_RCNN, "model.faster_rcnn.feature_extractor.type=faster_rcnn_resnet50"),
    ),
}


def build(shared: Path, row: str) -> Detector:
    tf_keras.utils.set_random_seed(0)
    name, overrides = ROWS[row]
    detector = build_detector(pipeline.load(shared / "reference" / "configs" / f"{name}.config", overrides).model)
    detector.build()
    return detector


def batch_of(row: str) -> Batch:
    """Two images of noise; masks are the upper half of each box."""
    batch = probe.random_batch(2, (SIDE, SIDE), NUM_CLASSES, max_boxes=3)
    if not row.startswith("mask_rcnn"):
        return batch
    boxes = np.array(batch.groundtruth.boxes)
    masks = np.zeros([*boxes.shape[:2], SIDE, SIDE], np.uint8)
    for index in np.ndindex(boxes.shape[:2]):
        ymin, xmin, ymax, xmax = np.round(boxes[index] * SIDE).astype(int)
        masks[index][ymin : (ymin + ymax) // 2, xmin:xmax] = 1
    return batch._replace(groundtruth=batch.groundtruth._replace(masks=tf.constant(masks)))


def mean_losses(trainer: Trainer, steps: int) -> dict[str, float]:
    trainer.reset_means()
    return {name: float(value) for name, value in trainer.train(tf.constant(steps)).items()}


@pytest.mark.slow
@pytest.mark.by_turns
@pytest.mark.parametrize("row", ROWS)
def test_a_row_trains_and_freezes(shared, row):
    detector = build(shared, row)
    frozen = FreezePlan.compute(detector, FreezeRequest(freeze=("feature_extractor",)))
    parts = {detector.part(name) for name in frozen.trainable}
    assert "backbone" not in parts and "head" in parts

    dataset = tf.data.Dataset.from_tensors(batch_of(row)).repeat()
    plan = FreezePlan.compute(detector, FreezeRequest())
    assert any(detector.part(name) == "backbone" for name in plan.trainable)
    trainer = Trainer(detector, plan, optimizers.Adam(schedules.constant(3e-4)), dataset)
    first, _, last = (mean_losses(trainer, steps) for steps in (2, 6, 2))  # a loss that is not finite raises
    assert last[TOTAL_LOSS] < first[TOTAL_LOSS]
    assert ("Loss/BoxClassifierLoss/mask_loss" in first) == row.startswith("mask_rcnn")


@pytest.mark.slow
@pytest.mark.by_turns
def test_masks_are_within_boxes(shared):
    """Of detections: probabilities, one small picture each."""
    detector = build(shared, "mask_rcnn_inception_v2")

    @tf.function(autograph=False)
    def detect(images):
        inputs, true_shapes = detector.preprocess(images)
        return detector.postprocess(detector.predict(inputs, true_shapes), true_shapes)

    detections = detect(tf.zeros([1, SIDE, SIDE, 3]))
    assert detections.masks.shape == (*detections.scores.shape, 5, 5)
    assert 0.0 <= float(tf.reduce_min(detections.masks)) <= float(tf.reduce_max(detections.masks)) <= 1.0
