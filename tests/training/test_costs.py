from __future__ import annotations

import re

import pytest
import tensorflow as tf

from od_finetune import fields
from od_finetune.planning import plans
from od_finetune.training import costs, memory, optimizers, schedules
from od_finetune.training.freeze import FreezePlan, FreezeRequest
from od_finetune.training.trainer import Trainer


def trained_with(detector, freeze=(), optimizer=None, **settings) -> Trainer:
    plan = FreezePlan.compute(detector, FreezeRequest(freeze=freeze))
    return Trainer(detector, plan, optimizer or optimizers.Momentum(schedules.constant(0.1)), **settings)


def stages_of(detector) -> list[fields.Stage]:
    scopes = ["FeatureExtractor/Conv_0", "FeatureExtractor/Conv_1", "BoxPredictor_0"]
    names = list(detector.named_variables())
    return [fields.Stage((s.split("/")[-1],), tuple(n for n in names if n.startswith(f"{s}/"))) for s in scopes]


# Of FakeDetector for two images of 8x8: outputs times window times input channels, two operations each.
FULL = 2 * 2 * 8 * 8 * 4 * (3 * 3 * 3)
DEPTHWISE = 2 * 2 * 4 * 4 * 4 * (3 * 3)
CLASSES, BOXES = 2 * 2 * 4 * 4 * 3 * 4, 2 * 2 * 4 * 4 * 4 * 4
HEAD = CLASSES + BOXES


@pytest.fixture
def step(fake_detector, batch):
    return costs.TracedStep(trained_with(fake_detector()), batch(0))


def test_forward_flops_are_those_of_each_layer(step):
    assert step.forward_flops() == {
        "FeatureExtractor/Conv_0": FULL,
        "FeatureExtractor/Conv_1": DEPTHWISE,
        "BoxPredictor_0/ClassPredictor": CLASSES,
        "BoxPredictor_0/BoxEncodingPredictor": BOXES,
    }


@pytest.mark.parametrize(
    "trained, backward",
    [
        ((".*",), FULL + 2 * DEPTHWISE + 2 * HEAD),  # the image needs no gradient
        (("Conv_1", "BoxPredictor"), DEPTHWISE + 2 * HEAD),
        (("Conv_1/BatchNorm", "BoxPredictor"), 2 * HEAD),
        (("BoxPredictor",), HEAD),
        (("ClassPredictor/weights",), CLASSES),
        (("biases",), 0),
        (("Conv_0/weights",), FULL + DEPTHWISE + HEAD),  # all inputs above, no filter
    ],
)
def test_backward_flops_follow_what_is_trained(step, trained, backward):
    names = [name for name in step.gradients if any(re.search(pattern, name) for pattern in trained)]
    cost = step.cost(names)
    assert (cost.forward_flops, cost.backward_flops) == (FULL + DEPTHWISE + HEAD, backward)
    assert cost.flops == cost.forward_flops + backward


def test_frozen_norms_and_their_activations_move_nothing_of_their_own(step):
    head = [name for name in step.gradients if name.startswith("BoxPredictor")]
    everything = sum(memory.moved(operation) for operation in step._needed(head))
    # Norm and activation read and write a tensor each, the norm eight vectors besides.
    tensors = 2 * 8 * 8 * 4 * 4 + 2 * 4 * 4 * 4 * 4
    assert everything - step.cost(head).moved_bytes == 4 * tensors + 2 * 8 * (4 * 4)
    partly = [*head, "FeatureExtractor/Conv_0/BatchNorm/beta"]
    kept = sum(memory.moved(operation) for operation in step._needed(partly)) - step.cost(partly).moved_bytes
    assert kept == 4 * (2 * 4 * 4 * 4 * 4) + 8 * (4 * 4)  # a norm of which the offset trains counts


def assert_depth_is_as_traced(make, batch, step, stages, depth):
    """A step traced with less trained, against what is left of the one with everything trained."""
    frozen = [name for stage in stages for name in stage.variables if name not in depth.trained]
    trainer = trained_with(make, tuple(f"^{name}$" for name in frozen if "moving" not in name))
    assert tuple(trainer.trained) == depth.trained
    traced = costs.TracedStep(trainer, batch).cost(depth.trained)
    predicted = step.cost(depth.trained)
    assert (predicted.forward_flops, predicted.backward_flops) == (traced.forward_flops, traced.backward_flops)
    for field in ("activation_bytes", "peak_bytes"):
        assert getattr(predicted, field) == pytest.approx(getattr(traced, field), rel=0.02)
    # Weight decay of frozen variables is not pruned away, nor are the batch statistics of frozen norms.
    assert predicted.moved_bytes == pytest.approx(traced.moved_bytes, rel=0.1)


def test_what_is_left_of_the_full_step_is_what_freezing_traces(fake_detector, batch, step):
    detector = fake_detector()
    stages = stages_of(detector)
    found = costs.depths(stages, list(step.gradients))
    assert [depth.name for depth in found] == ["none", "Conv_0", "Conv_1"]
    for depth in found:
        assert_depth_is_as_traced(detector, batch(0), step, stages, depth)


@pytest.mark.slow
def test_the_same_on_a_real_detector(tiny_config):
    prepared = plans.prepare(str(tiny_config), restore=False)
    batch = plans.noise(prepared.detector, prepared.config)
    everything = trained_with(prepared.detector)
    step = costs.TracedStep(everything, batch)
    stages = prepared.detector.stages()
    found = {depth.name: depth for depth in costs.depths(stages, everything.plan.trainable)}
    assert "head" not in found and len(found) > 10
    backward = [step.cost(depth.trained).backward_flops for depth in found.values()]
    assert backward == sorted(backward, reverse=True) and backward[0] > 1.8 * step.cost(()).forward_flops
    assert_depth_is_as_traced(prepared.detector, batch, step, stages, found["Conv2d_5"])


def test_flops_agree_with_tensorflows_profiler_where_it_has_rules():
    graph = tf.Graph()
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, [2, 8, 8, 3])
        kernel, matrix = tf.ones([3, 3, 3, 4]), tf.ones([64, 5])
        y = tf.nn.conv2d(x, kernel, 2, "SAME")
        tf.nn.depthwise_conv2d(x, tf.ones([3, 3, 3, 1]), [1, 1, 1, 1], "VALID")
        tf.matmul(tf.reshape(y, [2, 64]), matrix)
        batch = tf.matmul(tf.ones([3, 2, 7]), tf.ones([3, 2, 5]), transpose_a=True)
        tf.matmul(tf.ones([2, 7]), tf.ones([2, 5]), transpose_a=True)
        tf.raw_ops.Conv2DBackpropFilter(
            input=x, filter_sizes=[3, 3, 3, 4], out_backprop=y, strides=[1, 2, 2, 1], padding="SAME"
        )
        tf.raw_ops.Conv2DBackpropInput(
            input_sizes=[2, 8, 8, 3], filter=kernel, out_backprop=y, strides=[1, 2, 2, 1], padding="SAME"
        )
    ours = {op.name: costs.flops(op) for op in graph.get_operations() if costs.flops(op)}
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation() | {"output": "none"}
    profile = tf.compat.v1.profiler.profile(graph, options=options)
    theirs = {}

    def collect(node):
        theirs[node.name] = node.float_ops
        for child in node.children:
            collect(child)

    collect(profile)
    assert len(ours) == 7
    assert ours.pop(batch.op.name) == 2 * 3 * 7 * 5 * 2  # of which the profiler overlooks that it is transposed
    assert ours == {name: theirs[name] for name in ours}


def test_kept_tensors_are_counted_once_and_through_views():
    graph = tf.Graph()
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, [4, 10])
        made = tf.nn.relu(x)
        view = tf.reshape(made, [40])
        other = tf.exp(x)
        forward = graph.get_operations()
        tf.raw_ops.ReluGrad(gradients=x, features=made)
        tf.exp(view)
        tf.shape(other)
    backward = graph.get_operations()[len(forward) :]
    kept = memory.kept(forward, backward, {"Shape"})
    assert [tensor.op.type for tensor in kept] == ["Relu"]
    assert sum(map(memory.size, kept)) == 160


def test_peak_frees_after_the_last_reader_and_writes_in_place():
    graph = tf.Graph()
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, [10])
        wide = tf.tile(x, [3])  # 120 bytes
        relu = tf.nn.relu(wide)  # into `wide`
        narrow = tf.reduce_sum(tf.reshape(relu, [3, 10]), 0)  # 40 more
        tf.tile(narrow, [2])  # 80, but nobody reads it
    assert memory.peak(graph.get_operations(), ()) == 160
    with graph.as_default():
        tf.math.log(wide)  # `wide` lives on, so relu needs its own 120
    assert memory.peak(graph.get_operations(), ()) == 280


@pytest.mark.parametrize("average, copies", [(None, 2), (0.9, 3)])
def test_memory_of_slots_and_averages(fake_detector, average, copies):
    adam = optimizers.Adam(schedules.constant(0.1))
    trainer = trained_with(fake_detector(), ("feature_extractor",), adam, moving_average_decay=average)
    found = costs.variable_memory(trainer)
    assert set(found) == set(trainer.trained)
    assert found["BoxPredictor_0/ClassPredictor/weights"] == (4 * 4 * 3, copies * 4 * 4 * 3)


def test_depths_skip_stages_that_change_nothing_and_leave_something():
    stages = [fields.Stage((name,), (f"{name}/w", f"{name}/s")) for name in ("a", "b", "c")]
    found = costs.depths(stages, ["b/w", "c/w"])
    assert [(depth.name, depth.trained) for depth in found] == [("none", ("b/w", "c/w")), ("b", ("c/w",))]
