from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.boxes import scores
from od_finetune.errors import UserError

LOGITS = tf.constant([[[0.0, 2.0, -2.0]]])


def test_converters():
    np.testing.assert_allclose(scores.ScoreConverter(scores.identity_scores)(LOGITS), LOGITS)
    np.testing.assert_allclose(scores.ScoreConverter(scores.sigmoid_scores, 2.0)(LOGITS),
                               1 / (1 + np.exp(-LOGITS.numpy() / 2)), rtol=1e-6)
    softmax = scores.ScoreConverter(scores.softmax_scores, 0.5)(LOGITS).numpy()
    np.testing.assert_allclose(softmax, np.exp(LOGITS * 2) / np.exp(LOGITS * 2).sum(), rtol=1e-5)


def test_temperature_acts_on_logits_and_others_on_scores():
    converter = scores.ScoreConverter(scores.sigmoid_scores, calibrate=scores.Temperature(2.0), calibrate_logits=True)
    np.testing.assert_allclose(converter(LOGITS), tf.sigmoid(LOGITS / 2))
    converter = scores.ScoreConverter(scores.sigmoid_scores, calibrate=scores.PlattScaling(-3.0, 1.0))
    np.testing.assert_allclose(converter(LOGITS), tf.sigmoid(3 * tf.sigmoid(LOGITS) - 1), rtol=1e-6)


def test_piecewise_linear_between_and_beyond_its_points():
    points = [(0.1, 0.0), (0.5, 0.8), (0.5, 0.9), (0.9, 1.0)]
    x = tf.constant([[0.0, 0.1, 0.3], [0.7, 0.9, 1.0]])
    np.testing.assert_allclose(scores.PiecewiseLinear(points)(x), [[0, 0, 0.4], [0.95, 1, 1]], atol=1e-6)
    assert scores.PiecewiseLinear([(0.5, 0.25)])(x).numpy().tolist() == [[0.25] * 3] * 2


def test_calibration_per_class_leaves_others_alone():
    calibrate = scores.PerClass({1: scores.PiecewiseLinear([(0.0, 0.0), (1.0, 0.5)])})
    np.testing.assert_allclose(calibrate(tf.constant([[0.2, 0.4, 0.6]])), [[0.2, 0.2, 0.6]])


def test_impossible_settings_name_their_field():
    with pytest.raises(UserError, match="x_y_pair"):
        scores.PiecewiseLinear([(0.5, 0.0), (0.1, 1.0)])
    with pytest.raises(UserError, match="x_y_pair"):
        scores.PiecewiseLinear([])
    with pytest.raises(UserError, match="scaler"):
        scores.Temperature(0.0)
    with pytest.raises(UserError, match="logit_scale"):
        scores.ScoreConverter(scores.sigmoid_scores, 0.0)
    with pytest.raises(UserError, match=r"class ids \[7\]"):
        scores.PerClass({7: scores.PlattScaling()})(LOGITS)
