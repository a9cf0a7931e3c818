"""The parts of Inception networks: branches, forks, poolings, scaling."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from goldens import recorded_variables

from od_finetune.errors import UserError
from od_finetune.models import tf2_objects
from od_finetune.models.backbones import inception_resnet_v2, inception_v2, inception_v3
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
from od_finetune.models.detectors.base import TF2_LEAVES
from od_finetune.models.layers import ConvHyperparams, named_variables
from od_finetune.names import apply_rules

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


def test_tf2_numbers_layers_by_their_distance_from_the_output():
    """Between the input and the sum of two ways, the longer way comes first, then both in turns."""
    source = tf2_objects.Node({})
    short = tf2_objects.Node({"kernel": "short"}, (source,))
    long = tf2_objects.chained([{"kernel": "long"}, {"kernel": "longer"}], source)
    tree = tf2_objects.branching(tf2_objects.Node({}, (short, long)))
    layers = {name: node.get("kernel", "") for name, node in tree.items()}
    assert layers == {
        "layer-0": "",
        "layer_with_weights-0": "long",
        "layer-1": "long",
        "layer_with_weights-1": "short",
        "layer-2": "short",
        "layer_with_weights-2": "longer",
        "layer-3": "longer",
        "layer-4": "",
    }


def test_the_second_stages_counterpart_in_slims_classification_net():
    vocabulary, _ = inception_resnet_v2.VOCABULARIES
    scope = "SecondStageFeatureExtractor/InceptionResnetV2"
    assert apply_rules(f"{scope}/Repeat/block8_3/Branch_0/Conv2d_1x1/weights", vocabulary.rules) == (
        "InceptionResnetV2/Repeat_2/block8_3/Branch_0/Conv2d_1x1/weights"
    )
    assert apply_rules(f"{scope}/Mixed_7a/Branch_0/x", vocabulary.rules) == f"{scope}/Mixed_7a/Branch_0/x"


@pytest.mark.slow
def test_object_graph_of_both_stages(shared):
    """Layers in the order in which the recorded checkpoint has them, and what they hold."""
    golden = shared / "reference" / "goldens" / "tf2_mask_rcnn_inception_resnet_v2_1024x1024_coco17_gpu-8"
    for scope, key, part in (
        ("FirstStage", "proposal_features", inception_resnet_v2.first_stage),
        ("SecondStage", "box_classifier_features", inception_resnet_v2.second_stage),
    ):
        hyperparams = inception_resnet_v2.DEFAULTS
        module = part(f"{scope}FeatureExtractor/InceptionResnetV2", hyperparams)
        with tf.__internal__.FuncGraph("build").as_default():
            channels = 3 if scope == "FirstStage" else 1088
            module(tf.compat.v1.placeholder(tf.float32, [1, 64, 64, channels]))
        prefix = f"model/_feature_extractor_for_{key}/"
        ours = {
            f"{prefix}{name}/{attribute}": apply_rules(variable, [*inception_resnet_v2.TF2_RULES, *TF2_LEAVES])
            for name, node in module.tf2_objects().items()
            for attribute, variable in node.items()
            if isinstance(variable, str) and name.startswith("layer_with_weights")
        }
        recorded = {path: name for path, name, _ in recorded_variables(golden) if path.startswith(prefix)}
        assert ours == recorded


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("FeatureExtractor/InceptionV3/Conv2d_4a_3x3/weights", "Conv2d_4a_3x3.conv.weight"),
        ("FeatureExtractor/InceptionV3/Mixed_5c/Branch_1/Conv_1_0c_5x5/BatchNorm/beta", "Mixed_5c.branch5x5_2.bn.bias"),
        ("FeatureExtractor/InceptionV3/Mixed_6d/Branch_2/Conv2d_0e_1x7/weights", "Mixed_6d.branch7x7dbl_5.conv.weight"),
        ("FeatureExtractor/InceptionV3/Mixed_7b/Branch_1/Conv2d_0b_3x1/weights", "Mixed_7b.branch3x3_2b.conv.weight"),
        ("FeatureExtractor/InceptionV3/Mixed_7c/Branch_3/Conv2d_0b_1x1/weights", "Mixed_7c.branch_pool.conv.weight"),
        ("{1}/Conv2d_2b_3x3/BatchNorm/moving_mean", "conv2d_2b.bn.running_mean"),
        ("{1}/Mixed_5b/Branch_3/Conv2d_0b_1x1/weights", "mixed_5b.branch3.1.conv.weight"),
        ("{1}/Repeat/block35_10/Conv2d_1x1/biases", "repeat.9.conv2d.bias"),
        ("{1}/Repeat_1/block17_1/Branch_0/Conv2d_1x1/weights", "repeat_1.0.branch0.conv.weight"),
        ("{2}/Repeat/block8_9/Branch_1/Conv2d_0c_3x1/weights", "repeat_2.8.branch1.2.conv.weight"),
        ("{2}/Block8/Conv2d_1x1/weights", "block8.conv2d.weight"),
        ("{2}/Conv2d_7b_1x1/BatchNorm/beta", "conv2d_7b.bn.bias"),
    ],
)
def test_names_in_pytorch(name, expected):
    first, second = (f"{stage}StageFeatureExtractor/InceptionResnetV2" for stage in ("First", "Second"))
    name = name.replace("{1}", first).replace("{2}", second)
    module = inception_v3 if "InceptionV3" in name else inception_resnet_v2
    assert apply_rules(name, module.VOCABULARIES[-1].rules) == expected
