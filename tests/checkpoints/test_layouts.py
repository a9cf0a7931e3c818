"""Kernels of other frameworks' layouts, against what their convolutions compute."""

from __future__ import annotations

import numpy as np
import pytest

from od_finetune.checkpoints import layouts
from od_finetune.checkpoints.arrays import HWIO, OIHW
from od_finetune.checkpoints.leaves import Role, roles, split


def _convert(leaf, value, layout, wanted):
    shape, steps = layouts.convert(f"scope/{leaf}", value.shape, layout, wanted)
    for step in steps:
        value = step(value, None)
    assert value.shape == shape
    return value, [str(step) for step in steps]


def _numbers(*shape):
    return np.random.default_rng(0).normal(size=shape)


def test_convolution():
    kernel = _numbers(5, 3, 2, 4)
    found, said = _convert("weights", kernel, OIHW, (2, 4, 3, 5))
    assert found.shape == (2, 4, 3, 5) and said == ["OIHW -> HWIO"]
    assert found[1, 3, 2, 4] == kernel[4, 2, 1, 3]


def test_depthwise_convolution_with_a_multiplier():
    """Output channel c * M + m of group c comes from input channel c in both frameworks."""
    kernel = _numbers(6, 1, 3, 3)
    found, said = _convert("depthwise_weights", kernel, OIHW, (3, 3, 2, 3))
    assert found.shape == (3, 3, 2, 3) and said == ["depthwise OIHW -> HWIO"]
    for channel in range(2):
        for index in range(3):
            np.testing.assert_array_equal(found[:, :, channel, index], kernel[3 * channel + index, 0])


def test_depthwise_of_another_width_is_told_in_the_models_layout():
    found, _ = _convert("depthwise_weights", _numbers(6, 1, 3, 3), OIHW, (3, 3, 8, 1))
    assert found.shape == (3, 3, 6, 1)


@pytest.mark.parametrize("shape, layout, wanted, entry", [
    ((5, 3), OIHW, (3, 5), lambda dense, i, o: dense[o, i]),
    ((5, 3), OIHW, (1, 1, 3, 5), lambda dense, i, o: dense[o, i]),
    ((5, 3, 1, 1), OIHW, (3, 5), lambda dense, i, o: dense[o, i, 0, 0]),
    ((3, 5), HWIO, (1, 1, 3, 5), lambda dense, i, o: dense[i, o]),
    ((1, 1, 3, 5), HWIO, (3, 5), lambda dense, i, o: dense[0, 0, i, o]),
])  # fmt: skip
def test_dense_layers_and_1x1_convolutions_are_the_same(shape, layout, wanted, entry):
    value = _numbers(*shape)
    found, said = _convert("weights", value, layout, wanted)
    assert found.shape == wanted and len(said) == 1
    assert found[..., 2, 4] == entry(value, 2, 4)


@pytest.mark.parametrize("leaf, shape, layout, wanted", [
    ("biases", (5,), OIHW, (5,)),
    ("BatchNorm/gamma", (5,), OIHW, (5,)),
    ("weights", (3, 3, 2, 5), HWIO, (3, 3, 2, 5)),
    ("weights", (3, 5), HWIO, (3, 3, 3, 5)),
    ("depthwise_weights", (3, 3, 4, 1), HWIO, (3, 3, 4, 1)),
    ("weights", (), OIHW, (3, 3, 1, 1)),
])  # fmt: skip
def test_what_stays_as_it_is(leaf, shape, layout, wanted):
    assert layouts.convert(f"a/{leaf}", shape, layout, wanted) == (shape, ())


@pytest.mark.parametrize("name, scope, leaf", [
    ("features.0.weight", "features.0", "weight"),
    ("a/b/depthwise_kernel", "a/b", "depthwise_kernel"),
    ("mobilenetv20_features_batchnorm0_running_var", "mobilenetv20_features_batchnorm0", "running_var"),
    ("net/conv_1/moving_mean", "net/conv_1", "moving_mean"),
    ("weight", "", "weight"),
    ("step", "", "step"),
])  # fmt: skip
def test_scope_and_leaf(name, scope, leaf):
    assert split(name) == (scope, leaf)


def test_roles_depend_on_the_layer():
    assert roles({"weight": (4, 3, 1, 1), "bias": (4,)}) == {"weight": Role.KERNEL, "bias": Role.BIAS}
    assert roles({"weight": (4,), "bias": (4,)}) == {"weight": Role.GAMMA, "bias": Role.BETA}
    assert roles({"bias": (4,), "running_mean": (4,)}) == {"bias": Role.BETA, "running_mean": Role.MEAN}
    assert roles({"num_batches_tracked": ()}) == {}
