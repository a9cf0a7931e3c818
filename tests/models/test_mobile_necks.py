"""The pooling pyramid, MnasFPN and the embedded SSD's maps by themselves."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from od_finetune.models.layers import BatchNorm, ConvHyperparams, named_variables, regularizers
from od_finetune.models.necks.mnasfpn import DEFAULTS, MnasFpn
from od_finetune.models.necks.multires import EMBEDDED_EXTRA_MAPS, FeatureMap, MultiResolutionFeatureMaps
from od_finetune.models.necks.ppn import PoolingPyramid

HYPERPARAMS = ConvHyperparams(tf_keras.initializers.GlorotUniform, norm=BatchNorm())
LEVELS = ("c3", "c4", "c5")


def random_features(*shapes: tuple[int, int]) -> dict[str, tf.Tensor]:
    random = np.random.RandomState(0)
    return {level: tf.constant(random.normal(size=(1, size, size, width)).astype(np.float32))
            for level, (size, width) in zip(LEVELS, shapes, strict=False)}  # fmt: skip


def test_a_pooling_pyramid_has_maxima():
    features = {"level": tf.reshape(tf.range(25.0), [1, 5, 5, 1])}
    module = PoolingPyramid("level", 4)
    maps = module(features)
    assert maps[0] is features["level"]
    np.testing.assert_array_equal(maps[1][0, :, :, 0], [[6, 8, 9], [16, 18, 19], [21, 23, 24]])
    np.testing.assert_array_equal(maps[2][0, :, :, 0], [[18, 19], [23, 24]])
    np.testing.assert_array_equal(maps[3][0, :, :, 0], [[24]])
    assert not named_variables(module)


def test_a_pooling_pyramid_may_start_with_a_convolution():
    module = PoolingPyramid("level", 2, 6, "FeatureExtractor/Net", HYPERPARAMS)
    assert [m.shape[1:] for m in module({"level": tf.zeros([1, 4, 4, 3])})] == [(4, 4, 6), (2, 2, 6)]
    assert "FeatureExtractor/Net/Base_Conv2d_1x1_6/weights" in named_variables(module)


def test_the_embedded_ssds_last_kernel_is_2x2():
    layout = (FeatureMap(level="a"), FeatureMap(level="b"), *EMBEDDED_EXTRA_MAPS)
    module = MultiResolutionFeatureMaps("FeatureExtractor/Net", HYPERPARAMS, layout, 0.125)
    maps = module({"a": tf.zeros([1, 16, 16, 4]), "b": tf.zeros([1, 8, 8, 4])})
    assert [tuple(m.shape[1:]) for m in maps[2:]] == [(4, 4, 64), (2, 2, 32), (1, 1, 32)]
    kernels = {name: variable.shape for name, variable in named_variables(module).items() if name.endswith("weights")}
    assert kernels["FeatureExtractor/Net/b_2_Conv2d_3_3x3_s2_32/weights"] == (3, 3, 16, 32)
    assert kernels["FeatureExtractor/Net/b_2_Conv2d_4_2x2_s2_32/weights"] == (2, 2, 16, 32)


@pytest.fixture
def mnasfpn() -> MnasFpn:
    return MnasFpn("FeatureExtractor/MnasFPN", DEFAULTS, LEVELS, 8, scaled=lambda width: width // 8 * 4 or 4)


@pytest.mark.parametrize("sizes", [(16, 8, 4, 2), (13, 7, 4, 2)])
def test_maps_of_mnasfpn_may_be_of_odd_sizes(mnasfpn, sizes):
    maps = mnasfpn(random_features((sizes[0], 3), (sizes[1], 5), (sizes[2], 6)))
    assert [tuple(m.shape[1:]) for m in maps] == [(size, size, 4) for size in sizes]


def test_explicit_padding_keeps_the_sizes_of_mnasfpn():
    module = MnasFpn("M", DEFAULTS, LEVELS, 4, scaled=lambda width: 4, explicit_padding=True)
    maps = module(random_features((16, 3), (8, 3), (4, 3)))
    assert [m.shape[1] for m in maps] == [16, 8, 4, 2]


def test_a_cell_adds_its_maps_where_it_keeps_their_width(mnasfpn):
    """With separable convolutions that give zero, only what is added is left: nothing but the coarsest map, which the
    neck has made itself, and has the width of its maps."""
    features = random_features((8, 3), (4, 5), (2, 6))
    mnasfpn(features)
    for name, variable in named_variables(mnasfpn).items():
        if "SepConv" in name and name.endswith("pointwise_weights"):
            variable.assign(tf.zeros_like(variable))
    *finer, coarsest = mnasfpn(features)
    assert all(np.all(m == 0) for m in finer)
    variables = named_variables(mnasfpn)
    pooled = tf.nn.max_pool2d(features["c5"], 3, 2, "SAME")
    expected = tf.nn.conv2d(pooled, variables["FeatureExtractor/MnasFPN/C6_Conv1x1/weights"], 1, "SAME")
    np.testing.assert_allclose(coarsest, expected / 1.01**0.5, rtol=1e-5)


def test_weight_decay_of_mnasfpn(mnasfpn):
    mnasfpn(random_features((8, 3), (4, 5), (2, 6)))
    found = regularizers(mnasfpn)
    assert {round(float(regularizer(tf.constant([2.0]))), 9) for regularizer in found.values()} == {2e-4}
    kernels = {name for name in named_variables(mnasfpn) if name.endswith("weights")}
    assert kernels - set(found) == {"FeatureExtractor/MnasFPN/C6_Conv1x1/weights"}
