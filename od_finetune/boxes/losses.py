"""Losses per anchor. Localisation: `[B, A]`. Classification: `[B, A, K]` or, for softmax losses, `[B, A]`.

Nothing is summed over anchors here: sampling and mining pick anchors first. Targets that are NaN (unknown) cost
nothing in the localisation losses. Predictions of classification losses are logits.
"""

from __future__ import annotations

import tensorflow as tf

from od_finetune.boxes import box_ops


def _known(predictions: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    return tf.where(tf.math.is_nan(targets), predictions, targets)


class L2LocalizationLoss:
    """Half the squared difference, summed over the code. The weight is squared too, as in the OD API."""

    on_boxes = False

    def __call__(self, predictions: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """`[B, A, code]`, `[B, A, code]`, `[B, A]` -> `[B, A]`."""
        difference = (predictions - _known(predictions, targets)) * weights[..., None]
        return 0.5 * tf.reduce_sum(tf.square(difference), axis=-1)


class SmoothL1LocalizationLoss:
    """Huber's loss, summed over the code: x^2/2 up to `delta`, then delta * (|x| - delta/2)."""

    on_boxes = False

    def __init__(self, delta: float = 1.0):
        self._delta = delta

    def __call__(self, predictions: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """`[B, A, code]`, `[B, A, code]`, `[B, A]` -> `[B, A]`."""
        distance = tf.abs(predictions - _known(predictions, targets))
        near = tf.minimum(distance, self._delta)
        return weights * tf.reduce_sum(near * (distance - 0.5 * near), axis=-1)


class L1LocalizationLoss:
    """Absolute difference, summed over the code; elementwise where `weights` has a value per element."""

    on_boxes = False

    def __call__(self, predictions: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """`[B, A, code]`, `[B, A, code]`, `[B, A]` -> `[B, A]`; weights `[B, A, code]` -> `[B, A, code]`."""
        distance = tf.abs(predictions - _known(predictions, targets))
        if weights.shape.rank == distance.shape.rank:
            return weights * distance
        return weights * tf.reduce_sum(distance, axis=-1)


class IouLocalizationLoss:
    """1 - IoU (Yu et al., 2016) of decoded boxes `[..., 4]`."""

    on_boxes = True  # takes boxes, not codes

    def __call__(self, predictions: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """Boxes `[B, A, 4]`, `[B, A, 4]`, `[B, A]` -> `[B, A]`."""
        return weights * (1.0 - box_ops.iou(predictions, _known(predictions, targets)))


class GiouLocalizationLoss:
    """1 - generalised IoU (Rezatofighi et al., 2019) of decoded boxes `[..., 4]`."""

    on_boxes = True

    def __call__(self, predictions: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """Boxes `[B, A, 4]`, `[B, A, 4]`, `[B, A]` -> `[B, A]`."""
        return weights * (1.0 - box_ops.giou(predictions, _known(predictions, targets)))


class SigmoidClassificationLoss:
    """Cross entropy of independent classes."""

    def __call__(self, predictions: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """All `[B, A, K]` (weights may broadcast) -> `[B, A, K]`."""
        return weights * tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=predictions)


class SigmoidFocalClassificationLoss:
    """Focal loss (Lin et al., 2017). `alpha` None: both sides weigh 1."""

    def __init__(self, gamma: float = 2.0, alpha: float | None = 0.25):
        self._gamma, self._alpha = gamma, alpha

    def __call__(self, predictions: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """All `[B, A, K]` -> `[B, A, K]`."""
        entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=predictions)
        probability = tf.sigmoid(predictions)
        miss = targets * (1.0 - probability) + (1.0 - targets) * probability
        # pow's gradient at 0 is NaN for an exponent of 0, where the factor is 1 anyway.
        modulation = tf.pow(miss, self._gamma) if self._gamma else 1.0
        balance = 1.0 if self._alpha is None else targets * self._alpha + (1.0 - targets) * (1.0 - self._alpha)
        return weights * modulation * balance * entropy


class SoftmaxClassificationLoss:
    """Cross entropy of exclusive classes; an anchor's weight is the mean of its classes' weights."""

    def __init__(self, logit_scale: float = 1.0):
        self._logit_scale = logit_scale

    def __call__(self, predictions: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """All `[B, A, K]` -> `[B, A]`."""
        logits = predictions / self._logit_scale
        return tf.reduce_mean(weights, -1) * tf.nn.softmax_cross_entropy_with_logits(labels=targets, logits=logits)


class SoftmaxAgainstLogitsClassificationLoss:
    """As `SoftmaxClassificationLoss`, with logits as targets (distillation)."""

    def __init__(self, logit_scale: float = 1.0):
        self._logit_scale = logit_scale
        self._loss = SoftmaxClassificationLoss(logit_scale)

    def __call__(self, predictions: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """All `[B, A, K]` -> `[B, A]`."""
        return self._loss(predictions, tf.nn.softmax(targets / self._logit_scale), weights)


class BootstrappedSigmoidClassificationLoss:
    """Sigmoid cross entropy against targets mixed with the model's own belief (Reed et al., 2014)."""

    def __init__(self, alpha: float, hard: bool = False):
        """`alpha`: share of the given targets; `hard`: belief is 0 or 1 instead of the probability."""
        self._alpha, self._hard = alpha, hard

    def __call__(self, predictions: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """All `[B, A, K]` -> `[B, A, K]`."""
        belief = tf.sigmoid(predictions)
        if self._hard:
            belief = tf.cast(belief > 0.5, tf.float32)
        mixed = self._alpha * targets + (1.0 - self._alpha) * belief
        return weights * tf.nn.sigmoid_cross_entropy_with_logits(labels=mixed, logits=predictions)


class PenaltyReducedLogisticFocalLoss:
    """Focal loss for heat maps (Zhou et al., Objects as Points, 2019): targets near 1 are punished less."""

    def __init__(self, alpha: float = 2.0, beta: float = 4.0, clip: float = 1e-4):
        """Probabilities are kept `clip` away from 0 and 1, where the logarithm is steep."""
        self._alpha, self._beta, self._clip = alpha, beta, clip

    def __call__(self, predictions: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """All `[B, A, K]` -> `[B, A, K]`."""
        probability = tf.clip_by_value(tf.sigmoid(predictions), self._clip, 1.0 - self._clip)
        present = tf.pow(1.0 - probability, self._alpha) * tf.math.log(probability)
        penalty = tf.pow(1.0 - targets, self._beta) * tf.pow(probability, self._alpha)
        absent = penalty * tf.math.log(1.0 - probability)
        return -weights * tf.where(tf.equal(targets, 1.0), present, absent)


class DiceClassificationLoss:
    """1 - Dice coefficient (Milletari et al., 2016) over the second dimension (pixels or anchors)."""

    def __init__(self, squared_normalization: bool = False, is_prediction_probability: bool = False):
        self._squared, self._probability = squared_normalization, is_prediction_probability

    def __call__(self, predictions: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """All `[B, P, K]` -> `[B, K]`."""
        probability = predictions if self._probability else tf.sigmoid(predictions)
        sizes = tf.square(probability) + tf.square(targets) if self._squared else probability + targets
        shared = 2.0 * tf.reduce_sum(weights * probability * targets, axis=1)
        return 1.0 - tf.math.divide_no_nan(shared, tf.reduce_sum(weights * sizes, axis=1))
