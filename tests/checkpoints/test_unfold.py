"""Frozen graphs as the unfolding sees them: plain nodes, whatever file they come from."""

import numpy as np
import pytest

from od_finetune.checkpoints.graph import Constant, Node
from od_finetune.checkpoints.unfold import EPSILON, graph_source

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(3, 3, 2, 4)).astype(np.float32)
VECTOR = RNG.normal(size=4).astype(np.float32)
OTHER = RNG.uniform(0.5, 2, size=4).astype(np.float32)


def graph(*nodes):
    """(name, op, inputs, attributes) or (name, array) each."""
    made = {"x": Node("x", "Placeholder")}
    for name, *rest in nodes:
        if isinstance(rest[0], np.ndarray):
            value = rest[0]
            made[name] = Node(name, "Const", constant=Constant(value.shape, lambda value=value: value))
        else:
            op, inputs, *attributes = rest
            made[name] = Node(name, op, tuple(inputs), attributes[0] if attributes else {})
    return graph_source("graph.pb", "frozen TensorFlow graph", made)


def test_tf1_names_are_the_variables_and_biases_are_no_norm():
    source = graph(
        ("F/Conv/weights", KERNEL),
        ("F/Conv/weights/read", "Identity", ["F/Conv/weights"]),
        ("F/Conv/Conv2D", "Conv2D", ["x", "F/Conv/weights/read"]),
        ("F/Conv/biases", VECTOR),
        ("F/Conv/biases/read", "Identity", ["F/Conv/biases"]),
        ("F/Conv/BiasAdd", "BiasAdd", ["F/Conv/Conv2D", "F/Conv/biases/read"]),
        ("F/scale_by", OTHER),
        ("F/scale_by/read", "Identity", ["F/scale_by"]),
        ("anchors", np.zeros((5, 4), np.float32)),
    )
    assert source.names() == {"F/Conv/biases": (4,), "F/Conv/weights": (3, 3, 2, 4), "F/scale_by": (4,)}
    assert source.other_entries() == {"anchors": (5, 4)}
    assert source.notes == () and source.epsilons == {}
    np.testing.assert_array_equal(source.read("F/Conv/biases"), VECTOR)
    assert source.aliases()["F/Conv/kernel"] == "F/Conv/weights"


def test_tf2_names_follow_from_the_operations():
    depthwise = np.ones((3, 3, 4, 1), np.float32)
    source = graph(
        (read := "PartitionedCall/net/Conv1/Conv2D/ReadVariableOp/resource", KERNEL),
        ("PartitionedCall/net/Conv1/Conv2D", "Conv2D", ["x", read]),
        ("unknown_3", OTHER),
        ("unknown_4", VECTOR),
        (
            "PartitionedCall/net/bn_Conv1/FusedBatchNormV3",
            "FusedBatchNormV3",
            ["PartitionedCall/net/Conv1/Conv2D", "unknown_3", "unknown_4", "unknown_4", "unknown_3"],
            {"epsilon": 0.01},
        ),
        ("unknown_5", depthwise),
        (
            "PartitionedCall/net/dw/depthwise",
            "DepthwiseConv2dNative",
            ["PartitionedCall/net/bn_Conv1/FusedBatchNormV3", "unknown_5"],
        ),
    )
    norm = {f"net/bn_Conv1/{leaf}": (4,) for leaf in ("gamma", "beta", "moving_mean", "moving_variance")}
    assert source.names() == {"net/Conv1/weights": KERNEL.shape, "net/dw/depthwise_weights": (3, 3, 4, 1), **norm}
    assert source.epsilons == {"net/bn_Conv1": 0.01}
    # As a Keras model's variables are called, without the model's own name.
    assert source.aliases()["Conv1/kernel"] == "net/Conv1/weights"
    assert source.aliases()["dw/depthwise_kernel"] == "net/dw/depthwise_weights"
    assert source.aliases()["bn_Conv1/beta"] == "net/bn_Conv1/beta"


def _norm(source, scope, x):
    values = {leaf: source.read(f"{scope}/{leaf}") for leaf in ("gamma", "beta", "moving_mean", "moving_variance")}
    deviation = np.sqrt(values["moving_variance"] + source.epsilons[scope])
    return values["gamma"] * (x - values["moving_mean"]) / deviation + values["beta"]


@pytest.mark.parametrize("add", ["BiasAdd", "Add", "AddV2"])
@pytest.mark.parametrize(
    "addition, scope",
    [
        ("F/Conv/BatchNorm/FusedBatchNorm", "F/Conv/BatchNorm"),
        ("bn_1/FusedBatchNormV3", "bn_1"),
        ("add_7", "F/Conv/BatchNorm"),
    ],
)
def test_folded_norm(add, addition, scope):
    source = graph(
        ("F/Conv/weights", KERNEL),
        ("F/Conv/Conv2D", "Conv2D", ["x", "F/Conv/weights"]),
        ("F/Conv/Conv2D_bn_offset", VECTOR.reshape(1, 1, 1, 4)),
        (addition, add, ["F/Conv/Conv2D", "F/Conv/Conv2D_bn_offset"]),
        ("out", "Relu6", [addition]),
    )
    leaves = {f"{scope}/{leaf}": (4,) for leaf in ("gamma", "beta", "moving_mean", "moving_variance")}
    assert source.names() == {"F/Conv/weights": KERNEL.shape, **leaves}
    x = RNG.normal(size=(7, 4)).astype(np.float32)
    np.testing.assert_allclose(_norm(source, scope, x), x + VECTOR, rtol=1e-6)
    assert source.epsilons[scope] == EPSILON
    assert len(source.notes) == 1 and "1 batch norms were folded" in source.notes[0] and scope in source.notes[0]
    assert "training mode" in source.notes[0]
    assert source.aliases()["F/Conv/biases"] == f"{scope}/beta"  # for a model whose layer has a bias instead


def test_constant_scale_and_offset_behind_the_convolution():
    source = graph(
        ("F/dw/depthwise_weights", np.ones((3, 3, 2, 2), np.float32)),
        ("F/dw/depthwise", "DepthwiseConv2dNative", ["x", "F/dw/depthwise_weights"]),
        ("F/dw/BatchNorm/batchnorm/mul", OTHER),
        ("F/dw/BatchNorm/batchnorm/mul_1", "Mul", ["F/dw/depthwise", "F/dw/BatchNorm/batchnorm/mul"]),
        ("F/dw/BatchNorm/batchnorm/sub", VECTOR),
        ("F/dw/BatchNorm/batchnorm/add_1", "Add", ["F/dw/BatchNorm/batchnorm/sub", "F/dw/BatchNorm/batchnorm/mul_1"]),
    )
    x = RNG.normal(size=(7, 4)).astype(np.float32)
    np.testing.assert_allclose(_norm(source, "F/dw/BatchNorm", x), x * OTHER + VECTOR, rtol=1e-5)


@pytest.mark.parametrize("named", [True, False])
def test_norm_computed_from_multiplications(named):
    leaves = ("gamma", "beta", "moving_mean", "moving_variance")
    names = [f"F/Conv/BatchNorm/{leaf}" if named else f"c_{leaf}" for leaf in leaves]
    gamma, beta, mean, variance = names
    step = "F/Conv/BatchNorm/batchnorm/"
    values = {name: RNG.uniform(1, 2, size=4).astype(np.float32) for name in names}
    source = graph(
        *values.items(),
        ("F/Conv/weights", KERNEL),
        ("F/Conv/Conv2D", "Conv2D", ["x", "F/Conv/weights"]),
        (step + "add/y", np.array(0.003, np.float32)),
        (step + "add", "AddV2", [variance, step + "add/y"]),
        (step + "Rsqrt", "Rsqrt", [step + "add"]),
        (step + "mul", "Mul", [step + "Rsqrt", gamma]),
        (step + "mul_1", "Mul", ["F/Conv/Conv2D", step + "mul"]),
        (step + "mul_2", "Mul", [mean, step + "mul"]),
        (step + "sub", "Sub", [beta, step + "mul_2"]),
        (step + "add_1", "AddV2", [step + "mul_1", step + "sub"]),
    )
    leaves = [f"F/Conv/BatchNorm/{leaf}" for leaf in ("beta", "gamma", "moving_mean", "moving_variance")]
    assert list(source.names()) == [*leaves, "F/Conv/weights"]
    assert source.epsilons == {"F/Conv/BatchNorm": pytest.approx(0.003)} and source.notes == ()
    for leaf, name in zip(("gamma", "beta", "moving_mean", "moving_variance"), names, strict=True):
        np.testing.assert_array_equal(source.read(f"F/Conv/BatchNorm/{leaf}"), values[name])


def test_operations_that_were_fused():
    fused = {"fused_ops": ("BiasAdd", "Relu6"), "num_args": 1}
    unclipped = fused | {"fused_ops": ("BiasAdd",)}
    source = graph(
        ("F/a/weights", KERNEL),
        ("F/a/Conv2D_bn_offset", VECTOR),
        ("F/a/Relu6", "_FusedConv2D", ["x", "F/a/weights", "F/a/Conv2D_bn_offset"], fused),
        ("F/b/weights", KERNEL[..., :1, :]),
        ("F/b/biases", VECTOR),
        ("F/b/BiasAdd", "_FusedConv2D", ["F/a/Relu6", "F/b/weights", "F/b/biases"], unclipped),
    )
    assert {"F/a/weights", "F/a/BatchNorm/beta", "F/b/weights", "F/b/biases"} <= source.names().keys()
    assert source.epsilons.keys() == {"F/a/BatchNorm"}


def test_additions_of_something_else_are_no_norm():
    source = graph(
        ("F/a/weights", KERNEL),
        ("F/a/Conv2D", "Conv2D", ["x", "F/a/weights"]),
        ("half", np.array(0.5, np.float32)),
        ("scaled", "Mul", ["F/a/Conv2D", "half"]),
        ("five", np.ones(5, np.float32)),
        ("added", "AddV2", ["scaled", "five"]),
    )
    assert list(source.names()) == ["F/a/weights"] and source.notes == ()


def test_two_constants_of_one_name():
    source = graph(
        ("a/weights", KERNEL),
        ("F/Conv2D", "Conv2D", ["x", "unknown"]),
        ("unknown", KERNEL),
        ("F/Conv2D_1", "Conv2D", ["F/Conv2D", "unknown_1"]),
        ("unknown_1", KERNEL + 1),
        ("F/Conv2D_2", "Conv2D", ["F/Conv2D", "unknown_2"]),
        ("unknown_2", KERNEL.copy()),
    )
    assert list(source.names()) == ["F/weights", "F/weights@1", "a/weights"]
    np.testing.assert_array_equal(source.read("F/weights@1"), KERNEL + 1)
    assert "F/weights" in source.notes[0]
    assert graph(("w", "Identity", ["w"]), ("c", "Conv2D", ["x", "w"])).names() == {}  # a cycle ends
