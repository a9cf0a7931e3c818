"""Losses of a two-stage detector (Ren et al. 2015, arXiv:1506.01497), each on sampled anchors or regions.

Ground truth is in the unit of anchors and regions: pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from od_finetune.boxes.proposals import Proposals
from od_finetune.boxes.sampling import BalancedSampler, HardExampleMiner
from od_finetune.boxes.ssd_loss import AnchorLoss
from od_finetune.boxes.targets import TargetAssigner, Targets
from od_finetune.fields import Groundtruth

RPN_LOCALIZATION = "Loss/RPNLoss/localization_loss"
RPN_OBJECTNESS = "Loss/RPNLoss/objectness_loss"
ROI_LOCALIZATION = "Loss/BoxClassifierLoss/localization_loss"
ROI_CLASSIFICATION = "Loss/BoxClassifierLoss/classification_loss"


class FirstStageLoss(NamedTuple):
    """Of the region proposal network."""

    assigner: TargetAssigner
    sampling: BalancedSampler
    localization: AnchorLoss
    objectness: AnchorLoss
    localization_weight: float = 1.0
    objectness_weight: float = 1.0

    def __call__(
        self, encodings: tf.Tensor, objectness: tf.Tensor, anchors: tf.Tensor, groundtruth: Groundtruth
    ) -> dict[str, tf.Tensor]:
        """`[B, A, 4]`, logits `[B, A, 2]`, `[A, 4]` -> scalars by name: of each image the mean over its sampled
        anchors, of these the mean over images."""
        is_object = tf.ones_like(groundtruth.weights)[..., tf.newaxis]
        targets = _assign(self.assigner, anchors, is_object, groundtruth)
        positive = tf.cast(targets.class_targets[..., 0], tf.bool)
        sampled = tf.cast(self.sampling(targets.class_weights[..., 0] > 0.0, positive), tf.float32)
        number = tf.maximum(tf.reduce_sum(sampled, axis=1), 1.0)
        wanted = tf.one_hot(tf.cast(positive, tf.int32), 2)
        box_losses = self.localization(encodings, targets.box_targets, sampled * targets.box_weights)
        class_losses = _per_anchor(self.objectness(objectness, wanted, sampled[..., tf.newaxis]))

        def mean(losses: tf.Tensor) -> tf.Tensor:
            return tf.reduce_mean(tf.reduce_sum(losses, axis=1) / number)

        return {
            RPN_LOCALIZATION: self.localization_weight * mean(box_losses),
            RPN_OBJECTNESS: self.objectness_weight * mean(class_losses),
        }


class SecondStageLoss(NamedTuple):
    """Of the classifier of regions."""

    assigner: TargetAssigner  # with the background as class 0
    sampling: BalancedSampler | None  # None: every proposal counts, or those that `miner` picks
    localization: AnchorLoss
    classification: AnchorLoss
    localization_weight: float = 1.0
    classification_weight: float = 1.0
    miner: HardExampleMiner | None = None

    def sample(self, proposed: Proposals, groundtruth: Groundtruth) -> Proposals:
        """The regions to train on: `sampling.size` per image, in their order, zeros where there are fewer."""
        targets = self._targets(proposed, groundtruth)
        positive = tf.argmax(targets.class_targets, axis=-1) > 0
        valid = _valid(proposed) & (tf.reduce_mean(targets.class_weights, axis=-1) > 0.0)
        chosen = self.sampling(valid, positive)
        count = tf.reduce_sum(tf.cast(chosen, tf.int32), axis=1)
        size = self.sampling.size
        order = tf.argsort(tf.cast(chosen, tf.int32), axis=1, direction="DESCENDING", stable=True)
        order = tf.pad(order, [[0, 0], [0, tf.maximum(size - tf.shape(order)[1], 0)]])[:, :size]
        boxes = tf.gather(proposed.boxes, order, batch_dims=1)
        boxes = tf.where(tf.sequence_mask(count, size)[..., tf.newaxis], boxes, 0.0)
        return Proposals(tf.ensure_shape(boxes, [proposed.boxes.shape[0], size, 4]), count)

    def targets(self, proposed: Proposals, groundtruth: Groundtruth) -> Targets:
        """What each region should predict; padded ones have weight 0."""
        targets = self._targets(proposed, groundtruth)
        real = tf.cast(_valid(proposed), tf.float32)
        return targets._replace(
            class_weights=targets.class_weights * real[..., tf.newaxis], box_weights=targets.box_weights * real
        )

    def _targets(self, proposed: Proposals, groundtruth: Groundtruth) -> Targets:
        classes = tf.pad(groundtruth.classes, [[0, 0], [0, 0], [1, 0]])
        return _assign(self.assigner, proposed.boxes, classes, groundtruth)

    def __call__(
        self, encodings: tf.Tensor, class_logits: tf.Tensor, proposed: Proposals, groundtruth: Groundtruth
    ) -> dict[str, tf.Tensor]:
        """`[B * P, K, 4]` (K: classes, or 1), `[B * P, C + 1]` -> scalars by name: of each image the mean over its
        regions, of these the mean over images."""
        targets = self.targets(proposed, groundtruth)
        shape = tf.shape(proposed.boxes)[:2]
        logits = tf.reshape(class_logits, [*tf.unstack(shape), class_logits.shape[-1]])
        own = self.of_target_class(tf.reshape(encodings, [*tf.unstack(shape), *encodings.shape[1:]]), targets)
        box_losses = self.localization(own, targets.box_targets, targets.box_weights)
        class_losses = _per_anchor(self.classification(logits, targets.class_targets, targets.class_weights))
        number = tf.cast(tf.maximum(proposed.count, 1)[:, tf.newaxis] * shape[0], tf.float32)
        box_losses, class_losses = box_losses / number, class_losses / number
        if self.miner is not None:
            selected = self.miner(box_losses, class_losses, proposed.boxes, targets.matches)
            box_losses, class_losses = box_losses * selected, class_losses * selected
        return {
            ROI_LOCALIZATION: self.localization_weight * tf.reduce_sum(box_losses),
            ROI_CLASSIFICATION: self.classification_weight * tf.reduce_sum(class_losses),
        }

    @staticmethod
    def of_target_class(predictions: tf.Tensor, targets: Targets) -> tf.Tensor:
        """`[B, P, K, ...]` -> `[B, P, ...]`: what is predicted for the class that a region should have; of the first
        class where that is background, which no box target is for."""
        if predictions.shape[2] == 1:
            return predictions[:, :, 0]
        wanted = tf.argmax(targets.class_targets, axis=-1, output_type=tf.int32)
        return tf.gather(predictions, tf.maximum(wanted - 1, 0), axis=2, batch_dims=2)


def _assign(
    assigner: TargetAssigner, anchors: tf.Tensor, class_targets: tf.Tensor, groundtruth: Groundtruth
) -> Targets:
    valid = tf.sequence_mask(groundtruth.num_boxes, tf.shape(groundtruth.boxes)[1])
    return assigner.assign(anchors, groundtruth.boxes, class_targets, groundtruth.weights, valid)


def _valid(proposed: Proposals) -> tf.Tensor:
    return tf.sequence_mask(proposed.count, tf.shape(proposed.boxes)[1])


def _per_anchor(losses: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(losses, axis=-1) if losses.shape.rank == 3 else losses
