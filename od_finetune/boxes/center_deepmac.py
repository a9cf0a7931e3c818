"""CenterNet's deep mask heads (Birodkar et al., DeepMAC, 2021, arXiv:2104.00613): a small network draws the mask within
any box, from embeddings of the box's cells and of its centre. It learns from ground-truth boxes, so that it draws
classes it has never seen a mask of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from od_finetune import fields
from od_finetune.boxes import box_ops
from od_finetune.boxes.center_grid import Grid, gather_cells
from od_finetune.boxes.center_losses import ElementLoss


class DeepMasks(NamedTuple):
    """By the fields of the config's `deepmac_mask_estimation`. `M` is the side of a mask."""

    loss: ElementLoss  # classification_loss
    weight: float = 1.0  # task_loss_weight
    mask_size: int = 32
    use_xy: bool = True
    full_resolution: bool = False  # predict_full_resolution_masks: masks of the whole image instead of the box
    crop_size: int = 256  # postprocess_crop_size, of masks drawn at full resolution
    class_ids: Sequence[int] = ()  # 0-based; allowed_masked_classes_ids: whose masks are learnt from. None: all.

    def head_inputs(self, pixels: tf.Tensor, instances: tf.Tensor, boxes: tf.Tensor,
                    grid: Grid) -> tuple[tf.Tensor, tf.Tensor]:
        """What the mask network draws the masks of boxes from.

        Args:
            pixels: embeddings `[B, height, width, P]`.
            instances: embeddings `[B, height, width, E]`.
            boxes: `[B, N, 4]` in cells.
            grid: where the images lie.

        Returns:
            `[B * N, M, M, 2 + P]`: position within the box (-1 to 1; only with `use_xy`), embeddings. At full
            resolution `[B * N, height, width, 2 + P]`, the position relative to the box's centre in lengths of the
            image. And the embeddings of the boxes' centres, `[B * N, E]`.
        """
        y, x, _, _ = box_ops.to_center(boxes)
        centers = gather_cells(instances, grid.cells(tf.stack([y, x], axis=-1)))
        if self.full_resolution:
            features, positions = self._whole(pixels, y, x, grid)
        else:
            features, positions = self._cropped(pixels, boxes, grid)
        inputs = tf.concat([positions, features], axis=-1) if self.use_xy else features
        return inputs, tf.reshape(centers, [-1, instances.shape[-1]])

    def _cropped(self, pixels: tf.Tensor, boxes: tf.Tensor, grid: Grid) -> tuple[tf.Tensor, tf.Tensor]:
        size = [self.mask_size, self.mask_size]
        images = tf.repeat(tf.range(tf.shape(boxes)[0]), tf.shape(boxes)[1])
        features = tf.image.crop_and_resize(pixels, _windows(boxes, grid), images, size)
        steps = tf.linspace(-1.0, 1.0, self.mask_size)
        positions = tf.stack(tf.meshgrid(steps, steps, indexing="ij"), axis=-1)
        return features, tf.broadcast_to(positions, [tf.shape(features)[0], *size, 2])

    def _whole(self, pixels: tf.Tensor, y: tf.Tensor, x: tf.Tensor, grid: Grid) -> tuple[tf.Tensor, tf.Tensor]:
        features = tf.repeat(pixels, tf.shape(y)[1], axis=0)
        extent = tf.cast(tf.stack([grid.height, grid.width]), tf.float32)
        centers = tf.reshape(tf.stack([y, x], axis=-1) / extent, [-1, 1, 1, 2])
        steps = [tf.linspace(0.0, 1.0, size) for size in (grid.height, grid.width)]
        return features, tf.stack(tf.meshgrid(*steps, indexing="ij"), axis=-1) - centers

    def losses(self, logits: Sequence[tf.Tensor], groundtruth: fields.Groundtruth, grid: Grid) -> tf.Tensor:
        """Weighted loss per object with a mask to learn from.

        Args:
            logits: what the network has drawn for the ground-truth boxes, `[B * N, M, M]` (or the maps' size), one per
                output of the network.
            groundtruth: with masks.
            grid: where the images lie.
        """
        weights = groundtruth.weights
        if self.class_ids:
            allowed = tf.reduce_sum(tf.one_hot(list(self.class_ids), groundtruth.classes.shape[-1]), axis=0)
            weights = weights * tf.gather(allowed, tf.argmax(groundtruth.classes, axis=-1))
        targets = self._targets(groundtruth, grid)
        weights = tf.reshape(weights, [-1])
        total = tf.add_n([tf.reduce_sum(self._per_object(drawn, targets) * weights) for drawn in logits])
        return self.weight * total / (len(logits) * tf.maximum(tf.reduce_sum(weights), 1.0))

    def _targets(self, groundtruth: fields.Groundtruth, grid: Grid) -> tf.Tensor:
        """`[B * N, M, M]`, at full resolution of the input's size."""
        shape = tf.shape(groundtruth.masks)
        masks = tf.reshape(groundtruth.masks, [-1, shape[2], shape[3]])
        if self.full_resolution:
            return tf.cast(masks, tf.float32)
        windows = _windows(grid.place(groundtruth.boxes), grid)
        crops = tf.image.crop_and_resize(masks[..., None], windows, tf.range(tf.shape(masks)[0]), [self.mask_size] * 2)
        return tf.stop_gradient(crops[..., 0])

    def _per_object(self, logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        """`[B * N]`: the mean over pixels, unless the loss function (Dice) has summed them up itself."""
        if self.full_resolution:
            logits = tf.image.resize(logits[..., None], tf.shape(targets)[1:])[..., 0]
        flat = [tf.reshape(x, [tf.shape(x)[0], -1, 1]) for x in (logits, targets)]
        loss = self.loss(*flat, tf.ones_like(flat[0]))
        return tf.reduce_mean(loss, axis=list(range(1, loss.shape.rank)))

    def decode(self, logits: tf.Tensor, boxes: tf.Tensor, grid: Grid) -> tf.Tensor:
        """Masks of detected objects within their boxes.

        Args:
            logits: what the network has drawn for `boxes`, `[B * D, M, M]` or `[B * D, height, width]`.
            boxes: `[B, D, 4]` in cells.
            grid: where the images lie.

        Returns:
            Probabilities `[B, D, M, M]`, of masks at full resolution `[B, D, crop_size, crop_size]`.
        """
        if self.full_resolution:
            size = [grid.height * grid.stride, grid.width * grid.stride]
            logits = tf.image.resize(logits[..., None], size)
            logits = tf.image.crop_and_resize(
                logits, _windows(boxes, grid), tf.range(tf.shape(logits)[0]), [self.crop_size] * 2)[..., 0]
        side = self.crop_size if self.full_resolution else self.mask_size
        return tf.reshape(tf.sigmoid(logits), [tf.shape(boxes)[0], boxes.shape[1] or tf.shape(boxes)[1], side, side])


def _windows(boxes: tf.Tensor, grid: Grid) -> tf.Tensor:
    """`[B, N, 4]` in cells -> `[B * N, 4]` relative to the maps, without gradient."""
    extent = tf.cast(tf.stack([grid.height, grid.width] * 2), tf.float32)
    return tf.stop_gradient(tf.reshape(boxes / extent, [-1, 4]))
