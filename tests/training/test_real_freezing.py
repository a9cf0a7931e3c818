"""Freezing by stage and by batch norm on a real, tiny SSD: what the fake detector can't show."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from od_finetune import experiment
from od_finetune.config import pipeline
from od_finetune.config.detector import build_detector
from od_finetune.training import optimizers, probe, schedules
from od_finetune.training.freeze import FreezePlan, FreezeRequest, NormRule
from od_finetune.training.trainer import Trainer

V2 = ("model.ssd.feature_extractor.type=ssd_mobilenet_v2", "model.ssd.feature_extractor.depth_multiplier=0.1")
HELD = "FeatureExtractor/MobilenetV2/expanded_conv_12"  # layer_14


def tiny_detector(tiny_config, *overrides):
    detector = build_detector(pipeline.load(tiny_config, [*V2, *overrides]).model)
    detector.build()
    return detector


def trainer_of(detector, request: FreezeRequest) -> Trainer:
    dataset = tf.data.Dataset.from_tensors(probe.random_batch(2, (96, 96), 4, max_boxes=3)).repeat()
    plan = FreezePlan.compute(detector, request)
    return Trainer(detector, plan, optimizers.Momentum(schedules.constant(0.01)), dataset)


def operations(trainer: Trainer) -> list[str]:
    """Types of the operations of the traced step that are not pruned."""
    traced = trainer.create_train_loop_fn().get_concrete_function(iter(trainer.train_dataset), tf.constant(1))
    found = []
    for function in traced.graph.as_graph_def().library.function:
        taken = {name.split(":")[0] for node in function.node_def for name in node.input}
        taken |= {name.split(":")[0] for name in function.ret.values()}
        found += [node.op for node in function.node_def if node.name in taken]
    return found


@pytest.mark.slow
def test_there_is_no_backward_operation_below_the_lowest_trainable_layer(tiny_config, hashes):
    detector = tiny_detector(tiny_config)
    trainer = trainer_of(detector, FreezeRequest(freeze_through="layer_14"))
    above = [name for stage in detector.stages()[14:] for name in stage.variables]
    assert trainer.plan.trainable == [name for name in above if "moving" not in name]
    nodes = operations(trainer)
    kernels = [name for name in trainer.trained if name.endswith("weights")]
    deep = [name for name in kernels if name.endswith("depthwise_weights")]
    assert len(deep) == 4 and len(kernels) > 12
    assert nodes.count("DepthwiseConv2dNativeBackpropFilter") == nodes.count("DepthwiseConv2dNativeBackpropInput") == 4
    assert nodes.count("Conv2DBackpropFilter") == len(kernels) - 4
    # One of them reads what is frozen, the expansion of layer_15; the first feature map is made of that expansion.
    assert nodes.count("Conv2DBackpropInput") == len(kernels) - 4 - 1
    norms = sum(name.endswith("BatchNorm/beta") for name in trainer.trained)
    assert nodes.count("FusedBatchNormGradV3") == norms
    before = hashes(detector)
    trainer.train(tf.constant(1))
    after = hashes(detector)
    assert all(before[name] == after[name] for name in trainer.plan.frozen) and len(trainer.plan.frozen) > 150
    assert before[f"{HELD}/project/BatchNorm/moving_mean"] == after[f"{HELD}/project/BatchNorm/moving_mean"]


@pytest.mark.slow
def test_norms_of_a_frozen_backbone_by_affine_and_statistics(tiny_config, hashes):
    # Without batch statistics the quickstart's small random weights would leave no signal for a gamma's gradient.
    strong = "model.ssd.feature_extractor.conv_hyperparams.initializer.truncated_normal_initializer.stddev=0.4"
    detector = tiny_detector(tiny_config, "model.ssd.freeze_batchnorm=true", strong)
    rules = (
        NormRule("expanded_conv_12/project", affine=True),  # the config has it in inference mode
        NormRule("expanded_conv_14/depthwise", statistics=True),
        NormRule("expanded_conv_16/project", affine=True, statistics=True),
    )
    trainer = trainer_of(detector, FreezeRequest(freeze_through="backbone", batch_norms=rules))
    before = hashes(detector)
    trainer.train(tf.constant(1))
    after = hashes(detector)
    moved = {name for name in before if before[name] != after[name] and not name.startswith("BoxPredictor")}

    def of(index, layer, *leaves):
        return {f"FeatureExtractor/MobilenetV2/expanded_conv_{index}/{layer}/BatchNorm/{leaf}" for leaf in leaves}

    statistics, affine = ("moving_mean", "moving_variance"), ("gamma", "beta")
    assert moved == (
        of(12, "project", *affine) | of(14, "depthwise", *statistics) | of(16, "project", *affine, *statistics)
    )
    assert all(before[name] == after[name] for name in trainer.plan.frozen)


@pytest.mark.slow
def test_the_main_job_unfreezes_proves_and_resumes_to_the_bit(tiny_config, tmp_path, caplog):
    caplog.set_level("INFO", "od_finetune")
    overrides = (
        "eval_input_reader=",
        "train_config.freeze_variables=",
        "train_config.freeze_through=backbone",
        "train_config.unfreeze={at_step: 2 pattern: 'Conv2d_1[23]_'}",
        "train_config.layer_decay=0.5",
        "train_config.weight_decay={pattern: 'ClassPredictor' weight: 0.001}",
        "train_config.checkpoint_every_n_steps=0",
    )

    def run(folder, steps):
        options = experiment.Options(str(tiny_config), str(tmp_path / folder), overrides, num_train_steps=steps)
        assert experiment.train_and_evaluate(options) == 0

    run("straight", 4)
    assert "Freeze plan from step 2 on:" in caplog.text and "frozen variables unchanged (sha256)" in caplog.text
    for steps in (1, 2, 3, 4):
        run("parts", steps)
    tensors = [tf.train.load_checkpoint(str(tmp_path / folder / "ckpt-4")) for folder in ("straight", "parts")]
    names = tensors[0].get_variable_to_shape_map()
    assert names == tensors[1].get_variable_to_shape_map()
    for name in names:
        if name not in ("_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter/.ATTRIBUTES/VARIABLE_VALUE"):
            np.testing.assert_array_equal(*(reader.get_tensor(name) for reader in tensors), err_msg=name)
    for folder in ("straight", "parts"):
        plan = json.loads((tmp_path / folder / "freeze_plan.json").read_text())
        assert plan["from_step"] == 2 and [phase["from_step"] for phase in plan["phases"]] == [0, 2]
        proof = json.loads((tmp_path / folder / "freeze_proof.json").read_text())
        assert proof["identical"] and {row["to_step"] for row in proof["variables"]} == {2, 4}
