"""The trainer on a real SSD of a tiny depth: what the fake detector can't show."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import tensorflow as tf

from od_finetune.config import pipeline
from od_finetune.config.detector import build_detector
from od_finetune.training import optimizers, schedules
from od_finetune.training.freeze import FreezePlan, FreezeRequest
from od_finetune.training.trainer import Trainer

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench_freezing.py"


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


def test_a_frozen_backbone_keeps_its_bits_and_has_no_backward_operation(detector, hashes):
    spec = importlib.util.spec_from_file_location("bench_freezing", BENCH)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    dataset = tf.data.Dataset.from_tensors(bench.random_batch(2, 96, 2)).repeat()
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
    traced = trainer._train_loop_fn.get_concrete_function(trainer._train_iter, tf.constant(1))
    nodes = [node.op for f in traced.graph.as_graph_def().library.function for node in f.node_def]
    assert "FusedBatchNormGradV3" not in nodes and not any("DepthwiseConv2dNativeBackprop" in op for op in nodes)
    heads = sum(name.endswith("weights") for name in plan.trainable)
    assert nodes.count("Conv2DBackpropFilter") == heads
