"""Two-stage detectors against recordings of the OD API.

With random weights two things are chaotic in them, and no two builds of TensorFlow agree there:

- The region proposal network's ReLU6 cuts activations whose spread is a thousand times its range, so that the few
  values between 0 and 6 have lost most of their digits.
- Proposals whose scores differ by rounding change places or leave each other out, and a crop that ends at the very
  border of the image reads either its last row or zeros, by the rounding of a coordinate.

So of the first a tiny share may be off, and of the anchors that see them one in a hundred. Regions are compared with
the recorded ones at the same place of the image, in whatever order. All else is held to the usual tolerance.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from goldens import assert_close, assert_same_variables, assign_golden_weights, everyday, groundtruth, read_model

from od_finetune import fields
from od_finetune.boxes import two_stage_loss
from od_finetune.config.detector import build_detector
from od_finetune.config.two_stage_extractors import TABLE
from od_finetune.models.detectors import faster_rcnn as names

GOLDENS = (
    "tf1_faster_rcnn_inception_resnet_v2_atrous_coco",
    "tf1_faster_rcnn_inception_resnet_v2_atrous_cosine_lr_coco",
    "tf1_faster_rcnn_inception_resnet_v2_atrous_oid",
    "tf1_faster_rcnn_inception_resnet_v2_atrous_pets",
    "tf1_faster_rcnn_inception_v2_coco",
    "tf1_faster_rcnn_inception_v2_pets",
    "tf1_faster_rcnn_resnet50_coco",
    "tf1_faster_rcnn_resnet50_pets",
    "tf1_faster_rcnn_resnet101_atrous_coco",
    "tf1_faster_rcnn_resnet101_ava_v2.1",
    "tf1_faster_rcnn_resnet101_coco",
    "tf1_mask_rcnn_inception_v2_coco",
    "tf1_mask_rcnn_resnet50_atrous_coco",
    "tf1_rfcn_resnet101_coco",
    "tf2_faster_rcnn_resnet101_v1_1024x1024_coco17_tpu-8",
    "tf2_faster_rcnn_resnet101_v1_800x1333_coco17_gpu-8",
    "tf2_faster_rcnn_resnet152_v1_1024x1024_coco17_tpu-8",
    "tf2_faster_rcnn_resnet152_v1_640x640_coco17_tpu-8",
    "tf2_faster_rcnn_resnet50_v1_1024x1024_coco17_tpu-8",
    "tf2_faster_rcnn_resnet50_v1_640x640_coco17_tpu-8",
    "tf2_faster_rcnn_resnet50_v1_800x1333_coco17_gpu-8",
    "tf2_faster_rcnn_resnet50_v1_fpn_640x640_coco17_tpu-8",
    "tf2_mask_rcnn_inception_resnet_v2_1024x1024_coco17_gpu-8",
)
TOLERANCE = 2e-3
PIXEL = 0.5  # how far a proposal's corner may be from the recorded one's to be the same proposal


class Run(NamedTuple):
    inputs: tf.Tensor
    predictions: dict[str, Any]
    losses: dict[str, tf.Tensor]


def run_golden(detector: fields.Detector, reference: Path) -> Run:
    """What a detector makes of the golden image."""

    @tf.function(autograph=False)
    def predict(images: tf.Tensor) -> Run:
        inputs, true_shapes = detector.preprocess(images)
        predictions = detector.predict(inputs, true_shapes)
        labelled = groundtruth(detector.num_classes)
        # Recorded for boxes relative to the padded image, which ours are not. Losses of masks were not recorded.
        sides = tf.cast(tf.shape(inputs)[1:3], tf.float32) / tf.cast(true_shapes[0, :2], tf.float32)
        boxes, masks = labelled.boxes * tf.tile(sides, [2]), tf.ones([1, 3, 8, 8], tf.uint8)
        return Run(inputs, predictions, detector.losses(predictions, labelled._replace(boxes=boxes, masks=masks)))

    return predict(tf.constant(np.load(reference / "golden_image.npy")[np.newaxis]))


def test_every_golden_of_these_extractors_is_listed(shared):
    summaries = (shared / "reference" / "goldens").glob("*/summary.json")
    found = {path.parent.name for path in summaries if json.loads(path.read_text())["extractor"] in TABLE}
    assert found == set(GOLDENS)


@pytest.mark.parametrize("folder", everyday(GOLDENS, ()))
def test_golden(shared, folder):
    reference = shared / "reference"
    golden = reference / "goldens" / folder
    detector = build_detector(read_model(golden / "pipeline.config"))
    assert_same_variables(detector, golden)
    assign_golden_weights(detector, reference, folder if folder.startswith("tf2") else "")
    run = run_golden(detector, reference)

    recorded = np.load(golden / "outputs.npz")
    assert_close(recorded, "preprocessed_inputs", run.inputs, 1e-5, relative=False)
    assert_first_stage(recorded, run.predictions)
    assert_regions(recorded, run.predictions)
    if "pred/detection_masks@shape" in recorded:
        assert_masks(recorded, run.predictions)
    expected = json.loads((golden / "summary.json").read_text())["losses"]
    for name, loss in expected.items():
        # The first stage draws its negatives; everything else is the same, but for proposals that come and go.
        sampled = name == two_stage_loss.RPN_OBJECTNESS
        assert float(run.losses[name]) == pytest.approx(loss, rel=0.3 if sampled else 0.02), name


def assert_first_stage(recorded: Any, predictions: dict[str, Any]) -> None:
    """Anchors, features and raw predictions."""
    assert_close(recorded, "pred/anchors", predictions[fields.ANCHORS], 1e-5, relative=False)
    for index, features in enumerate(predictions[names.FEATURES_TO_CROP]):
        assert_close(recorded, f"pred/{names.FEATURES_TO_CROP}/{index}", features, TOLERANCE, relative=True)
    for name in (names.RPN_ENCODINGS, names.OBJECTNESS):
        assert list(predictions[name].shape) == list(recorded[f"pred/{name}@shape"])
        off = errors(recorded, f"pred/{name}", predictions[name]).max(axis=-1)
        assert np.mean(off <= TOLERANCE) > 0.99, name  # of the anchors: they see values that were cut
    for index, features in enumerate(predictions[names.RPN_FEATURES]):
        name = f"pred/{names.RPN_FEATURES}/{index}"
        assert list(features.shape) == list(recorded[f"{name}@shape"])
        assert np.mean(errors(recorded, name, features) <= TOLERANCE) > 0.999, name


def errors(recorded: Any, name: str, value: tf.Tensor, rows: np.ndarray | None = None) -> np.ndarray:
    """Differences from the recorded values in standard deviations. `rows` of `value` to compare with, if not those
    recorded."""
    rows = recorded[f"{name}@rows"] if rows is None else rows
    there = np.reshape(value, [-1, value.shape[-1]])[np.ix_(rows, recorded[f"{name}@cols"])]
    return np.abs(there - recorded[f"{name}@values"]) / recorded[f"{name}@stats"][1]


def assert_regions(recorded: Any, predictions: dict[str, Any]) -> None:
    """What the second stage says of the proposals that are there in both, which nearly all are."""
    name = f"pred/{names.PROPOSALS}"
    assert list(predictions[names.PROPOSALS].shape) == list(recorded[f"{name}@shape"])
    boxes, wanted = predictions[names.PROPOSALS][0].numpy(), recorded[f"{name}@values"]
    distances = np.abs(boxes - wanted[:, np.newaxis]).max(-1)  # [recorded, ours]
    # Padding and duplicates: of several at one place the one at the same position.
    nearest = np.where(distances[range(len(wanted)), recorded[f"{name}@rows"]] <= PIXEL, recorded[f"{name}@rows"],
                       distances.argmin(axis=1))  # fmt: skip
    same = distances[range(len(wanted)), nearest] <= PIXEL
    assert np.mean(same) > 0.9
    height, width = predictions[names.IMAGE_SHAPE].numpy()
    inner = same & (wanted[:, 2] < height - 1e-3) & (wanted[:, 3] < width - 1e-3)
    for name in (names.REFINED_ENCODINGS, fields.CLASS_PREDICTIONS):
        per_box = predictions[name].shape[1] if predictions[name].shape.rank == 3 else 1
        assert_same_regions(recorded, name, predictions[name], per_box, nearest, same, inner)


def assert_masks(recorded: Any, predictions: dict[str, Any]) -> None:
    """Of the final boxes, each at its place."""
    masks = {names.MASK_PREDICTIONS: predictions[names.MASK_PREDICTIONS],
             "detection_masks": predictions[names.DETECTIONS].masks}  # fmt: skip
    for name, value in masks.items():
        assert list(value.shape) == list(recorded[f"pred/{name}@shape"])
        assert np.mean(errors(recorded, f"pred/{name}", value) <= TOLERANCE) > 0.9, name


def assert_same_regions(
    recorded: Any, name: str, value: tf.Tensor, per_box: int, nearest: np.ndarray, same: np.ndarray, inner: np.ndarray
) -> None:
    """`value` `[regions * per_box, ...]` of our regions `nearest` to the recorded ones."""
    key, proposals = f"pred/{name}", recorded[f"pred/{names.PROPOSALS}@rows"]
    assert list(value.shape) == list(recorded[f"{key}@shape"])
    place = {region: index for index, region in enumerate(proposals)}
    region = recorded[f"{key}@rows"] // per_box
    known = np.array([each in place for each in region])
    assert known.sum() >= 20, name
    index = np.array([place.get(each, 0) for each in region])
    rows = nearest[index] * per_box + recorded[f"{key}@rows"] % per_box
    off = errors(recorded, key, value, rows).max(axis=-1)
    assert off[known & inner[index]].max() <= TOLERANCE, name
    assert np.mean(off[known & same[index]] <= TOLERANCE) > 0.9, name
