"""Convolution units: names, norms, activations, padding, regularisers."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from od_finetune.errors import UserError
from od_finetune.models import layers
from od_finetune.models.layers import BatchNorm, ConvHyperparams, ConvUnit, GroupNorm

HYPERPARAMS = ConvHyperparams(
    initializer=lambda: tf_keras.initializers.TruncatedNormal(stddev=0.3),
    regularizer=tf_keras.regularizers.L2(0.5),
    norm=BatchNorm(decay=0.9, scale=True),
)
IMAGES = np.random.RandomState(0).uniform(-1, 1, (4, 9, 9, 3)).astype(np.float32)


def test_names_are_the_scopes_and_tf1_leaves():
    unit = ConvUnit("FeatureExtractor/Net/Conv", HYPERPARAMS, 5, 3)
    unit(IMAGES)
    assert list(layers.named_variables(unit)) == [
        "FeatureExtractor/Net/Conv/weights",
        "FeatureExtractor/Net/Conv/BatchNorm/gamma",
        "FeatureExtractor/Net/Conv/BatchNorm/beta",
        "FeatureExtractor/Net/Conv/BatchNorm/moving_mean",
        "FeatureExtractor/Net/Conv/BatchNorm/moving_variance",
    ]
    depthwise = ConvUnit("dw", HYPERPARAMS._replace(norm=None), None, 3)
    depthwise(IMAGES)
    assert list(layers.named_variables(depthwise)) == ["dw/depthwise_weights", "dw/biases"]


def test_two_layers_of_one_name_are_an_error():
    module = tf.Module()
    module.units = [ConvUnit("same", HYPERPARAMS, 2), ConvUnit("same", HYPERPARAMS, 2)]
    for unit in module.units:
        unit(IMAGES)
    with pytest.raises(UserError, match="named same"):
        layers.weighted_layers(module)


def test_layers_of_one_model_start_from_different_numbers():
    units = [ConvUnit(name, HYPERPARAMS, 4) for name in "ab"]
    for unit in units:
        unit(IMAGES)
    assert not np.allclose(units[0].conv.kernel, units[1].conv.kernel)


@pytest.mark.parametrize(
    ("train", "training", "trainable", "moves"),
    [(True, True, True, True), (True, False, True, False), (False, True, None, False), (True, True, False, False)],
)
def test_batchnorm_statistics_move_only_while_it_trains(train, training, trainable, moves):
    unit = ConvUnit("c", HYPERPARAMS._replace(norm=HYPERPARAMS.norm._replace(train=train)), 4)
    unit(IMAGES)
    if trainable is not None:  # the freeze plan decides; as built, the norm follows its config
        unit.norm.trainable = trainable
    before = unit.norm.moving_mean.numpy()
    outputs = unit(IMAGES, training=training)
    assert (np.abs(unit.norm.moving_mean.numpy() - before).max() > 0) == moves
    if moves:  # normalised by the batch, so half of it is cut off by the ReLU
        assert 0.3 < float(tf.reduce_mean(tf.cast(outputs > 0, tf.float32))) < 0.7


def test_decay_is_the_weight_of_the_old_statistics():
    unit = ConvUnit("c", HYPERPARAMS, 4)
    mean = tf.reduce_mean(unit.conv(IMAGES), [0, 1, 2])
    unit(IMAGES, training=True)
    np.testing.assert_allclose(unit.norm.moving_mean, 0.1 * mean, atol=1e-6)


@pytest.mark.parametrize("size", [8, 9])
def test_explicit_padding_puts_the_window_at_the_same_place_for_every_size(size):
    unit = ConvUnit("c", HYPERPARAMS._replace(norm=None, activation="none"), 1, 3, 2, explicit_padding=True)
    images = np.ones((1, size, size, 3), np.float32)
    outputs = unit(images)
    assert outputs.shape[1] == (size + 1) // 2
    kernel = unit.conv.kernel.numpy()
    np.testing.assert_allclose(outputs[0, 0, 0, 0], kernel[1:, 1:].sum(), atol=1e-6)  # first row and column are padding


def test_frozen_batchnorm_leaves_other_norms_alone():
    assert HYPERPARAMS.frozen_batchnorm().norm.train is False
    group = HYPERPARAMS._replace(norm=GroupNorm())
    assert group.frozen_batchnorm() == group


def test_group_norm_that_does_not_divide_a_layer_names_it():
    unit = ConvUnit("FeatureExtractor/Net/Conv", HYPERPARAMS._replace(norm=GroupNorm()), 48)
    with pytest.raises(UserError, match="group_norm: FeatureExtractor/Net/Conv/GroupNorm has 48 channels.*32 groups"):
        unit(IMAGES)


def test_group_norm_and_swish():
    unit = ConvUnit("c", HYPERPARAMS._replace(norm=GroupNorm(groups=2), activation="swish"), 4)
    outputs = unit(IMAGES, training=True)
    assert "c/GroupNorm/gamma" in layers.named_variables(unit)
    assert -0.28 <= float(tf.reduce_min(outputs)) < 0  # the smallest value of x * sigmoid(x) is -0.278


def test_regularizers_name_the_kernels_alone():
    unit = ConvUnit("c", HYPERPARAMS, 4)
    depthwise = ConvUnit("d", HYPERPARAMS._replace(depthwise_regularizer=tf_keras.regularizers.L1(1.0)), None, 3)
    module = tf.Module()
    module.units = {"c": unit, "d": depthwise}
    depthwise(unit(IMAGES))
    found = layers.regularizers(module)
    assert set(found) == {"c/weights", "d/depthwise_weights"}
    np.testing.assert_allclose(found["c/weights"](tf.constant([2.0, 1.0])), 2.5)


@pytest.mark.parametrize(("multiple", "expected"), [(1, (9, 9)), (3, (9, 9)), (4, (12, 12)), (32, (32, 32))])
def test_pad_to_multiple(multiple, expected):
    padded = layers.pad_to_multiple(tf.constant(IMAGES), multiple)
    assert tuple(padded.shape[1:3]) == expected
    np.testing.assert_array_equal(padded[:, :9, :9], IMAGES)
    assert float(tf.reduce_sum(tf.abs(padded))) == pytest.approx(float(np.abs(IMAGES).sum()), rel=1e-5)
    dynamic = tf.function(
        lambda images: layers.pad_to_multiple(images, multiple),
        input_signature=[tf.TensorSpec([None, None, None, 3])],
    )
    np.testing.assert_array_equal(dynamic(IMAGES), padded)
