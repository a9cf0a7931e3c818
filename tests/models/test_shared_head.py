"""The weight-shared head by itself."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from od_finetune.errors import UserError
from od_finetune.models.heads.shared import SharedHead, SharedHeadOptions
from od_finetune.models.layers import BatchNorm, ConvHyperparams, named_variables

HYPERPARAMS = ConvHyperparams(tf_keras.initializers.GlorotUniform, activation="relu6", norm=BatchNorm(decay=0.5))
OPTIONS = SharedHeadOptions(HYPERPARAMS, HYPERPARAMS, depth=6, num_layers_before_predictor=1)
SCOPE = "WeightSharedConvolutionalBoxPredictor"


def head(**options: object) -> SharedHead:
    return SharedHead(OPTIONS._replace(**options), [2, 2], class_slots=3)


def maps(*channels: int) -> list[tf.Tensor]:
    random = np.random.RandomState(0)
    sizes = (4, 2)
    return [tf.constant(random.normal(size=(2, size, size, c)).astype(np.float32))
            for size, c in zip(sizes, channels, strict=True)]


@pytest.mark.parametrize("share", [False, True])
def test_towers(share):
    module = head(share_prediction_tower=share, class_prediction_bias_init=-2.0)
    boxes, classes = module(maps(5, 5))
    assert boxes.shape == (2, 2 * (16 + 4), 4) and classes.shape == (2, 2 * (16 + 4), 3)
    variables = named_variables(module)
    towers = {name.split("/")[1] for name in variables} - {"BoxPredictor", "ClassPredictor"}
    assert towers == ({"PredictionTower"} if share else {"BoxPredictionTower", "ClassPredictionTower"})
    assert variables[f"{SCOPE}/ClassPredictor/weights"].shape == (3, 3, 6, 2 * 3)
    np.testing.assert_array_equal(variables[f"{SCOPE}/ClassPredictor/biases"], -2.0)
    assert [name for name in variables if module.is_class_head(name)] == [
        f"{SCOPE}/ClassPredictor/weights", f"{SCOPE}/ClassPredictor/biases"]  # fmt: skip


def test_every_feature_map_has_statistics_of_its_own():
    module = head(share_prediction_tower=True)
    inputs = maps(5, 5)
    module(inputs)
    module([inputs[0], 10.0 * inputs[1]], training=True)
    variances = [named_variables(module)[f"{SCOPE}/PredictionTower/conv2d_0/BatchNorm/feature_{i}/moving_variance"]
                 for i in range(2)]
    assert np.mean(variances[1]) > 5 * np.mean(variances[0])


def test_depthwise_weights_of_the_class_predictor_fit_any_number_of_classes():
    module = head(use_depthwise=True)
    module(maps(5, 5))
    assert [name.rpartition("/")[2] for name in named_variables(module) if module.is_class_head(name)] == [
        "pointwise_weights", "biases"]  # fmt: skip


def test_maps_of_other_widths_are_projected():
    module = SharedHead(OPTIONS, [2, 2, 2], class_slots=3)
    module([*maps(5, 7), tf.zeros([2, 1, 1, 7])])
    shapes = {name: variable.shape for name, variable in named_variables(module).items() if "Projection" in name}
    assert shapes[f"{SCOPE}/ProjectionLayer/conv2d_0/weights"] == (1, 1, 5, 7)
    assert sum(name.endswith("/weights") for name in shapes) == 3


def test_dropout_is_before_the_class_predictor_while_training():
    module = head(dropout_keep_probability=0.5, hyperparams=HYPERPARAMS._replace(norm=None))
    inputs = maps(5, 5)
    plain, dropped = module(inputs), module(inputs, training=True)
    np.testing.assert_array_equal(plain[0], dropped[0])
    assert np.abs(plain[1] - dropped[1]).max() > 0


def test_box_encodings_are_clipped():
    assert np.abs(head(box_encodings_clip_range=(-0.01, 0.01))(maps(5, 5))[0]).max() == pytest.approx(0.01)


def test_feature_maps_need_as_many_anchors_each():
    with pytest.raises(UserError, match="found 3, 6 anchors per location.*reduce_boxes_in_lowest_layer"):
        SharedHead(OPTIONS, [3, 6], class_slots=3)
