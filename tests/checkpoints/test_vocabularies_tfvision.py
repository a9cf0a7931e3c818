"""Backbones as tf-models-official's official.vision saves them."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from od_finetune.checkpoints.plan import RestorePlan, RestoreRequest, Status
from od_finetune.checkpoints.source import open_source
from od_finetune.checkpoints.vocabularies_tfvision import spell
from od_finetune.models.backbones import mobilenet_v1, mobilenet_v2
from od_finetune.models.layers import named_variables


@pytest.mark.parametrize(
    "name, path",
    [
        ("FeatureExtractor/MobilenetV2/Conv/weights", "layer_with_weights-0/_conv0/kernel"),
        ("MobilenetV2/expanded_conv/depthwise/depthwise_weights", "layer_with_weights-1/_conv1/depthwise_kernel"),
        ("FeatureExtractor/MobilenetV2/expanded_conv_16/project/BatchNorm/gamma", "layer_with_weights-17/_norm2/gamma"),
        ("FeatureExtractor/MobilenetV2/Conv_1/BatchNorm/beta", "layer_with_weights-18/_norm0/beta"),
        ("FeatureExtractor/MobilenetV1/Conv2d_0/weights", "layer_with_weights-0/_conv0/kernel"),
        ("F/MobilenetV1/Conv2d_3_depthwise/depthwise_weights", "layer_with_weights-3/_dwconv0/depthwise_kernel"),
        ("F/MobilenetV1/Conv2d_13_pointwise/BatchNorm/moving_mean", "layer_with_weights-13/_norm1/moving_mean"),
    ],
)
def test_paths(name, path):
    assert spell(name, "") == [f"backbone/{path}", f"model/backbone/{path}", f"model/{path}", path]


@pytest.mark.parametrize(
    "name",
    [
        "BoxPredictor_0/ClassPredictor/weights",
        "FeatureExtractor/MobilenetV2/layer_19_1_Conv2d_2_1x1_256/weights",
        "FeatureExtractor/MobilenetV1/Conv2d_13_pointwise_2_Conv2d_5_3x3_s2_128/weights",
        "FeatureExtractor/MobilenetV1/Conv2d_1_depthwise/BatchNorm/feature_0/gamma",
    ],
)
def test_no_backbone(name):
    assert spell(name, "") == []


# Our levels by their endpoint at the same place; their backbones stop before the last convolution of V2.
V1_LEVELS = {"Conv2d_3_pointwise": "2", "Conv2d_5_pointwise": "3", "Conv2d_13_pointwise": "5"}
V2_LEVELS = {"layer_14": "4", "layer_18": "5", "layer_19": None}


@pytest.mark.slow  # importing official.vision takes many seconds
@pytest.mark.parametrize(
    "model_id, module, network, levels",
    [
        ("MobileNetV1", mobilenet_v1, mobilenet_v1.MobilenetV1, V1_LEVELS),
        ("MobileNetV2", mobilenet_v2, mobilenet_v2.MobilenetV2, V2_LEVELS),
    ],
)
@pytest.mark.parametrize("root", ["backbone", "model"])
def test_real_checkpoint(tmp_path, model_id, module, network, levels, root):
    from official.vision.modeling.backbones.mobilenet import MobileNet
    from official.vision.modeling.decoders.fpn import FPN

    theirs = MobileNet(model_id, input_specs=tf_keras.layers.InputSpec(shape=[None, 64, 64, 3]))
    rng = np.random.RandomState(0)
    for weight in theirs.weights:
        if len(weight.shape) == 1:
            weight.assign(rng.uniform(0.5, 1.5, size=weight.shape))
    decoder = FPN(theirs.output_specs, min_level=3, max_level=5, num_filters=8)
    checkpoint = tf.train.Checkpoint(**{root: theirs}, decoder=decoder)
    source = open_source(checkpoint.save(str(tmp_path / "ckpt")))

    ours = network(f"FeatureExtractor/{model_id.replace('Net', 'net')}", module.DEFAULTS, tuple(levels))
    images = tf.constant(rng.uniform(-1, 1, (2, 64, 64, 3)), tf.float32)
    ours(images)
    variables = named_variables(ours)
    request = RestoreRequest(source.path, "classification")
    plan = RestorePlan.compute(variables, source, request, {}, lambda name: "backbone", lambda name: False)
    assert {(row.status, row.rule) for row in plan.rows} == {(Status.RESTORED, "TF-Vision as object path")}
    assert len(plan.rows) == len(theirs.weights)
    plan.apply(variables)
    features, expected = ours(images), theirs(images)
    for level, endpoint in levels.items():
        if endpoint:
            tolerance = 1e-4 * float(tf.math.reduce_std(expected[endpoint]))
            np.testing.assert_allclose(features[level], expected[endpoint], atol=tolerance, err_msg=level)
