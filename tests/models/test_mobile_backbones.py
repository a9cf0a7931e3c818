"""MobileNet V3, MobileNet EdgeTPU and MobileDet by themselves: shapes, scopes, blocks."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from goldens import everyday

from od_finetune.errors import UserError
from od_finetune.models import layers
from od_finetune.models.backbones import mobiledet, mobilenet_v3
from od_finetune.models.backbones.bottleneck import Bottleneck, SqueezeExcite
from od_finetune.models.layers import ACTIVATIONS, BatchNorm, ConvHyperparams, ConvUnit
from od_finetune.names import apply_rules

HYPERPARAMS = ConvHyperparams(tf_keras.initializers.GlorotUniform, norm=BatchNorm(scale=True))


def traced(backbone: tf.Module, size: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the levels, once the variables are made."""

    @tf.function(autograph=False)
    def call(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return backbone(images)

    outputs = call.get_concrete_function(tf.TensorSpec([1, size, size, 3])).structured_outputs
    return {name: tuple(output.shape[1:]) for name, output in outputs.items()}


def weights(backbone: tf.Module) -> dict[str, list[int]]:
    """Shapes of kernels by scope, without the network's own."""
    variables = layers.named_variables(backbone)
    return {name.removeprefix("Net/"): list(v.shape) for name, v in variables.items() if "BatchNorm" not in name}


def test_v3_small_for_detection_has_a_narrow_end():
    levels = ("layer_10/expansion_output", "layer_13")
    network = mobilenet_v3.MobilenetV3("Net", HYPERPARAMS, levels, architecture=mobilenet_v3.SMALL)
    assert traced(network, 64) == {levels[0]: (4, 4, 288), levels[1]: (2, 2, 288)}
    kernels = weights(network)
    # The first block does not widen: depthwise on what comes in. The gate has biases and no norm.
    assert "expanded_conv/expand/weights" not in kernels
    assert kernels["expanded_conv/squeeze_excite/Conv/weights"] == [1, 1, 16, 8]
    assert kernels["expanded_conv/squeeze_excite/Conv_1/biases"] == [16]
    assert kernels["expanded_conv_1/expand/weights"] == [1, 1, 16, 72]
    assert not any(name.startswith("expanded_conv_1/squeeze_excite") for name in kernels)
    assert kernels["expanded_conv_8/depthwise/depthwise_weights"] == [5, 5, 288, 1]
    assert kernels["expanded_conv_8/project/weights"] == [1, 1, 288, 48]
    assert kernels["Conv_1/weights"] == [1, 1, 48, 288]


@pytest.mark.slow
@pytest.mark.by_turns
@pytest.mark.parametrize("large", [False, True])
def test_minimalistic_v3_has_small_kernels_and_no_gates(large):
    architecture = mobilenet_v3.LARGE_MINIMALISTIC if large else mobilenet_v3.SMALL_MINIMALISTIC
    level = f"layer_{architecture.last_layer}"
    network = mobilenet_v3.MobilenetV3("Net", HYPERPARAMS, (level,), architecture=architecture)
    assert traced(network, 64) == {level: (2, 2, 480 if large else 288)}
    kernels = weights(network)
    assert not any("squeeze_excite" in name for name in kernels)
    assert {tuple(shape[:2]) for shape in kernels.values()} == {(1, 1), (3, 3)}
    nodes = {spec.activation for spec in architecture.blocks} | {architecture.activation}
    assert nodes == {"relu"}


KERAS_LEAVES = [(r"/weights$", "/kernel"), (r"/depthwise_weights$", "/depthwise_kernel"), (r"/biases$", "/bias")]


@pytest.mark.slow
@pytest.mark.by_turns
@pytest.mark.parametrize("name", ["LARGE", "SMALL", "LARGE_MINIMALISTIC", "SMALL_MINIMALISTIC"])
def test_keras_has_v3_under_these_names(name):
    """And with these shapes, up to the last stage, which is narrow here."""
    architecture = getattr(mobilenet_v3, name)
    make = getattr(tf_keras.applications, f"MobileNetV3{name.split('_')[0].title()}")
    keras = make((32, 32, 3), minimalistic="MINI" in name, include_top=False, weights=None, include_preprocessing=False)
    there = {variable.name.removesuffix(":0"): tuple(variable.shape) for variable in keras.weights}
    level = f"layer_{architecture.last_layer}"
    network = mobilenet_v3.MobilenetV3(
        "FeatureExtractor/MobilenetV3", HYPERPARAMS, (level,), architecture=architecture
    )
    traced(network, 32)
    rules = [*mobilenet_v3.KERAS_RULES, *KERAS_LEAVES]
    here = {apply_rules(own, rules): tuple(v.shape) for own, v in layers.named_variables(network).items()}
    assert set(here) == set(there)
    narrow = {own.split("/")[0] for own, shape in here.items() if shape != there[own]}
    first = len(architecture.blocks) - 3
    assert narrow == {f"expanded_conv_{first + i}" for i in range(3)} | {"Conv_1"}


@pytest.mark.slow
@pytest.mark.by_turns
def test_layers_above_the_last_level_are_not_built():
    levels = ("layer_14/expansion_output",)
    network = mobilenet_v3.MobilenetV3("Net", HYPERPARAMS, levels, architecture=mobilenet_v3.LARGE)
    assert traced(network, 64) == {levels[0]: (4, 4, 672)}
    assert [block.name for block in network.blocks()][-1] == "layer_14"
    assert "expanded_conv_12/project/weights" in weights(network)  # layer_14, whole


@pytest.mark.slow
@pytest.mark.by_turns
def test_edgetpu_expands_and_convolves_at_once():
    levels = ("layer_10", "layer_11/expansion_output")
    network = mobilenet_v3.MobilenetV3("Net", HYPERPARAMS, levels, 0.5, architecture=mobilenet_v3.EDGETPU)
    assert traced(network, 64) == {levels[0]: (8, 8, 24), levels[1]: (8, 8, 24 * 8)}
    kernels = weights(network)
    assert kernels["expanded_conv/project/weights"] == [1, 1, 16, 8]
    assert kernels["expanded_conv_1/expand/weights"] == [3, 3, 8, 64]
    assert not any("depthwise" in name for name in kernels if not name.startswith("expanded_conv_9/"))


@pytest.mark.parametrize("explicit_padding", [False, True])
def test_a_block_adds_its_input_only_where_shapes_agree(explicit_padding):
    """With projections that give zero, a residual shows as the input itself."""
    inputs = tf.random.uniform([1, 5, 5, 8], seed=1)
    spec = mobilenet_v3.BlockSpec(2, 8, squeeze_excite=True)
    for changed, same in (({}, True), ({"stride": 2}, False), ({"residual": False}, False), ({"fused": True}, True)):
        block, expands = mobilenet_v3._block("b", HYPERPARAMS, spec._replace(**changed), 8, 8, explicit_padding)
        block(inputs)
        layers.named_variables(block)["b/project/weights"].assign(tf.zeros([1, 1, 16, 8]))
        outputs, expanded = block(inputs)
        size = 3 if changed.get("stride") else 5
        assert outputs.shape == (1, size, size, 8) and expanded.shape[-1] == 16 and expands
        np.testing.assert_array_equal(outputs, inputs if same else tf.zeros_like(outputs))


def test_squeeze_excite_weighs_channels_by_their_means():
    module = SqueezeExcite("se", HYPERPARAMS, 2, 1)
    inputs = tf.constant([[[[1.0, -1.0], [3.0, 5.0]]]])
    module(inputs)
    values = {"se/Conv/weights": [[[[1.0], [2.0]]]], "se/Conv/biases": [-2.0],
              "se/Conv_1/weights": [[[[-1.0, 0.5]]]], "se/Conv_1/biases": [0.0, 1.0]}  # fmt: skip
    for name, variable in layers.named_variables(module).items():
        variable.assign(values.pop(name))
    assert not values
    # Means 2 and 2 -> relu(2 + 4 - 2) = 4 -> gates of -4 and 3.
    np.testing.assert_allclose(module(inputs), inputs * [0.0, 6 * 0.16667], rtol=1e-6)


def test_piecewise_linear_activations():
    x = tf.constant([-4.0, -1.5, 0.0, 1.5, 4.0])
    np.testing.assert_allclose(ACTIVATIONS["hard_swish"](x), [0, -1.5 * 1.5 / 6, 0, 1.5 * 4.5 / 6, 4], rtol=1e-6)
    np.testing.assert_allclose(ACTIVATIONS["hard_sigmoid"](x), np.array([0, 1.5, 3, 4.5, 6]) * 0.16667, rtol=1e-6)


def test_a_chain_of_units_gives_its_first_output_too():
    units = [ConvUnit("a", HYPERPARAMS, 5), ConvUnit("b", HYPERPARAMS, 3)]
    images = tf.ones([1, 2, 2, 3])
    outputs, first = Bottleneck(units, residual=True)(images)
    np.testing.assert_allclose(first, units[0](images))
    np.testing.assert_allclose(outputs, images + units[1](first))


# Of the four networks: blocks, and (filters, stride) at the ends of the groups.
MOBILEDETS = {
    "CPU": (mobiledet.CPU, 1 + 1 + 4 + 8 + 5, (8, 16, 32, 72, 144)),
    "DSP": (mobiledet.DSP, 1 + 4 + 4 + 8 + 5, (24, 32, 64, 144, 240)),
    "EdgeTPU": (mobiledet.EDGETPU, 1 + 4 + 4 + 8 + 5, (16, 16, 40, 96, 384)),
    "GPU": (mobiledet.GPU, 1 + 4 + 4 + 8 + 5, (16, 32, 64, 128, 384)),
}


@pytest.mark.parametrize("hardware", everyday(MOBILEDETS, {"DSP"}))
def test_groups_of_mobiledet(hardware):
    architecture, count, filters = MOBILEDETS[hardware]
    levels = ("C1", "C2", "C3", "C4", "C5")
    network = mobiledet.MobileDet("Net", mobiledet.DEFAULTS, levels, architecture=architecture)
    expected = {level: (64 >> n, 64 >> n, width) for n, (level, width) in enumerate(zip(levels, filters, strict=True))}
    assert traced(network, 128) == expected
    assert len(network.blocks()) == 1 + count
    gates = [name for name in weights(network) if "SqueezeExcite" in name]
    assert len(gates) == (4 * count if hardware == "CPU" else 0)
    if hardware == "DSP":
        kernels = weights(network)
        assert kernels["IBNNoExpansion/SeparableConv2d/depthwise_weights"] == [3, 3, 32, 1]
        assert kernels["IBNNoExpansion/Conv/weights"] == [1, 1, 32, 24]
        assert kernels["FusedConv/Conv/weights"] == [3, 3, 24, 96]
        assert kernels["TuckerConv_1/Conv/weights"] == [1, 1, 160, 120]
        assert kernels["TuckerConv_1/Conv_1/weights"] == [3, 3, 120, 120]
        assert kernels["FusedConv_7/Conv_1/weights"] == [1, 1, 640, 160]
        assert kernels["IBN_10/Conv_1/weights"] == [1, 1, 160 * 8, 240]


def test_mobiledet_ends_at_its_last_level_and_rounds_its_filters():
    network = mobiledet.MobileDet("Net", mobiledet.DEFAULTS, ("C2",), 0.35, architecture=mobiledet.EDGETPU)
    assert traced(network, 32) == {"C2": (8, 8, 8)}
    assert weights(network)["Conv/weights"] == [3, 3, 3, 8]
    assert [block.name for block in network.blocks()][-1] == "FusedConv_3"
    assert [mobiledet.scaled(filters, 1.0) for filters in (1, 11, 12, 20)] == [8, 8, 16, 24]


def test_mobiledet_has_no_explicit_padding():
    with pytest.raises(UserError, match="use_explicit_padding: found true"):
        mobiledet.MobileDet("Net", mobiledet.DEFAULTS, ("C2",), explicit_padding=True)


def test_depthwise_kernels_start_as_wide_as_their_window_says():
    tf_keras.utils.set_random_seed(0)
    unit = ConvUnit("u", mobiledet.DEFAULTS, None, 5)
    unit(tf.zeros([1, 8, 8, 2000]))
    assert np.std(unit.conv.depthwise_kernel) == pytest.approx((2 / 25) ** 0.5, rel=0.02)
    unit = ConvUnit("v", mobiledet.DEFAULTS, 500, 1)
    unit(tf.zeros([1, 8, 8, 100]))
    assert np.std(unit.conv.kernel) == pytest.approx((2 / 100) ** 0.5, rel=0.02)
