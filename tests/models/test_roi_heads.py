"""Heads of regions beside boxes and classes: masks, R-FCN."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from od_finetune.fields import ClassLayout
from od_finetune.models.heads.mask import MaskHead, MaskHeadOptions, depth_between, tf2_rules
from od_finetune.models.heads.rfcn import RfcnClassifier, RfcnHead, RfcnOptions
from od_finetune.models.layers import BatchNorm, ConvHyperparams, named_variables
from od_finetune.names import apply_rules

HYPERPARAMS = ConvHyperparams(initializer=tf_keras.initializers.GlorotUniform)


@pytest.mark.parametrize(("features", "classes", "depth"), [(1024, 90, 256), (2048, 90, 256), (1024, 1, 16)])
def test_depth_follows_from_features_and_classes(features, classes, depth):
    assert depth_between(features, classes) == depth


def test_masks_per_class():
    head = MaskHead(MaskHeadOptions(HYPERPARAMS, height=6, width=5, conv_depth=7, num_conv_layers=3), num_classes=4)
    assert head(tf.zeros([2, 3, 3, 8])).shape == (2, 4, 6, 5)
    assert {name: variable.shape[-1] for name, variable in named_variables(head).items() if "weights" in name} == {
        "SecondStageBoxPredictor/Conv/weights": 7,
        "SecondStageBoxPredictor/Conv_1/weights": 7,
        "SecondStageBoxPredictor/Conv_2/weights": 4,
    }
    assert head.class_layout("SecondStageBoxPredictor/Conv_2/biases") == ClassLayout(groups=1, slots=4)
    assert not head.is_class_head("SecondStageBoxPredictor/Conv_1/weights")


def test_the_only_mask_is_of_no_class():
    head = MaskHead(MaskHeadOptions(HYPERPARAMS, class_agnostic=True, conv_depth=0), num_classes=90)
    assert head(tf.zeros([2, 3, 3, 1024])).shape == (2, 1, 15, 15)
    variables = named_variables(head)
    assert variables["SecondStageBoxPredictor/Conv/weights"].shape[-1] == 256
    assert not any(head.is_class_head(name) for name in variables)


def test_resizing_comes_first_and_keeps_the_corners():
    options = MaskHeadOptions(HYPERPARAMS, height=3, width=3, num_conv_layers=1)
    head = MaskHead(options, num_classes=1)
    features = tf.reshape(tf.constant([0.0, 2.0, 4.0, 6.0]), [1, 2, 2, 1])
    head(features)
    kernel = np.zeros([3, 3, 1, 1], np.float32)
    kernel[1, 1] = 1.0
    named_variables(head)["SecondStageBoxPredictor/Conv/weights"].assign(kernel)
    np.testing.assert_allclose(head(features)[0, 0], [[0, 1, 2], [2, 3, 4], [4, 5, 6]], atol=1e-6)


def test_convolutions_may_come_first():
    hyperparams = HYPERPARAMS._replace(norm=BatchNorm())
    options = MaskHeadOptions(hyperparams, height=6, width=9, num_conv_layers=2, convolve_then_upsample=True)
    head = MaskHead(options, num_classes=2)
    assert head(tf.zeros([2, 3, 3, 8])).shape == (2, 2, 6, 9)
    scope = "mask_rcnn_keras_box_predictor/mask_rcnn_mask_head/MaskPredictor"
    renamed = {apply_rules(name, tf2_rules(options)).rpartition("/")[0] for name in named_variables(head)}
    assert renamed == {
        f"{scope}_conv2d_0",
        f"{scope}_batchnorm_0",
        f"{scope}_upsample_conv2d",
        f"{scope}_upsample_batchnorm",
        f"{scope}_last_conv2d",
    }


class _Twice(tf.Module):
    def __call__(self, features: tf.Tensor, training: bool) -> tf.Tensor:
        return 2.0 * features


def test_rfcn():
    options = RfcnOptions(HYPERPARAMS, num_spatial_bins=(2, 3), crop_size=(4, 6), depth=5)
    classifier = RfcnClassifier(_Twice(), RfcnHead(options, num_classes=4))
    boxes = tf.constant([[[0.0, 0.0, 1.0, 1.0]] * 3] * 2)
    outputs = classifier([tf.ones([2, 8, 8, 7])], boxes, (128, 128), training=False)
    assert outputs.box_encodings.shape == (6, 4, 4) and outputs.class_predictions.shape == (6, 5)
    assert float(tf.reduce_max(outputs.features)) == 2.0 and outputs.masks is None
    head = classifier.head
    for name, variable in named_variables(head).items():
        layout = head.class_layout(name)
        assert (layout is None) == ("reduce_depth" in name)
        assert layout is None or layout.size == variable.shape[-1]


def test_rfcns_channels_are_bin_by_bin_then_class_by_class():
    """A class's slot in the layout is the one that its scores come from."""
    options = RfcnOptions(HYPERPARAMS._replace(activation="none"), (2, 1), (2, 1), depth=1)
    head = RfcnHead(options, num_classes=2)
    boxes = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])
    head(tf.zeros([1, 4, 4, 1]), boxes, training=False)
    biases = named_variables(head)["SecondStageBoxPredictor/class_predictions/biases"]
    layout = head.class_layout("SecondStageBoxPredictor/class_predictions/biases")
    values = np.zeros([layout.groups, layout.slots, layout.width], np.float32)
    values[:, layout.slot(1)] = 3.0
    biases.assign(values.ravel())
    np.testing.assert_allclose(head(tf.zeros([1, 4, 4, 1]), boxes, training=False)[1], [[0.0, 0.0, 3.0]])
