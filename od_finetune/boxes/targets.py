"""Training targets: ground truth carried over to the anchors that matched it."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from od_finetune.boxes.coders import BoxCoder, KeypointCoder
from od_finetune.boxes.matching import UNMATCHED, Matcher
from od_finetune.boxes.similarity import Similarity


class Targets(NamedTuple):
    """What each anchor should predict, and how much it counts. `K` classes include the background if there is one."""

    class_targets: tf.Tensor  # float32 [B, A, K]
    class_weights: tf.Tensor  # float32 [B, A, K]
    box_targets: tf.Tensor  # float32 [B, A, code_size]; zeros where not matched
    box_weights: tf.Tensor  # float32 [B, A]; 0 where not matched
    matches: tf.Tensor  # int32 [B, A]; row of the ground truth, -1 unmatched, -2 ignored


class TargetAssigner:
    """Similarity, matcher and coder put together."""

    def __init__(self, similarity: Similarity, matcher: Matcher, coder: BoxCoder,
                 negative_class_weight: float = 1.0, unmatched_class_target: list[float] | None = None):
        """`unmatched_class_target` `[K]`: what an unmatched or ignored anchor should predict (default: all zero)."""
        self._similarity, self._matcher, self.coder = similarity, matcher, coder
        self._negative_class_weight = negative_class_weight
        self._unmatched = unmatched_class_target

    def assign(self, anchors: tf.Tensor, boxes: tf.Tensor, class_targets: tf.Tensor, weights: tf.Tensor,
               valid: tf.Tensor, keypoints: tf.Tensor | None = None) -> Targets:
        """Targets of a batch.

        Args:
            anchors: `[A, 4]`, same unit as `boxes`.
            boxes: `[B, N, 4]`, padded.
            class_targets: `[B, N, K]`, with the background column if the classifier has one.
            weights: `[B, N]`; a box of weight 0 still keeps its anchors from being background, but is forced on none.
            valid: bool `[B, N]`, false where padded.
            keypoints: `[B, N, keypoints, 2]` for a `KeypointCoder`.
        """
        matches = self._match(anchors, boxes, class_targets, weights, valid)
        matched = matches >= 0
        background = self._background(class_targets)
        matched_classes = tf.where(matched[..., None], _pick(class_targets, matches), background)
        box_weights = tf.where(matched, _pick(weights, matches), 0.0)
        class_weights = tf.where(matches == UNMATCHED, self._negative_class_weight, box_weights)
        class_weights = tf.broadcast_to(class_weights[..., None], tf.shape(matched_classes))
        codes = self._encode(anchors, boxes, matches, keypoints)
        return Targets(matched_classes, class_weights, codes, box_weights, matches)

    def _match(self, anchors: tf.Tensor, boxes: tf.Tensor, class_targets: tf.Tensor, weights: tf.Tensor,
               valid: tf.Tensor) -> tf.Tensor:
        similarity = self._similarity(boxes, anchors, scores=1.0 - class_targets[..., 0])
        return tf.stop_gradient(self._matcher(similarity, valid, valid & (weights > 0.0)))

    def _background(self, class_targets: tf.Tensor) -> tf.Tensor:
        if self._unmatched is None:
            return tf.zeros_like(class_targets[:1, :1])
        return tf.constant(self._unmatched, class_targets.dtype)

    def _encode(self, anchors: tf.Tensor, boxes: tf.Tensor, matches: tf.Tensor,
                keypoints: tf.Tensor | None) -> tf.Tensor:
        own = _pick(boxes, matches)
        if keypoints is not None and isinstance(self.coder, KeypointCoder):
            codes = self.coder.encode(own, anchors, _pick(keypoints, matches))
        else:
            codes = self.coder.encode(own, anchors)
        return tf.stop_gradient(tf.where((matches >= 0)[..., None], codes, 0.0))


def _pick(rows: tf.Tensor, matches: tf.Tensor) -> tf.Tensor:
    """`[B, N, ...]` -> `[B, A, ...]`: each anchor's row; zeros for anchors without one, also when N is 0."""
    padded = tf.concat([rows, _zero_row(rows)], axis=1)
    last = tf.shape(rows)[1]
    return tf.gather(padded, tf.where(matches >= 0, matches, last), batch_dims=1)


def _zero_row(rows: tf.Tensor) -> tf.Tensor:
    shape = tf.shape(rows)
    return tf.zeros(tf.concat([shape[:1], [1], shape[2:]], 0), rows.dtype)
