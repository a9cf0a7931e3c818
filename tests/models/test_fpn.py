"""The feature pyramid by itself: sizes, sums, names."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from od_finetune.models.layers import BatchNorm, ConvHyperparams, named_variables, regularizers
from od_finetune.models.necks.fpn import FeaturePyramid

HYPERPARAMS = ConvHyperparams(
    initializer=tf_keras.initializers.GlorotUniform,
    regularizer=tf_keras.regularizers.L2(1.0),
    depthwise_regularizer=tf_keras.regularizers.L2(1.0),
    norm=BatchNorm(),
)
LEVELS = ("fine", "middle", "coarse")


def pyramid(**options: object) -> FeaturePyramid:
    return FeaturePyramid("FeatureExtractor/Net", HYPERPARAMS, LEVELS, depth=4, coarser=2, last_layer=7, **options)


def features(*sizes: int) -> dict[str, tf.Tensor]:
    random = np.random.RandomState(0)
    return {name: tf.constant(random.normal(size=(1, size, size, 3)).astype(np.float32))
            for name, size in zip(LEVELS, sizes, strict=True)}


def test_maps_halve_in_size_and_may_be_odd():
    maps = pyramid()(features(11, 6, 3))
    assert [tuple(m.shape[1:]) for m in maps] == [(11, 11, 4), (6, 6, 4), (3, 3, 4), (2, 2, 4), (1, 1, 4)]


def test_explicit_padding_keeps_the_sizes():
    for plain, padded in zip(pyramid()(features(8, 4, 2)), pyramid(explicit_padding=True)(features(8, 4, 2)),
                             strict=True):
        assert plain.shape == padded.shape


@pytest.mark.parametrize("pass_smoothed", [False, True])
def test_what_a_finer_level_gets(pass_smoothed):
    """With projections and smoothing that are known, by hand."""
    module = FeaturePyramid("FeatureExtractor/Net", HYPERPARAMS._replace(norm=None, activation="none"), LEVELS, 1, 0, 7,
                            pass_smoothed=pass_smoothed)
    inputs = {name: tf.fill([1, size, size, 1], value)
              for name, size, value in (("fine", 4, 1.0), ("middle", 2, 10.0), ("coarse", 1, 100.0))}
    module(inputs)
    for name, variable in named_variables(module).items():
        kernel = np.zeros(variable.shape, np.float32)
        if "projection" in name and name.endswith("weights"):
            kernel[...] = 1.0
        elif name.endswith("weights"):
            kernel[1, 1] = 3.0  # a smoothing that multiplies by three
        variable.assign(kernel)
    fine, middle, coarse = (np.unique(m).item() for m in module(inputs))
    assert (coarse, middle) == (100.0, 3 * 110.0)
    assert fine == 3 * (1.0 + (330.0 if pass_smoothed else 110.0))


@pytest.mark.parametrize("plain_pointwise", [False, True])
def test_separable_convolutions(plain_pointwise):
    module = FeaturePyramid("FeatureExtractor/Net", HYPERPARAMS._replace(plain_pointwise=plain_pointwise), LEVELS, 4,
                            1, 7, use_depthwise=True)
    module(features(8, 4, 2))
    names = list(named_variables(module))
    scope = "FeatureExtractor/Net/fpn"
    assert names[:2] == [f"{scope}/projection_3/weights", f"{scope}/projection_3/biases"]
    smoothing = [name for name in names if "smoothing_1" in name]
    assert [name.rpartition("/")[2] for name in smoothing] == [
        "depthwise_weights", "pointwise_weights", "beta", "moving_mean", "moving_variance"
    ]  # fmt: skip
    assert names[-1].startswith(f"{scope}/bottom_up_Conv2d_8/BatchNorm/")
    regularized = {name.rpartition("/")[2] for name in regularizers(module)}
    assert regularized == {"weights", "depthwise_weights"} | (set() if plain_pointwise else {"pointwise_weights"})
