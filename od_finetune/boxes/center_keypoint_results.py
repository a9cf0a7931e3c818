"""What becomes of the keypoints found for each task: those of all tasks together, in the image, and what they say of
their object's score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from od_finetune.boxes.center_grid import Grid


class Found(NamedTuple):
    """Keypoints of detected objects."""

    points: tf.Tensor  # float32 [B, D, K, 2] in cells
    scores: tf.Tensor  # float32 [B, D, K]
    depths: tf.Tensor | None = None  # float32 [B, D, K]; 0 where a keypoint has not snapped to a peak


def for_class(found: Found, wanted: tf.Tensor) -> Found:
    """Zeros for the objects that are not `wanted` bool `[B, D]`: those of other classes, those that are none."""
    points = tf.where(wanted[..., None, None], found.points, 0.0)
    scores = tf.where(wanted[..., None], found.scores, 0.0)
    return Found(points, scores, None if found.depths is None else tf.where(wanted[..., None], found.depths, 0.0))


def merge(tasks: Sequence[tuple[Found, Sequence[int]]], total: int) -> Found:
    """The keypoints of all tasks, each in its place among the `total` of the ground truth.

    Args:
        tasks: keypoints, zeros for objects of another class, and the indices of the task's types.
        total: of types. Types of no task are zeros, and so are depths of a task without.
    """
    merged = [_spread(found, tf.one_hot(list(indices), total)) for found, indices in tasks]
    depths = [found.depths for found in merged if found.depths is not None]
    return Found(
        tf.add_n([found.points for found in merged]),
        tf.add_n([found.scores for found in merged]),
        tf.add_n(depths) if depths else None,
    )


def _spread(found: Found, places: tf.Tensor) -> Found:
    """`places` `[K, total]`, one-hot."""
    depths = None if found.depths is None else tf.einsum("bdk,kt->bdt", found.depths, places)
    return Found(
        tf.einsum("bdkc,kt->bdtc", found.points, places), tf.einsum("bdk,kt->bdt", found.scores, places), depths
    )


def normalized(found: Found, grid: Grid, clip: bool = False) -> Found:
    """Relative to the true part of the image.

    Args:
        found: in cells.
        grid: where the images lie.
        clip: moves keypoints outside of the image onto its edge, and their scores become 0
            (`clip_out_of_frame_keypoints`).
    """
    points, scores = grid.normalize(found.points), found.scores
    if clip:
        scores = tf.where(tf.reduce_all((points >= 0.0) & (points <= 1.0), axis=-1), scores, 0.0)
        points = tf.clip_by_value(points, 0.0, 1.0)
    return found._replace(points=points, scores=scores)


def rescore(scores: tf.Tensor, keypoint_scores: tf.Tensor, wanted: tf.Tensor, threshold: float = 0.0) -> tf.Tensor:
    """Scores of objects `[B, D]`, those `wanted` times the mean score of their visible keypoints.

    Args:
        scores: of the objects.
        keypoint_scores: `[B, D, K]`, of the task.
        wanted: bool `[B, D]`, the objects of the task's class.
        threshold: above which a keypoint is visible (`rescoring_threshold`).
    """
    visible = tf.cast(keypoint_scores > threshold, tf.float32)
    count = tf.maximum(tf.reduce_sum(visible, axis=-1), 1.0)
    return tf.where(wanted, scores * tf.reduce_sum(visible * keypoint_scores, axis=-1) / count, scores)


def enclosing_boxes(points: tf.Tensor) -> tf.Tensor:
    """Keypoints `[B, D, K, 2]` -> the smallest boxes around them `[B, D, 4]`, where the network predicts none."""
    return tf.concat([tf.reduce_min(points, axis=2), tf.reduce_max(points, axis=2)], axis=-1)
