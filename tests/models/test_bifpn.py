"""The bidirectional feature pyramid by itself: sizes, sums, names."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from od_finetune.models.layers import BatchNorm, ConvHyperparams, named_variables
from od_finetune.models.necks.bifpn import COMBINE_METHODS, BidirectionalFeaturePyramid, Combine

HYPERPARAMS = ConvHyperparams(
    initializer=tf_keras.initializers.GlorotUniform, norm=BatchNorm(), activation="swish", force_use_bias=True
)
LEVELS = ("fine", "middle", "coarse")


def pyramid(high=7, iterations=2, levels=LEVELS, **options):
    return BidirectionalFeaturePyramid("FeatureExtractor/Net", HYPERPARAMS, levels, 3, high, iterations, 4, **options)


def features(*sizes):
    return {name: tf.random.stateless_normal([1, size, size, 4], [size, 0])
            for name, size in zip(LEVELS, sizes, strict=True)}  # fmt: skip


def test_maps_halve_in_size_and_may_be_odd():
    maps = pyramid()(features(11, 6, 3))
    assert [tuple(m.shape[1:]) for m in maps] == [(11, 11, 4), (6, 6, 4), (3, 3, 4), (2, 2, 4), (1, 1, 4)]


def test_only_the_backbones_maps_are_projected_whatever_their_width():
    module = pyramid()
    module(features(8, 4, 2))
    scopes = {name.rpartition("/")[0] for name in named_variables(module)}
    projected = {scope for scope in scopes if scope.endswith("/1x1_pre_sample/conv")}
    nodes = ("node_00/0_up_lvl_6/input_0_up_lvl_5", "node_03/1_dn_lvl_5/input_0_up_lvl_5",
             "node_04/1_dn_lvl_4/input_0_up_lvl_4", "node_05/1_dn_lvl_3/input_0_up_lvl_3",
             "node_06/1_up_lvl_4/input_0_up_lvl_4", "node_07/1_up_lvl_5/input_0_up_lvl_5")  # fmt: skip
    assert projected == {f"FeatureExtractor/Net/bifpn/{node}/1x1_pre_sample/conv" for node in nodes}
    # A second iteration takes the finest level from the way down, which is where it ends.
    assert "FeatureExtractor/Net/bifpn/node_13/2_dn_lvl_3/combine" in scopes
    assert [node.inputs for node in module._nodes if node.name == "2_dn_lvl_3"] == [("1_dn_lvl_3", "2_dn_lvl_4")]


def test_without_coarser_maps():
    maps = pyramid(high=5, iterations=1)(features(8, 4, 2))
    assert [m.shape[1] for m in maps] == [8, 4, 2]


@pytest.mark.parametrize(
    ("method", "expected"),
    [("sum", 1 + 10 + 100), ("weighted_sum", 2 - 30 + 100), ("attention", 1 + 10 + 100),
     ("fast_attention", (2 * 1 + 1 * 100) / 3.0001)],
)  # fmt: skip
def test_combine_methods(method, expected):
    layer = Combine(method, "scope/combine")
    inputs = [tf.fill([1, 2, 2, 3], value) for value in (1.0, 10.0, 100.0)]
    layer(inputs)
    if layer.weights:
        np.testing.assert_array_equal(layer.bifpn_combine_weights, np.ones([3, 1]))
        layer.bifpn_combine_weights.assign([[2.0], [-3.0], [1.0]])
    assert len(layer.weights) == (method != "sum")
    np.testing.assert_allclose(layer(inputs), np.full([1, 2, 2, 3], expected), rtol=1e-6)


def test_every_method_has_a_gradient_of_its_weights():
    for method in COMBINE_METHODS:
        layer = Combine(method, "scope/combine")
        inputs = [tf.ones([1, 2, 2, 3]), 2.0 * tf.ones([1, 2, 2, 3])]
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(layer(inputs))
        assert all(gradient is not None for gradient in tape.gradient(total, layer.trainable_variables))
