"""The loss of a single-stage detector: targets, per-anchor losses, sampling, normalisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from od_finetune.boxes.sampling import HardExampleMiner, RandomExampleSampler
from od_finetune.boxes.targets import TargetAssigner, Targets

AnchorLoss = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


class LossParts(NamedTuple):
    """Built from the `loss` message of a config."""

    localization: AnchorLoss
    classification: AnchorLoss
    localization_weight: float = 1.0
    classification_weight: float = 1.0
    miner: HardExampleMiner | None = None
    sampler: RandomExampleSampler | None = None
    expected_weights: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]] | None = None


class SsdLossOptions(NamedTuple):
    """The fields of the `ssd` message that shape the loss."""

    normalize_by_num_matches: bool = True
    normalize_localization_by_codesize: bool = False
    has_background: bool = True  # class predictions and targets have a background column, the first


class SsdLosses(NamedTuple):
    """Weighted scalars, and the targets they were computed against."""

    localization: tf.Tensor
    classification: tf.Tensor
    targets: Targets


def ssd_loss(box_encodings: tf.Tensor, class_logits: tf.Tensor, anchors: tf.Tensor, boxes: tf.Tensor,
             class_targets: tf.Tensor, weights: tf.Tensor, valid: tf.Tensor, assigner: TargetAssigner,
             parts: LossParts, options: SsdLossOptions, unmatched_class_target: list[float] | None = None) -> SsdLosses:
    """Losses of a batch.

    Args:
        box_encodings: `[B, A, code_size]`.
        class_logits: `[B, A, K]`, background first if there is one.
        anchors: `[A, 4]`.
        boxes: ground truth `[B, N, 4]`, padded.
        class_targets: `[B, N, K]`, with the background column (0 for real objects) if there is one.
        weights: `[B, N]`.
        valid: bool `[B, N]`.
        assigner: makes the targets.
        parts: the loss functions and how anchors are sampled.
        options: normalisation and kind of targets.
        unmatched_class_target: `[K]`; needed by `parts.expected_weights` alone.
    """
    targets = assigner.assign(anchors, boxes, class_targets, weights, valid)
    if parts.sampler is not None:
        targets = _sampled(targets, parts.sampler, options.has_background)
    box_losses = _localization(box_encodings, anchors, targets, assigner, parts)
    class_losses = parts.classification(class_logits, targets.class_targets, targets.class_weights)

    if parts.expected_weights is not None:
        unmatched = [1.0] + [0.0] * (class_logits.shape[-1] - 1) if unmatched_class_target is None else (
            unmatched_class_target)
        box_losses, class_losses = _expected(box_losses, class_losses, class_logits, targets, parts, unmatched)
    elif parts.miner is not None:
        class_losses = _per_anchor(class_losses)
        selected = parts.miner(box_losses, class_losses, assigner.coder.decode(box_encodings, anchors),
                               targets.matches)
        box_losses, class_losses = box_losses * selected, class_losses * selected

    normalizer = tf.maximum(tf.reduce_sum(targets.box_weights), 1.0) if options.normalize_by_num_matches else 1.0
    code_size = assigner.coder.code_size if options.normalize_localization_by_codesize else 1
    localization = parts.localization_weight / (normalizer * code_size) * tf.reduce_sum(box_losses)
    classification = parts.classification_weight / normalizer * tf.reduce_sum(class_losses)
    return SsdLosses(localization, classification, targets)


def _sampled(targets: Targets, sampler: RandomExampleSampler, has_background: bool) -> Targets:
    foreground = targets.class_targets[..., 1:] if has_background else targets.class_targets
    # Cast, not compare: the OD API takes any target that is not 0 for a positive one, negative ones included.
    positive = tf.cast(tf.reduce_sum(foreground, axis=-1), tf.bool)
    candidates = tf.cast(tf.reduce_mean(targets.class_weights, axis=-1), tf.bool)
    chosen = sampler(positive, candidates)
    return targets._replace(class_weights=targets.class_weights * chosen[..., None],
                            box_weights=targets.box_weights * chosen)


def _localization(box_encodings: tf.Tensor, anchors: tf.Tensor, targets: Targets, assigner: TargetAssigner,
                  parts: LossParts) -> tf.Tensor:
    predicted, wanted = box_encodings, targets.box_targets
    if getattr(parts.localization, "on_boxes", False):
        # An overlap means something between boxes only; the OD API hands such losses the codes.
        predicted, wanted = (assigner.coder.decode(codes, anchors) for codes in (predicted, wanted))
    return parts.localization(predicted, wanted, targets.box_weights)


def _per_anchor(losses: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(losses, axis=-1) if losses.shape.rank == 3 else losses


def _expected(box_losses: tf.Tensor, class_losses: tf.Tensor, class_logits: tf.Tensor, targets: Targets,
              parts: LossParts, unmatched: list[float]) -> tuple[tf.Tensor, tf.Tensor]:
    """Losses weighted by the chance that an anchor would be sampled as foreground or as background.

    Losses per class (sigmoid) treat every class of an anchor as an anchor of its own with two classes.
    """
    background = tf.broadcast_to(tf.constant(unmatched, tf.float32), tf.shape(targets.class_targets))
    background_losses = parts.classification(class_logits, background, targets.class_weights)
    class_targets = targets.class_targets
    if class_losses.shape.rank == 3:
        shape, classes = tf.shape(class_targets), class_targets.shape[-1]
        class_losses, background_losses = (tf.reshape(x, [shape[0], -1]) for x in (class_losses, background_losses))
        class_targets = tf.reshape(class_targets, [shape[0], -1, 1])
        class_targets = tf.concat([1.0 - class_targets, class_targets], axis=-1)
        box_losses = tf.repeat(box_losses, classes, axis=1)
    foreground_weight, background_weight = parts.expected_weights(class_targets)
    return box_losses * foreground_weight, foreground_weight * class_losses + background_weight * background_losses
