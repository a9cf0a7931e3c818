"""A convolution's bias, which the model's has not, goes into the mean of the norm after it."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from od_finetune.checkpoints.arrays import HWIO, ArraySource
from od_finetune.checkpoints.plan import RestorePlan, RestoreRequest, Target
from od_finetune.models import layers

HYPERPARAMS = layers.ConvHyperparams(
    initializer=tf_keras.initializers.GlorotUniform, activation="none", norm=layers.BatchNorm(scale=True)
)
TF2 = {"weights": "conv/kernel", "depthwise_weights": "conv/depthwise_kernel", "biases": "conv/bias"}


@pytest.mark.parametrize("filters", [4, None])
@pytest.mark.parametrize("has_bias", [False, True])
def test_features_are_those_of_a_network_with_biases(filters: int | None, has_bias: bool):
    random = np.random.RandomState(0)
    images = random.normal(size=(1, 5, 5, 3)).astype(np.float32)
    channels = filters or 3
    conv = tf_keras.layers.DepthwiseConv2D(3) if filters is None else tf_keras.layers.Conv2D(filters, 3)
    norm = tf_keras.layers.BatchNormalization(epsilon=0.001)
    norm(conv(images))
    for weight in (*conv.weights, *norm.weights):
        weight.assign(np.abs(random.normal(size=weight.shape)) + 0.1)
    expected = norm(conv(images)).numpy()
    values = dict(zip(("conv/depthwise_kernel" if filters is None else "conv/kernel", "conv/bias"),
                      conv.get_weights(), strict=True))  # fmt: skip
    values |= {f"norm/{name}": value for name, value in zip(
        ("gamma", "beta", "moving_mean", "moving_variance"), norm.get_weights(), strict=True)}  # fmt: skip

    unit = layers.ConvUnit("FeatureExtractor/net", HYPERPARAMS._replace(force_use_bias=has_bias), filters, 3)
    unit(images)
    variables = layers.named_variables(unit)
    names = {name: f"norm/{name.rpartition('/')[2]}" if "BatchNorm" in name else TF2[name.rpartition("/")[2]]
             for name in variables}  # fmt: skip
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    target = Target(shapes, names, lambda name: "backbone", lambda name: False)
    source = ArraySource("net.h5", "arrays", {k: v.shape for k, v in values.items()}, values.__getitem__, HWIO)
    plan = RestorePlan.compute(target, [(source, RestoreRequest("net.h5", "classification"))])
    assert plan.sources[0].unused == ()
    assert ("1 convolutions have a bias in the checkpoint" in plan.text()) is not has_bias
    plan.apply(variables)
    np.testing.assert_allclose(unit(images)[:, 1:-1, 1:-1], expected, rtol=1e-4, atol=1e-5)
    assert tf.reduce_all(variables["FeatureExtractor/net/BatchNorm/moving_mean"].shape == [channels])
