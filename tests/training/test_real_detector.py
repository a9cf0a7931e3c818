"""The trainer on a real SSD of a tiny depth: what the fake detector can't show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from od_finetune.config import pipeline
from od_finetune.config.detector import build_detector
from od_finetune.training import optimizers, probe, schedules
from od_finetune.training.checkpointing import Checkpoints
from od_finetune.training.freeze import FROZEN_STATISTICS, FreezePlan, FreezeRequest
from od_finetune.training.trainer import Trainer, TrainerSettings

ROOT = Path(__file__).resolve().parents[2]


def random_batch(size, side, num_classes):
    return probe.random_batch(size, (side, side), num_classes, max_boxes=3)


@pytest.fixture
def detector(shared):
    config = pipeline.load(shared / "reference" / "configs" / "tf1" / "ssd_mobilenet_v2_coco.config")
    config.model.ssd.num_classes = 2
    config.model.ssd.feature_extractor.depth_multiplier = 0.1
    config.model.ssd.feature_extractor.min_depth = 4
    resizer = config.model.ssd.image_resizer.fixed_shape_resizer
    resizer.height = resizer.width = 96
    detector = build_detector(config.model)
    detector.build()
    return detector


@pytest.mark.slow
def test_a_frozen_backbone_keeps_its_bits_and_has_no_backward_operation(detector, hashes):
    dataset = tf.data.Dataset.from_tensors(random_batch(2, 96, 2)).repeat()
    plan = FreezePlan.compute(detector, FreezeRequest(freeze=("feature_extractor",)))
    assert all(detector.part(name) == "head" for name in plan.trainable)
    assert any("moving_mean" in name for name in plan.frozen)
    before = hashes(detector)
    rms_prop = optimizers.RmsProp(schedules.constant(0.004))
    trainer = Trainer(detector, plan, rms_prop, dataset, moving_average_decay=0.99)
    trainer.train(tf.constant(2))
    after = hashes(detector)
    unmoved = {name for name in before if before[name] == after[name]}
    assert unmoved >= set(plan.frozen)
    # The biases of a feature map none of whose anchors was matched or mined have no gradient.
    assert all(name.endswith("/biases") for name in unmoved - set(plan.frozen))
    moved = set(plan.trainable) - unmoved
    assert len(moved) > 0.7 * len(plan.trainable)
    assert any(name.endswith("ClassPredictor/biases") for name in moved)
    assert any(name.endswith("BoxEncodingPredictor/biases") for name in moved)
    nodes = _operations(trainer)
    assert "FusedBatchNormGradV3" not in nodes and not any("DepthwiseConv2dNativeBackprop" in op for op in nodes)
    heads = sum(name.endswith("weights") for name in plan.trainable)
    assert nodes.count("Conv2DBackpropFilter") == heads


RANDOM_WITHIN = (
    "model.ssd.image_resizer.fixed_shape_resizer.height=96",
    "model.ssd.image_resizer.fixed_shape_resizer.width=96",
    "model.ssd.feature_extractor.depth_multiplier=0.1",
    "model.ssd.feature_extractor.num_layers=2",
    "model.ssd.anchor_generator.ssd_anchor_generator.num_layers=2",
    "model.ssd.box_predictor.convolutional_box_predictor.use_dropout=true",
    "model.ssd.box_predictor.convolutional_box_predictor.dropout_keep_probability=0.5",
    "model.ssd.box_predictor.convolutional_box_predictor.num_layers_before_predictor=1",
    "model.ssd.box_predictor.convolutional_box_predictor.min_depth=8",
    "model.ssd.box_predictor.convolutional_box_predictor.max_depth=8",
    "model.ssd.loss={classification_loss {weighted_sigmoid {}} localization_loss {weighted_smooth_l1 {}} "
    "random_example_sampler {positive_sample_fraction: 0.25}}",
)


@pytest.mark.slow
def test_dropout_and_sampled_anchors_are_the_same_after_a_resume(state_of, tmp_path):
    config = pipeline.load(ROOT / "configs" / "quickstart.config", RANDOM_WITHIN)
    batch = random_batch(2, 96, 4)

    def trainer():
        tf_keras.utils.set_random_seed(0)
        built = build_detector(config.model)
        built.build()
        momentum = optimizers.Momentum(schedules.constant(0.01))
        plan = FreezePlan.compute(built, FreezeRequest(freeze=("feature_extractor",)))
        dataset = tf.data.Dataset.from_tensors(batch).repeat()
        return Trainer(built, plan, momentum, dataset, TrainerSettings(seed=7))

    straight, resumed = trainer(), trainer()
    straight.train(tf.constant(2))
    Checkpoints(straight, tmp_path).save()
    straight.train(tf.constant(2))
    assert Checkpoints(resumed, tmp_path).restore()
    resumed.train(tf.constant(2))
    expected = state_of(straight)
    for name, value in state_of(resumed).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    nodes = _operations(straight)
    assert not {"RandomUniform", "RandomUniformInt"} & set(nodes)
    assert any(op.startswith("StatelessRandomUniform") for op in nodes)


def _operations(trainer):
    traced = trainer._train_loop_fn.get_concrete_function(trainer._train_iter, tf.constant(1))
    return [node.op for function in traced.graph.as_graph_def().library.function for node in function.node_def]


def test_a_norm_that_the_config_has_in_inference_mode_is_reported_so(hashes):
    overrides = (*RANDOM_WITHIN, "model.ssd.freeze_batchnorm=true")
    built = build_detector(pipeline.load(ROOT / "configs" / "quickstart.config", overrides).model)
    built.build()
    plan = FreezePlan.compute(built, FreezeRequest(freeze=("feature_extractor",)))
    norms = [scope for scope, layer in built.weighted_layers().items() if hasattr(layer, "moving_mean")]
    assert plan.frozen_norms == norms
    assert any(name.startswith("BoxPredictor") for name in norms)
    rows = {row.name: row for row in plan.rows}
    head = next(name for name in norms if name.startswith("BoxPredictor"))
    assert rows[f"{head}/beta"].trainable
    assert rows[f"{head}/moving_mean"].state == FROZEN_STATISTICS
    assert "train: false" in rows[f"{head}/moving_mean"].pattern
    assert f"{len(norms)} batch norm layers run in inference mode" in plan.text()
    before = hashes(built)
    dataset = tf.data.Dataset.from_tensors(random_batch(2, 96, 4)).repeat()
    Trainer(built, plan, optimizers.Momentum(schedules.constant(0.01)), dataset).train(tf.constant(1))
    after = hashes(built)
    assert all(after[name] == before[name] for name in plan.frozen)
    assert after[f"{head}/beta"] != before[f"{head}/beta"]
