"""The parts of Inception networks: branches, forks, poolings, scaling."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from od_finetune.errors import UserError
from od_finetune.models.backbones import inception_resnet_v2, inception_v2
from od_finetune.models.backbones.inception import (
    Chain,
    Conv,
    Fork,
    Inception,
    Mixed,
    Pool,
    Separable,
    scaled_width,
)
from od_finetune.models.layers import ConvHyperparams, named_variables

HYPERPARAMS = ConvHyperparams(initializer=tf_keras.initializers.GlorotUniform)
STEPS = (
    Separable("first", 16, 3, 2, multiplier=4, stddev=1.0),
    Pool("pool", "MAX", 2),
    Conv("second", 8),
    Mixed(
        "Mixed_a",
        (
            (Conv("a", 3, 3, 2, "valid"),),
            (Conv("a", 4, 3, 2, "valid"), Fork((Conv("row", 5, (1, 3)), Conv("column", 6, (3, 1))))),
        ),
        stride=2,
    ),
)


def test_names_shapes_and_levels():
    chain = Chain("Net", HYPERPARAMS, STEPS[:3], scaled_width(0.5, 6))
    outputs = chain(tf.zeros([1, 16, 16, 3]))
    assert {name: tuple(value.shape[1:]) for name, value in outputs.items()} == {
        "first": (8, 8, 8),
        "pool": (4, 4, 8),
        "second": (4, 4, 6),  # no less than min_depth
    }
    assert {name: tuple(variable.shape) for name, variable in named_variables(chain).items()} == {
        "Net/first/depthwise_weights": (3, 3, 3, 2),  # as many as go into the filters, at most 4
        "Net/first/pointwise_weights": (1, 1, 6, 8),
        "Net/first/biases": (8,),
        "Net/second/weights": (1, 1, 8, 6),
        "Net/second/biases": (6,),
    }
    assert [(block.name, block.stride) for block in chain.blocks()] == [("first", 2), ("second", 2)]


def test_branches_and_forks_are_joined_in_their_order():
    chain = Chain("Net", HYPERPARAMS._replace(activation="none"), STEPS[3:], int)
    chain(tf.zeros([1, 3, 3, 2]))
    scopes = ["Branch_0/a", "Branch_1/a", "Branch_1/row", "Branch_1/column"]
    assert list(named_variables(chain))[::2] == [f"Net/Mixed_a/{scope}/weights" for scope in scopes]
    for number, (name, variable) in enumerate(named_variables(chain).items()):
        variable.assign(tf.fill(variable.shape, float(number if name.endswith("biases") else 0)))
    np.testing.assert_array_equal(chain(tf.ones([1, 3, 3, 2]))["Mixed_a"].numpy().ravel(), [1] * 3 + [5] * 5 + [7] * 6)


def test_an_average_leaves_padding_out():
    chain = Chain("Net", HYPERPARAMS, [Pool("pool", "AVG")], int)
    np.testing.assert_allclose(chain(tf.ones([1, 2, 2, 1]))["pool"], np.ones([1, 2, 2, 1]))


def test_a_residual_adds_a_part():
    block = inception_resnet_v2.Residual(
        "Net", HYPERPARAMS._replace(activation="none"), ((Conv("a", 1),), (Conv("b", 1),)), 1, scale=0.25
    )
    block(tf.zeros([1, 1, 1, 1]))
    for name, variable in named_variables(block).items():
        variable.assign(tf.fill(variable.shape, 2.0 if name.endswith("weights") else 1.0))
    # Each branch makes 2 * 3 + 1 = 7 of 3; the last convolution 2 * (7 + 7) + 1 = 29.
    assert block(tf.fill([1, 1, 1, 1], 3.0)).numpy().item() == 3 + 0.25 * 29


def test_no_tf2_checkpoint():
    backbone = Inception("FeatureExtractor/InceptionV2", HYPERPARAMS, ("Mixed_3b",), inception_v2.STEPS)
    assert backbone.blocks()[-1].name == "Mixed_3b"
    with pytest.raises(UserError, match="TF2 half has no Inception"):
        backbone.tf2_objects()
