"""Which anchors' losses count: hard example mining, random sampling, expected (weighted) sampling."""

from __future__ import annotations

from enum import Enum

import tensorflow as tf

from od_finetune import randomness
from od_finetune.boxes.matching import UNMATCHED


class MiningLoss(Enum):
    """What ranks an anchor as hard."""

    BOTH = "both"
    CLASSIFICATION = "classification"
    LOCALIZATION = "localization"


class HardExampleMiner:
    """Keeps the anchors with the highest loss (Shrivastava et al., OHEM, 2016), without near-duplicates (NMS)."""

    def __init__(self, num_hard_examples: int | None = 64, iou_threshold: float = 0.7,
                 loss_type: MiningLoss = MiningLoss.BOTH, class_weight: float = 1.0, box_weight: float = 1.0,
                 max_negatives_per_positive: float | None = None, min_negatives_per_image: int = 0):
        """None: no limit. Without `max_negatives_per_positive`, `min_negatives_per_image` means nothing."""
        self._num_hard, self._iou_threshold, self._loss_type = num_hard_examples, iou_threshold, loss_type
        self._class_weight, self._box_weight = class_weight, box_weight
        self._max_ratio, self._min_negatives = max_negatives_per_positive, min_negatives_per_image

    def __call__(self, box_losses: tf.Tensor, class_losses: tf.Tensor, boxes: tf.Tensor,
                 matches: tf.Tensor) -> tf.Tensor:
        """Which anchors count.

        Args:
            box_losses: `[B, A]`.
            class_losses: `[B, A]`.
            boxes: the predicted (decoded) boxes `[B, A, 4]`.
            matches: `[B, A]` as a `Matcher` returns them.

        Returns:
            float32 `[B, A]`: 1 for the selected anchors, else 0; no gradient.
        """
        ranking = tf.stop_gradient(self._ranking(box_losses, class_losses))
        limit = tf.shape(boxes)[1]
        limit = limit if self._num_hard is None else tf.minimum(self._num_hard, limit)
        order, count = self._hardest(tf.stop_gradient(boxes), ranking, limit)
        keep = tf.sequence_mask(count, limit)
        if self._max_ratio is not None:
            keep &= self._few_negatives(tf.gather(matches, order, batch_dims=1), keep)
        return _scatter_mask(order, keep, tf.shape(boxes)[1])

    def _ranking(self, box_losses: tf.Tensor, class_losses: tf.Tensor) -> tf.Tensor:
        if self._loss_type is MiningLoss.LOCALIZATION:
            return box_losses
        if self._loss_type is MiningLoss.CLASSIFICATION:
            return class_losses
        return class_losses * self._class_weight + box_losses * self._box_weight

    def _hardest(self, boxes: tf.Tensor, ranking: tf.Tensor, limit: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Anchors that survive NMS, hardest first, padded to `[B, limit]`, and how many there are `[B]`.

        The combined op takes a whole batch, on all cores, and is several times faster than the plain one, but returns
        no indices. So its scores are ranks, which tell the anchor, and which leave no ties to be broken otherwise.
        """
        num_anchors = tf.shape(boxes)[1]
        order = tf.argsort(ranking, axis=1, direction="DESCENDING", stable=True)
        countdown = tf.cast(tf.range(num_anchors, 0, -1), tf.float32)
        sorted_boxes = tf.gather(boxes, order, batch_dims=1)
        scores = tf.tile(countdown[None, :, None], [tf.shape(boxes)[0], 1, 1])
        _, kept, _, count = tf.image.combined_non_max_suppression(
            sorted_boxes[:, :, None], scores, max_output_size_per_class=limit, max_total_size=limit,
            iou_threshold=self._iou_threshold, score_threshold=-float("inf"), clip_boxes=False)
        rank = tf.minimum(num_anchors - tf.cast(kept, tf.int32), num_anchors - 1)
        return tf.gather(order, rank, batch_dims=1), count

    def _few_negatives(self, matches: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
        """Matches in order of hardness -> all positives and the first so many negatives."""
        positive = valid & (matches >= 0)
        negative = tf.cast(valid & (matches == UNMATCHED), tf.int32)
        positives = tf.reduce_sum(tf.cast(positive, tf.float32), axis=1, keepdims=True)
        allowed = tf.maximum(tf.cast(self._max_ratio * positives, tf.int32), self._min_negatives)
        return positive | (tf.cumsum(negative, axis=1) <= allowed)


def _scatter_mask(indices: tf.Tensor, keep: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Indices `[B, K]`, where to keep them `[B, K]` -> float32 `[B, size]` with ones there."""
    rows = tf.cast(tf.where(keep)[:, 0], tf.int32)
    where = tf.stack([rows, tf.boolean_mask(indices, keep)], axis=1)
    return tf.scatter_nd(where, tf.ones_like(rows, tf.float32), [tf.shape(indices)[0], size])


class RandomExampleSampler:
    """Every positive anchor and as many random negative ones as make the positives `positive_fraction` of all."""

    def __init__(self, positive_fraction: float):
        self._ratio = (1.0 - positive_fraction) / positive_fraction

    def __call__(self, positive: tf.Tensor, candidates: tf.Tensor, seed: tf.Tensor | None = None) -> tf.Tensor:
        """Bool `[B, A]`: has a foreground class; may be sampled. `seed` `[2]` makes the draw repeatable.

        Returns:
            float32 `[B, A]`: 1 for the sampled anchors, else 0.
        """
        chosen = positive & candidates
        negative = tf.logical_not(positive) & candidates
        number = tf.cast(self._ratio * tf.reduce_sum(tf.cast(chosen, tf.float32), 1, keepdims=True), tf.int32)
        shape = tf.shape(positive)
        noise = tf.random.stateless_uniform(shape, randomness.next_seed() if seed is None else seed)
        order = tf.argsort(tf.where(negative, noise, 2.0), axis=1)
        rank = tf.argsort(order, axis=1)  # the inverse permutation
        return tf.cast(chosen | (negative & (rank < number)), tf.float32)


class ExpectedSampling:
    """Weights instead of sampling: negatives weigh in expectation what `negative_ratio` per positive would weigh.

    With p the foreground probability of an anchor, M the sum of p over an image's N anchors: a background loss
    weighs (1 - p) * beta with beta = negative_ratio * M / (N - M), or `min_negatives` / N if M is 0.
    """

    def __init__(self, negative_ratio: float = 3.0, min_negatives: float = 0.0):
        self._ratio, self._min_negatives = negative_ratio, min_negatives

    def __call__(self, class_targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`[B, A, K]`, background first -> weights `[B, A]` of the loss against the target, against background."""
        foreground = 1.0 - class_targets[..., 0]
        return foreground, (1.0 - foreground) * self._beta(foreground)

    def _beta(self, foreground: tf.Tensor) -> tf.Tensor:
        total = tf.cast(tf.shape(foreground)[1], tf.float32)
        positives = tf.reduce_sum(foreground, axis=1, keepdims=True)
        wanted = tf.where(positives > 0.0, self._ratio * positives, self._min_negatives)
        return tf.math.divide_no_nan(wanted, total - positives)


class ReweightUnmatched(ExpectedSampling):
    """Anchors with any foreground weigh 1 against their target; pure background ones weigh beta; nothing else."""

    def __call__(self, class_targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """See `ExpectedSampling`."""
        matched = tf.cast(class_targets[..., 0] < 1.0, tf.float32)
        return matched + (1.0 - matched) * self._beta(matched), tf.zeros_like(matched)


class BalancedSampler:
    """A random choice of `size` anchors per image, of which at most `positive_fraction` are positive; fewer positives
    make room for negatives."""

    def __init__(self, size: int, positive_fraction: float):
        self.size = size
        self._most_positive = int(size * positive_fraction)

    def __call__(self, candidates: tf.Tensor, positive: tf.Tensor, seed: tf.Tensor | None = None) -> tf.Tensor:
        """Bool `[B, A]`: may be sampled; has a foreground class. `seed` `[2]` makes the draw repeatable.

        Returns:
            bool `[B, A]`.
        """
        seed = randomness.next_seed() if seed is None else seed
        noise = tf.random.stateless_uniform(tf.shape(candidates), seed)
        chosen = _random_part(noise, candidates & positive, self._most_positive)
        left = self.size - tf.reduce_sum(tf.cast(chosen, tf.int32), axis=1, keepdims=True)
        return chosen | _random_part(noise, candidates & tf.logical_not(positive), left)


def _random_part(noise: tf.Tensor, candidates: tf.Tensor, number: int | tf.Tensor) -> tf.Tensor:
    """The `number` candidates of each row with the lowest noise: bool `[B, A]`."""
    order = tf.argsort(tf.where(candidates, noise, 2.0), axis=1)
    rank = tf.argsort(order, axis=1)  # the inverse permutation
    return candidates & (rank < number)
