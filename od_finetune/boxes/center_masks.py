"""CenterNet's instance masks: a map per class says which cells any object of the class covers; an object's mask is what
lies within its box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from od_finetune import fields
from od_finetune.boxes import center_losses
from od_finetune.boxes.center_grid import Grid
from od_finetune.boxes.center_losses import ElementLoss


def mask_targets(masks: tf.Tensor, classes: tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor) -> tf.Tensor:
    """Which cells objects of each class cover.

    Args:
        masks: `[B, N, H, W]` in 0..1, in the frame of the network's input.
        classes: `[B, N, C]`.
        height, width: of the output, in cells.

    Returns:
        float32 `[B, height, width, C]` in [0, 1]: the highest of all objects; on the edge of an object how much of the
        cell's middle (bilinear, without smoothing) it covers.
    """
    shape, channels = tf.shape(classes), classes.shape[-1]
    chosen = tf.cast(tf.where(classes > 0.0), tf.int32)
    picked = tf.gather_nd(masks, chosen[:, :2])
    small = tf.image.resize(picked[..., None], [height, width])[..., 0] * tf.gather_nd(classes, chosen)[:, None, None]
    highest = tf.math.unsorted_segment_max(small, chosen[:, 0] * shape[2] + chosen[:, 2], shape[0] * shape[2])
    highest = tf.reshape(tf.maximum(highest, 0.0), [shape[0], shape[2], height, width])
    return tf.ensure_shape(tf.transpose(highest, [0, 2, 3, 1]), [None, None, None, channels])


class Masks(NamedTuple):
    """By the fields of the config's `mask_estimation_task`."""

    loss: ElementLoss  # classification_loss
    weight: float = 1.0  # task_loss_weight
    height: int = 256  # mask_height: cells of an object's mask
    width: int = 256  # mask_width
    threshold: float = 0.5  # score_threshold

    def losses(self, logits: Sequence[tf.Tensor], groundtruth: fields.Groundtruth, grid: Grid) -> tf.Tensor:
        """Weighted loss per cell that is no padding, of `logits` `[B, height, width, C]`, one per output."""
        targets = mask_targets(groundtruth.masks, groundtruth.classes, grid.height, grid.width)
        valid = grid.valid()
        cells = tf.maximum(tf.reduce_sum(valid), 1.0)
        return self.weight * center_losses.pixel_loss(logits, targets, valid, self.loss, cells)

    def decode(self, logits: tf.Tensor, boxes: tf.Tensor, classes: tf.Tensor, grid: Grid) -> tf.Tensor:
        """Masks of detected objects within their boxes.

        Args:
            logits: `[B, height, width, C]` of the last output.
            boxes: `[B, D, 4]` relative to the true part of the image.
            classes: int32 `[B, D]`.
            grid: where the images lie.

        Returns:
            float32 `[B, D, self.height, self.width]`, 0 or 1.
        """
        shape, channels = tf.shape(logits), logits.shape[-1] or tf.shape(logits)[3]
        maps = tf.reshape(tf.transpose(tf.sigmoid(logits), [0, 3, 1, 2]), [-1, shape[1], shape[2], 1])
        owners = tf.range(shape[0])[:, None] * channels + classes
        windows = tf.reshape(grid.windows(boxes), [-1, 4])
        crops = tf.image.crop_and_resize(maps, windows, tf.reshape(owners, [-1]), [self.height, self.width])
        covered = tf.cast(crops >= self.threshold, tf.float32)
        return tf.reshape(covered, [shape[0], boxes.shape[1] or tf.shape(boxes)[1], self.height, self.width])
