"""Mask R-CNN's loss (He et al. 2017, arXiv:1703.06870, section 3): of each region that is an object, the mask of its
own class, cell by cell."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from od_finetune.boxes.proposals import Proposals, Size
from od_finetune.boxes.targets import Targets
from od_finetune.boxes.two_stage_loss import SecondStageLoss

MASK = "Loss/BoxClassifierLoss/mask_loss"


class MaskLoss(NamedTuple):
    """Cross entropy of independent cells, the mean over those of all regions that count."""

    weight: float = 1.0

    def __call__(
        self,
        logits: tf.Tensor,
        proposed: Proposals,
        targets: Targets,
        masks: tf.Tensor,
        image_size: tuple[Size, Size],
    ) -> dict[str, tf.Tensor]:
        """One scalar by name.

        Args:
          logits: `[B * P, K, m, n]`; K is the number of classes, or 1 where they share a mask.
          proposed: the regions, in pixels.
          targets: of the regions.
          masks: uint8 `[B, N, H, W]`, of the ground truth that `targets` matched, in the frame of the images.
          image_size: height and width of that frame in pixels.
        """
        _, _, height, width = logits.shape
        each = tf.reshape(logits, [*tf.unstack(tf.shape(proposed.boxes)[:2]), *logits.shape[1:]])
        own = SecondStageLoss.of_target_class(each, targets)
        wanted = mask_targets(proposed.boxes, targets.matches, masks, image_size, (height, width))
        losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=wanted, logits=own)
        weights = targets.box_weights  # 0 for what is no object
        cells = tf.maximum(tf.reduce_sum(weights) * height * width, 1.0)
        return {MASK: self.weight * tf.reduce_sum(losses * weights[..., tf.newaxis, tf.newaxis]) / cells}


def mask_targets(
    boxes: tf.Tensor, matches: tf.Tensor, masks: tf.Tensor, image_size: tuple[Size, Size], size: tuple[int, int]
) -> tf.Tensor:
    """What each region `[B, P, 4]` (pixels) shows of the mask `[B, N, H, W]` it matched (int32 `[B, P]`, a row of N;
    of any mask where negative), cropped bilinearly: float32 `[B, P, *size]`."""
    if not masks.shape[1]:  # there may be none
        masks = tf.pad(masks, [[0, 0], [0, tf.maximum(1 - tf.shape(masks)[1], 0)], [0, 0], [0, 0]])
    batch, count = tf.unstack(tf.shape(matches))
    rows = tf.shape(masks)[1]
    each = tf.reshape(masks, [batch * rows, *tf.unstack(tf.shape(masks)[2:]), 1])
    index = tf.range(batch)[:, tf.newaxis] * rows + tf.maximum(matches, 0)
    sides = tf.cast(tf.stack([*image_size, *image_size]), tf.float32)
    crops = tf.image.crop_and_resize(each, tf.reshape(boxes / sides, [-1, 4]), tf.reshape(index, [-1]), size)
    return tf.stop_gradient(tf.reshape(crops, [batch, count, *size]))
