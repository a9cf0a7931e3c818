"""The proof that frozen means frozen: bits, slots, traced operations, and four methods that agree."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.training import optimizers, schedules
from od_finetune.training.freeze import FreezePlan, FreezeRequest
from od_finetune.training.trainer import Trainer, TrainerSettings

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench_freezing.py"
BACKWARD_CONVOLUTIONS = (
    "Conv2DBackpropInput",
    "Conv2DBackpropFilter",
    "DepthwiseConv2dNativeBackpropInput",
    "DepthwiseConv2dNativeBackpropFilter",
)
OPTIMIZERS = {
    "momentum": lambda: optimizers.Momentum(schedules.constant(0.05)),
    "adam": lambda: optimizers.Adam(schedules.constant(0.05)),
    "rms_prop": lambda: optimizers.RmsProp(schedules.constant(0.05)),
}


def load_bench():
    spec = importlib.util.spec_from_file_location("bench_freezing", BENCH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def operations(function) -> list[str]:
    """Types of the operations of a traced function and those it calls whose result somebody takes.

    A convolution's gradient is always formed for input and filter alike; TensorFlow prunes what nobody takes.
    """
    graph_def = function.graph.as_graph_def()
    found = []
    for nodes, returned in [(graph_def.node, ())] + [(f.node_def, f.ret.values()) for f in graph_def.library.function]:
        taken = {name.split(":")[0] for node in nodes for name in node.input} | {r.split(":")[0] for r in returned}
        found += [node.op for node in nodes if node.name in taken]
    return found


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("freeze", ["feature_extractor", "Conv_0", "BatchNorm"])
def test_frozen_variables_keep_their_bits_and_the_others_move(fake_detector, dataset, hashes, optimizer, freeze):
    detector = fake_detector()
    plan = FreezePlan.compute(detector, FreezeRequest(freeze=(freeze,), multipliers=(("BoxPredictor", 3.0),)))
    before = hashes(detector)
    trainer = Trainer(
        detector,
        plan,
        OPTIMIZERS[optimizer](),
        dataset(),
        TrainerSettings(clip_norm=5.0, bias_multiplier=2.0),
        moving_average_decay=0.9,
    )
    trainer.train(tf.constant(5))
    after = hashes(detector)
    assert {name for name in before if before[name] == after[name]} == set(plan.frozen)

    assert set(trainer.moving_average.shadows) == set(plan.trainable)
    slots = trainer.optimizer.get_slot_names()
    assert slots
    variables = detector.named_variables()
    assert len(trainer.optimizer.variables()) == len(plan.trainable) * len(slots) + 1  # and the step
    for name in plan.frozen:
        with pytest.raises(KeyError):
            trainer.optimizer.get_slot(variables[name], slots[0])


@pytest.mark.parametrize(
    "freeze, count",
    [
        # Filters: two predictors, depthwise, first convolution; inputs: all but the first, which reads the image.
        ((), 4 + 3),
        (("Conv_0",), 3 + 2),  # the depthwise convolution's input gradient has nobody to go to
        (("feature_extractor",), 2),  # the predictors' filters alone
        (("feature_extractor", "weights"), 0),  # biases alone
    ],
)
def test_the_traced_step_has_no_backward_operation_below_what_is_trained(fake_detector, dataset, freeze, count):
    detector = fake_detector()
    plan = FreezePlan.compute(detector, FreezeRequest(freeze=freeze))
    trainer = Trainer(detector, plan, optimizers.Momentum(schedules.constant(0.1)), dataset())
    traced = trainer.create_train_loop_fn().get_concrete_function(iter(dataset()), tf.constant(1))
    found = [op for op in operations(traced) if op in BACKWARD_CONVOLUTIONS]
    assert len(found) == count, found
    frozen_backbone = "feature_extractor" in freeze
    assert ("FusedBatchNormGradV3" in operations(traced)) == (not frozen_backbone)
    assert any(op.startswith("Depthwise") and "Backprop" in op for op in found) == (not frozen_backbone)


def test_four_methods_end_in_the_same_trainable_weights(fake_detector, dataset, batch):
    bench = load_bench()
    request = FreezeRequest(freeze=("Conv_0",))
    ends = {}
    for method in bench.METHODS:
        detector = fake_detector()
        plan = FreezePlan.compute(detector, request)
        step = bench.make_step(method, detector, plan, learning_rate=0.1)
        for index in range(4):
            step(batch(index))
        ends[method] = {name: v.numpy() for name, v in detector.named_variables().items()}
    detector = fake_detector()
    start = {name: v.numpy() for name, v in detector.named_variables().items()}
    plan = FreezePlan.compute(detector, request)
    sgd = optimizers.Momentum(schedules.constant(0.1), momentum=0.0)
    Trainer(detector, plan, sgd, dataset(), TrainerSettings(regularize=False)).train(tf.constant(4))
    for name, variable in detector.named_variables().items():
        for method, values in ends.items():
            np.testing.assert_allclose(values[name], variable, rtol=1e-5, atol=1e-6, err_msg=f"{name} {method}")
        assert np.array_equal(start[name], variable) == (name in plan.frozen)
