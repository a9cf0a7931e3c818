"""EfficientNet against tf_keras.applications, and what of it takes no part in a detector."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from goldens import golden_weights, recorded_variables

from od_finetune.models import layers
from od_finetune.models.backbones import efficientnet, efficientnet_names
from od_finetune.models.image_resizers import KeepAspectRatio
from od_finetune.models.normalization import IMAGENET
from od_finetune.models.stages import backbone_stages
from od_finetune.names import apply_rules

B6_GOLDEN = "tf2_ssd_efficientdet_d6_1408x1408_coco17_tpu-32"
LEAVES = [(r"/depthwise_weights$", "/depthwise_kernel"), (r"/weights$", "/kernel"), (r"/biases$", "/bias")]
KERAS_LAYERS = ("block1a_project_bn", "block2b_add", "block3b_add", "block5c_add", "block7a_project_bn")


def network(version="b0", levels=efficientnet.LEVELS, depth_multiplier=0.1):
    """Built; by default as narrow as it can be."""
    net = efficientnet.EfficientNet(
        "FeatureExtractor/EfficientnetB0", efficientnet.DEFAULTS, levels, version, depth_multiplier
    )
    tf.function(net, autograph=False).get_concrete_function(tf.TensorSpec([1, 32, 32, 3]))
    return net


def value(number, variable):
    """What keeps activations in range."""
    random, shape = np.random.RandomState(number), tuple(variable.shape)
    if "gamma" in variable.name or "variance" in variable.name:
        return random.uniform(0.6, 1.4, shape)
    if len(shape) < 2:
        return random.normal(0.0, 0.1, shape)
    return random.normal(0.0, np.sqrt(2.0 / np.prod(shape[:2] if "depthwise" in variable.name else shape[:-1])), shape)


@pytest.mark.slow
def test_features_are_those_of_keras_applications():
    """B1, in which something follows the last level but the classifier."""
    net = network("b1", depth_multiplier=1.0)
    rules = {each.name: each.rules for each in efficientnet_names.vocabularies("b1", efficientnet.repeats("b1"))}
    variables = layers.named_variables(net)
    theirs = tf_keras.applications.EfficientNetB1(weights=None, input_shape=(64, 64, 3))
    weights = {weight.name.removesuffix(":0"): weight for weight in theirs.weights}
    names = {name: apply_rules(name, rules["Keras applications"]) for name in variables}
    assert set(names.values()) == {name for name in weights if not name.startswith("normalization/")}
    for number, (name, keras_name) in enumerate(names.items()):
        values = value(number, weights[keras_name])
        variables[name].assign(values)
        weights[keras_name].assign(values)
    image = np.random.RandomState(0).uniform(0.0, 255.0, (1, 64, 64, 3)).astype(np.float32)
    expected = tf_keras.Model(theirs.input, [theirs.get_layer(name).output for name in KERAS_LAYERS])(image)
    for (level, features), recorded in zip(net(image / 255.0).items(), expected, strict=True):
        np.testing.assert_allclose(features, recorded, atol=1e-4 * np.std(recorded), err_msg=level)


@pytest.mark.slow
def test_b6_is_the_one_of_tf_models_and_chaotic_with_the_golden_weights(shared):
    """Bit for bit, where no tolerance could tell: see CHAOTIC in tests/test_goldens.py."""
    from official.legacy.image_classification.efficientnet import efficientnet_model

    reference = shared / "reference"
    keys = {name: key for key, name, _ in recorded_variables(reference / "goldens" / B6_GOLDEN)}
    theirs = efficientnet_model.EfficientNet.from_name("efficientnet-b6", overrides={"rescale_input": False})
    net, levels = network("b6", depth_multiplier=1.0), ("stack_2/block_1/add", "stack_6/block_0/project_bn")
    variables = layers.named_variables(net)
    full_names = {name: apply_rules(name, efficientnet.TF2_RULES + LEAVES) for name in variables}
    weights = {weight.name.removesuffix(":0"): weight for weight in theirs.weights}
    for name, full_name in full_names.items():
        values = golden_weights(reference).golden_value(keys[full_name], tuple(variables[name].shape))
        variables[name].assign(values)
        weights[full_name].assign(values)
    model = tf_keras.Model(theirs.inputs, [theirs.get_layer(level).output for level in levels])
    expected = tf.function(lambda images: model(images, training=False), autograph=False)
    photograph = tf.constant(np.load(reference / "golden_image.npy")[np.newaxis])
    image = IMAGENET(KeepAspectRatio(1408, 1408)(photograph)[0])[:, :256, :256]
    features = tf.function(net, autograph=False)(image)
    expected_fine, expected_coarse = expected(image)
    np.testing.assert_array_equal(features[efficientnet.LEVELS[2]], expected_fine)
    np.testing.assert_array_equal(features[efficientnet.LEVELS[4]], expected_coarse)
    moved = np.abs(expected(image * (1 + 1e-6))[1] - expected_coarse).max()
    assert moved > 0.1 * np.std(expected_coarse)  # the goldens' tolerance is 2e-3


@pytest.mark.parametrize(
    ("version", "last", "unused"),
    [("b0", 4, ("top", "logits")), pytest.param("b1", 4, ("stack_6/block_1", "top", "logits"), marks=pytest.mark.slow),
     ("b0", 1, ("stack_2/", "stack_3/", "stack_4/", "stack_5/", "stack_6/", "top", "logits"))],
)  # fmt: skip
def test_what_follows_the_last_level_is_there_and_does_not_train(version, last, unused):
    net = network(version, efficientnet.LEVELS[: last + 1])
    fixed = {}
    for name, variable in layers.named_variables(net).items():
        layer = name.removeprefix("FeatureExtractor/EfficientnetB0/")
        fixed[name] = layer.startswith(unused)
        assert variable.trainable == (not fixed[name] and "moving" not in name), name
    assert sum(fixed.values()) >= 7


def test_blocks_are_dropped_more_often_towards_the_end_and_only_in_training():
    net = network("b1", efficientnet.LEVELS[-1:])
    blocks = [stage.names for stage in backbone_stages(net.blocks())]
    assert blocks[0] == ("stem",) and blocks[-1] == ("top", "stage5", "backbone") and len(blocks) == 2 + 23
    images = tf.random.stateless_normal([4, 32, 32, 3], [1, 2])
    (first,), (again,) = (net(images).values() for _ in range(2))
    np.testing.assert_array_equal(first, again)
    rates = [block._dropped for block in net._blocks.values()]
    assert rates == sorted(rates) and rates[0] == 0 and rates[-1] == pytest.approx(0.2 * 22 / 23)
    block = net._blocks["stack_2/block_1"]
    block._dropped = 0.5
    inputs = tf.random.stateless_normal([64, 4, 4, 8], [3, 4])
    change = block(inputs, training=True) - inputs
    left_out = np.all(change.numpy() == 0, axis=(1, 2, 3)).sum()
    assert 16 < left_out < 48
    parts = layers.weighted_layers(block).values()
    for frozen in (True, False):  # as a whole, and all of it but one layer
        for part in parts:
            part.frozen = True
        part.frozen = frozen
        change = block(inputs, training=True) - inputs
        assert np.any(np.all(change.numpy() == 0, axis=(1, 2, 3))) != frozen


@pytest.mark.parametrize(
    ("vocabulary", "name", "expected"),
    [
        ("timm", "stack_0/block_1/project/weights", "blocks.0.1.conv_pw.weight"),
        ("timm", "stack_6/block_1/depthwise/BatchNorm/moving_mean", "blocks.6.1.bn2.running_mean"),
        ("timm", "stack_1/block_0/se_reduce/biases", "blocks.1.0.se.conv_reduce.bias"),
        ("torchvision", "stack_0/block_0/se_expand/weights", "features.1.0.block.1.fc2.weight"),
        ("torchvision", "stack_5/block_3/expand/BatchNorm/gamma", "features.6.3.block.0.1.weight"),
        ("efficientnet_pytorch", "stack_1/block_0/depthwise/weights", "_blocks.2._depthwise_conv.weight"),
        ("efficientnet_pytorch", "top/BatchNorm/beta", "_bn1.bias"),
        ("TPU checkpoint", "stack_0/block_1/project/BatchNorm/gamma",
         "efficientnet-b1/blocks_1/tpu_batch_normalization_1/gamma"),
        ("TPU checkpoint", "stack_6/block_1/se_expand/weights", "efficientnet-b1/blocks_22/se/conv2d_1/kernel"),
    ],
)  # fmt: skip
def test_names_elsewhere(vocabulary, name, expected):
    (rules,) = [v.rules for v in efficientnet_names.vocabularies("b1", efficientnet.repeats("b1"))
                if v.name == vocabulary]  # fmt: skip
    assert apply_rules(f"FeatureExtractor/EfficientnetB1/{name}", rules) == expected
