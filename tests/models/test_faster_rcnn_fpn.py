"""Faster R-CNN with a feature pyramid, tiny."""

from __future__ import annotations

from unittest import mock

import batches
import numpy as np
import pytest
import tensorflow as tf
import two_stage
from google.protobuf import text_format

from od_finetune.config.detector import build_detector
from od_finetune.config.two_stage_extractors import TABLE
from od_finetune.errors import UserError
from od_finetune.models.backbones import resnet_v1
from od_finetune.models.detectors.faster_rcnn import FEATURES_TO_CROP, FasterRCNN
from od_finetune.protos import model_pb2
from od_finetune.training import costs

KIND = "faster_rcnn_resnet50_fpn_keras"
ANCHORS = "multiscale_anchor_generator { min_level: 2 max_level: 6 aspect_ratios: 1.0 normalize_coordinates: false }"
PYRAMID = "fpn { min_level: 2 max_level: 6 additional_layer_depth: 4 }"


def tiny(pyramid: str = PYRAMID, hyperparams: str = "conv_hyperparams { batch_norm { scale: true } }") -> FasterRCNN:
    model = model_pb2.DetectionModel()
    text_format.Parse(two_stage.TEXT, model.faster_rcnn)
    parts = model.faster_rcnn
    parts.feature_extractor.Clear()
    text_format.Parse(f'type: "{KIND}" batch_norm_trainable: true {pyramid} {hyperparams}', parts.feature_extractor)
    parts.first_stage_anchor_generator.Clear()
    text_format.Parse(ANCHORS, parts.first_stage_anchor_generator)
    row = TABLE[KIND]._replace(arguments={"num_layers": 5, "depth_multiplier": 1 / 16, "keras": True})
    with mock.patch.dict(TABLE, {KIND: row}), mock.patch.dict(resnet_v1.UNITS, {5: (1, 1, 1, 1)}):
        return build_detector(model)


@pytest.fixture(scope="module")
def detector() -> FasterRCNN:
    return tiny()


@pytest.mark.slow
def test_it_learns_from_every_level_of_the_pyramid(detector):
    shapes, seen = tf.constant([[64, 64, 3]] * 2), tf.random.stateless_normal([2, 64, 64, 3], [1, 2])
    variables = list(detector.named_variables().values())

    @tf.function(autograph=False)
    def step() -> tuple[dict, tf.Tensor, list[tf.Tensor | None]]:
        with tf.GradientTape() as tape:
            predictions = detector.predict(seen, shapes, training=True)
            losses = detector.losses(predictions, batches.two_objects())
            total = tf.add_n(list(losses.values()))
        sizes = [tf.shape(each)[1] for each in predictions[FEATURES_TO_CROP]]
        return losses, sizes, tape.gradient(total, variables)

    losses, sizes, gradients = step()
    assert [int(size) for size in sizes] == [16, 8, 4, 2, 1]
    assert np.isfinite([float(loss) for loss in losses.values()]).all() and len(losses) == 4
    reached = {v.name for v, gradient in zip(variables, gradients, strict=True) if gradient is not None}
    assert {name.split("/")[0] for name in reached} >= {"Conv", "FirstStageFeatureExtractor",
                                                        "SecondStageFeatureExtractor"}  # fmt: skip


@pytest.mark.slow
def test_shapes_of_the_second_stage_are_known_so_that_its_flops_are_counted(detector):
    specs = tf.TensorSpec([2, 64, 64, 3]), tf.TensorSpec([2, 3], tf.int32)
    traced = tf.function(detector.predict, autograph=False).get_concrete_function(*specs)
    products = [costs.flops(each) for each in traced.graph.get_operations() if each.type == "MatMul"]
    regions, crop, width = 2 * 6, 2 * 2 * 4, 1024
    assert products == [2 * regions * n for n in (crop * width, width * width, width * 4 * 2, width * 3)]


def test_parts_and_stages(detector):
    first, second = "FirstStageFeatureExtractor/resnet_v1_50", "SecondStageFeatureExtractor/resnet_v1_50"
    assert detector.part(f"{first}/block4/unit_1/bottleneck_v1/conv3/weights") == "backbone"
    assert detector.part(f"{first}/fpn/projection_4/weights") == "neck"
    assert detector.part(f"{second}/fc_1/weights") == "backbone"
    names = [name for stage in detector.stages() for name in stage.names]
    assert [name for name in names if name in ("block4", "neck", "fc_0", "fc_1", "second_stage", "head")] == [
        "block4", "neck", "fc_0", "fc_1", "second_stage", "head"
    ]  # fmt: skip
    covered = [name for stage in detector.stages() for name in stage.variables]
    assert sorted(covered) == sorted(detector.named_variables())


def test_frozen_norms_keep_their_statistics():
    layers = tiny(hyperparams="conv_hyperparams { batch_norm { train: false } }").weighted_layers()
    keeping = {scope for scope, layer in layers.items() if getattr(layer, "keeps_statistics", False)}
    assert "SecondStageFeatureExtractor/resnet_v1_50/fc_0/BatchNorm" in keeping
    assert "FirstStageFeatureExtractor/resnet_v1_50/fpn/smoothing_1/BatchNorm" in keeping
    assert "FirstStageFeatureExtractor/resnet_v1_50/conv1/BatchNorm" not in keeping  # it has its own hyperparams


@pytest.mark.parametrize(("pyramid", "hyperparams", "message"), [
    (PYRAMID, "", "conv_hyperparams: faster_rcnn_resnet50_fpn_keras needs them"),
    ("fpn { min_level: 1 }", "conv_hyperparams {}", "feature_extractor.fpn: found min_level 1"),
    (f"{PYRAMID} first_stage_features_stride: 8", "conv_hyperparams {}",
     "first_stage_features_stride: found 8, but faster_rcnn_resnet50_fpn_keras has a map for each level"),
    ("fpn { min_level: 3 max_level: 6 }", "conv_hyperparams {}", "5 feature maps, but .* has 4"),
])  # fmt: skip
def test_pyramids_that_cannot_be(pyramid: str, hyperparams: str, message: str):
    with pytest.raises(UserError, match=message):
        tiny(pyramid, hyperparams)
