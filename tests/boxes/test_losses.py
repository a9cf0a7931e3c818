from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.boxes import losses

WEIGHTS = tf.constant([[1.0, 0.5]])
PREDICTED = tf.constant([[[0.5, 0, 0, 0], [3, 0, 0, -1]]], tf.float32)
ZEROS = tf.zeros([1, 2, 4])


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


@pytest.mark.parametrize(("loss", "expected"), [
    (losses.L2LocalizationLoss(), [0.125, 0.25 * 5.0]),  # the weight 0.5 is squared
    (losses.SmoothL1LocalizationLoss(), [0.125, 0.5 * (2.5 + 0.5)]),
    (losses.SmoothL1LocalizationLoss(delta=0.25), [0.25 * 0.375, 0.5 * 0.25 * (2.875 + 0.875)]),
    (losses.L1LocalizationLoss(), [0.5, 2.0]),
])
def test_localization_by_hand(loss, expected):
    np.testing.assert_allclose(loss(PREDICTED, ZEROS, WEIGHTS), [expected], rtol=1e-6)


def test_l1_takes_a_weight_per_element():
    loss = losses.L1LocalizationLoss()(PREDICTED, ZEROS, tf.constant([[[1.0, 1, 1, 0], [2, 1, 1, 0]]]))
    np.testing.assert_allclose(loss, [[[0.5, 0, 0, 0], [6, 0, 0, 0]]])


@pytest.mark.parametrize("loss", [losses.L2LocalizationLoss(), losses.SmoothL1LocalizationLoss(),
                                  losses.L1LocalizationLoss()])
def test_unknown_targets_cost_nothing(loss):
    targets = tf.constant([[[np.nan] * 4, [3, 0, 0, np.nan]]], tf.float32)
    assert loss(PREDICTED, targets, WEIGHTS).numpy().tolist() == [[0.0, 0.0]]


def test_overlap_losses_by_hand():
    predicted = tf.constant([[[0, 0, 1, 1], [0, 0, 1, 1]]], tf.float32)
    targets = tf.constant([[[0, 0, 1, 0.5], [0, 2, 1, 3]]], tf.float32)
    np.testing.assert_allclose(losses.IouLocalizationLoss()(predicted, targets, WEIGHTS), [[0.5, 0.5]])
    np.testing.assert_allclose(losses.GiouLocalizationLoss()(predicted, targets, WEIGHTS), [[0.5, 0.5 * 4 / 3]],
                               rtol=1e-6)


LOGITS = tf.constant([[[2.0, -1.0], [0.0, 4.0]]])
TARGETS = tf.constant([[[1.0, 0.0], [0.0, 1.0]]])
CLASS_WEIGHTS = tf.constant([[[1.0, 1.0], [0.5, 2.0]]])


def entropy(targets, probability):
    return -(targets * np.log(probability) + (1 - targets) * np.log(1 - probability))


def test_sigmoid():
    expected = entropy(TARGETS.numpy(), sigmoid(LOGITS)) * CLASS_WEIGHTS
    np.testing.assert_allclose(losses.SigmoidClassificationLoss()(LOGITS, TARGETS, CLASS_WEIGHTS), expected, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.25, None])
def test_focal_is_weighted_sigmoid(alpha):
    p, t = sigmoid(LOGITS), TARGETS.numpy()
    p_t = np.where(t == 1, p, 1 - p)
    balance = 1.0 if alpha is None else np.where(t == 1, alpha, 1 - alpha)
    expected = balance * (1 - p_t) ** 2 * -np.log(p_t) * CLASS_WEIGHTS.numpy()
    loss = losses.SigmoidFocalClassificationLoss(2.0, alpha)(LOGITS, TARGETS, CLASS_WEIGHTS)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_focal_without_gamma_has_a_gradient_where_the_prediction_is_perfect():
    logits = tf.constant([[[200.0]]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = losses.SigmoidFocalClassificationLoss(0.0, None)(logits, tf.ones([1, 1, 1]), tf.ones([1, 1, 1]))
    assert tape.gradient(loss, logits).numpy() == 0.0


def test_softmax_scales_logits_and_averages_weights():
    scaled = LOGITS.numpy().astype(np.float64) / 2.0
    log_p = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
    expected = -(TARGETS.numpy() * log_p).sum(-1) * [[1.0, 1.25]]
    loss = losses.SoftmaxClassificationLoss(2.0)(LOGITS, TARGETS, CLASS_WEIGHTS)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    # Logits as far apart as these are all but one-hot targets.
    against_logits = losses.SoftmaxAgainstLogitsClassificationLoss(2.0)(LOGITS, TARGETS * 200 - 100, CLASS_WEIGHTS)
    np.testing.assert_allclose(against_logits, expected, rtol=1e-5)


def test_bootstrapping_mixes_in_the_belief():
    p, t = sigmoid(LOGITS), TARGETS.numpy()
    ones = tf.ones_like(LOGITS)
    soft = losses.BootstrappedSigmoidClassificationLoss(0.75)(LOGITS, TARGETS, ones)
    np.testing.assert_allclose(soft, entropy(0.75 * t + 0.25 * p, p), rtol=1e-4)
    hard = losses.BootstrappedSigmoidClassificationLoss(0.75, hard=True)(LOGITS, TARGETS, ones)
    np.testing.assert_allclose(hard, entropy(0.75 * t + 0.25 * (p > 0.5), p), rtol=1e-4)


def test_penalty_reduced_focal_spares_the_neighbourhood_of_a_peak():
    targets, logits = tf.constant([[[1.0, 0.5, 0.0]]]), tf.constant([[[0.0, 0.0, 20.0]]])
    loss = losses.PenaltyReducedLogisticFocalLoss()(logits, targets, tf.ones_like(logits))
    ln2 = np.log(2)
    np.testing.assert_allclose(loss, [[[ln2 / 4, ln2 / 4 / 16, -(0.9999**2) * np.log(1e-4)]]], rtol=1e-3)


def test_dice_by_hand():
    probability, targets = tf.constant([[[0.9], [0.1]]]), tf.constant([[[1.0], [0.0]]])
    ones = tf.ones_like(targets)
    loss = losses.DiceClassificationLoss(is_prediction_probability=True)(probability, targets, ones)
    np.testing.assert_allclose(loss, [[1 - 1.8 / 2.0]], rtol=1e-5)
    squared = losses.DiceClassificationLoss(True)(tf.math.log(probability / (1 - probability)), targets, ones)
    np.testing.assert_allclose(squared, [[1 - 1.8 / 1.82]], rtol=1e-4)
    nothing = losses.DiceClassificationLoss(is_prediction_probability=True)(0 * probability, 0 * targets, ones)
    assert nothing.numpy().tolist() == [[1.0]]
