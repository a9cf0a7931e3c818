"""How alike ground-truth boxes `[B, N, 4]` and anchors `[A, 4]` are: `[B, N, A]`, higher is more alike."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from od_finetune.boxes import box_ops

Similarity = Callable[..., tf.Tensor]  # (boxes [B, N, 4], anchors [A, 4], scores [B, N]) -> [B, N, A]


def iou_similarity(boxes: tf.Tensor, anchors: tf.Tensor, scores: tf.Tensor | None = None) -> tf.Tensor:
    """Intersection over union."""
    return box_ops.pairwise_iou(boxes, anchors)


def ioa_similarity(boxes: tf.Tensor, anchors: tf.Tensor, scores: tf.Tensor | None = None) -> tf.Tensor:
    """Intersection over the anchor's area."""
    return box_ops.pairwise_ioa(boxes, anchors)


def neg_sq_dist_similarity(boxes: tf.Tensor, anchors: tf.Tensor, scores: tf.Tensor | None = None) -> tf.Tensor:
    """Negative squared distance between the boxes as points of a four-dimensional space."""
    difference = tf.expand_dims(boxes, -2) - tf.expand_dims(anchors, -3)
    return -tf.reduce_sum(tf.square(difference), axis=-1)


class ThresholdedIouSimilarity:
    """The ground-truth box's own score where its IoU passes a threshold, else 0: scores then decide between boxes."""

    def __init__(self, iou_threshold: float = 0.5):
        self._threshold = iou_threshold

    def __call__(self, boxes: tf.Tensor, anchors: tf.Tensor, scores: tf.Tensor | None = None) -> tf.Tensor:
        """`scores` `[B, N]`: 1 minus the box's background probability; ones if left out."""
        iou = box_ops.pairwise_iou(boxes, anchors)
        scores = tf.ones_like(boxes[..., 0]) if scores is None else scores
        return tf.where(iou > self._threshold, tf.expand_dims(scores, -1), tf.zeros_like(iou))
