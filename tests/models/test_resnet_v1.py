"""ResNet V1 by itself: one function of the image wherever the strides are, dilation, ranges of blocks, names."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.models.backbones import resnet_v1
from od_finetune.models.layers import named_variables
from od_finetune.models.normalization import IMAGENET_MEANS
from od_finetune.models.stages import backbone_stages
from od_finetune.names import apply_rules

SCOPE = "FeatureExtractor/resnet_v1_50"
LEVELS = ("block1", "block2", "block3", "block4")
SIZE = (65, 90)  # odd at some level or other


def network(levels: tuple[str, ...] = LEVELS, **options: object) -> resnet_v1.ResnetV1:
    return resnet_v1.ResnetV1(SCOPE, resnet_v1.DEFAULTS, levels, depth_multiplier=0.125, **options)


def run(module: resnet_v1.ResnetV1, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """What it gives with weights that depend on a variable's name alone."""
    call = tf.function(lambda images: module(images), autograph=False)
    call(inputs)
    for name, variable in named_variables(module).items():
        drawn = np.random.RandomState(zlib.crc32(name.encode())).normal(size=variable.shape)
        variable.assign(drawn * 0.1 if name.endswith("weights") else np.abs(drawn) + 0.5)
    return {level: features.numpy() for level, features in call(inputs).items()}


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.RandomState(0).normal(size=(1, *SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def whole(image: np.ndarray) -> dict[str, np.ndarray]:
    return run(network(), image)


def assert_near(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert 0 < expected.std() < np.inf
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * expected.std())


def test_levels_have_strides_4_to_32(whole):
    sizes = [(-(-SIZE[0] // stride), -(-SIZE[1] // stride)) for stride in (4, 8, 16, 32)]
    assert [features.shape[1:] for features in whole.values()] == [
        (*size, filters) for size, filters in zip(sizes, (32, 64, 128, 256), strict=True)
    ]


@pytest.mark.parametrize("levels", [("block3",), ("block2", "block4")])
def test_the_place_of_the_strides_makes_no_difference(image, whole, levels):
    """With a level wanted, the stride after it is Keras's, in the next block; else slim's, in the unit before."""
    for level, features in run(network(levels), image).items():
        assert_near(features, whole[level])


@pytest.mark.parametrize(("output_stride", "level", "step"), [(8, "block3", 2), (16, "block4", 2)])
def test_dilated_blocks_see_what_strided_ones_see(image, whole, output_stride, level, step):
    features = run(network((level,), output_stride=output_stride), image)[level]
    assert_near(features[:, ::step, ::step], whole[level])


def test_a_second_stage_goes_on_where_the_first_ended(whole):
    second = network(("block4",), first_block=4, entry_stride=2)
    assert_near(run(second, whole["block3"])["block4"], whole["block4"])
    assert next(iter(named_variables(second))).startswith(f"{SCOPE}/block4/unit_1/bottleneck_v1/shortcut/")


@pytest.mark.parametrize(("keras", "filters"), [(False, (16, 64, 64)), (True, (16, 32, 64))])
def test_widths_of_narrow_networks(keras, filters):
    """In TF1 a minimum is that of the inner width, in TF2 of each convolution."""
    module = network(("block2",), min_depth=16, keras=keras)
    module(tf.zeros([1, 32, 32, 3]))
    shapes = {name.removeprefix(f"{SCOPE}/"): variable.shape[-1] for name, variable in named_variables(module).items()}
    units = ("block1/unit_2", "conv1"), ("block1/unit_1", "conv3"), ("block2/unit_1", "conv3")
    assert tuple(shapes[f"{unit}/bottleneck_v1/{conv}/weights"] for unit, conv in units) == filters
    assert ("block2/unit_1/bottleneck_v1/shortcut/weights" in shapes) is keras


def test_names():
    names = {
        "conv1/weights": "conv1_conv/weights",
        "conv1/BatchNorm/gamma": "conv1_bn/gamma",
        "block1/unit_1/bottleneck_v1/shortcut/weights": "conv2_block1_0_conv/weights",
        "block3/unit_23/bottleneck_v1/conv2/BatchNorm/moving_mean": "conv4_block23_2_bn/moving_mean",
    }
    for name, expected in names.items():
        assert apply_rules(f"FirstStageFeatureExtractor/resnet_v1_101/{name}", resnet_v1.TF2_RULES) == expected


def test_stages_are_known_by_unit_block_and_resolution():
    module = network()
    module(tf.zeros([1, 32, 32, 3]))
    stages = backbone_stages(module.blocks())
    assert [stage.names for stage in stages if len(stage.names) > 1] == [
        ("conv1", "stage1"),
        ("block1/unit_3", "block1", "stage2"),
        ("block2/unit_4", "block2", "stage3"),
        ("block3/unit_6", "block3", "stage4"),
        ("block4/unit_3", "block4", "stage5", "backbone"),
    ]


def test_mean_colour_is_taken_from_rgb_only():
    image = np.full((1, 2, 2, 3), 100, np.uint8)
    np.testing.assert_allclose(IMAGENET_MEANS(image)[0, 0, 0], [-23.68, -16.779, -3.939], rtol=1e-5)
    np.testing.assert_array_equal(IMAGENET_MEANS(image[..., :1]), np.full((1, 2, 2, 1), 100.0))
