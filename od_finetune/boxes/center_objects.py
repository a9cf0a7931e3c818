"""The object centre and box tasks of CenterNet: from network outputs and ground truth to losses and detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from od_finetune import fields
from od_finetune.boxes import center_decode, center_losses, center_targets
from od_finetune.boxes.center_grid import Grid, count_real
from od_finetune.boxes.center_losses import ElementLoss


class ObjectCenters(NamedTuple):
    """The heat maps of object centres, by the fields of the config's `object_center_params`."""

    loss: ElementLoss
    weight: float = 1.0  # object_center_loss_weight
    min_iou: float = 0.7  # min_box_overlap_iou
    max_detections: int = 100  # max_box_predictions
    kernel: int = 3  # peak_max_pool_kernel_size
    static: bool = False  # the model's compute_heatmap_sparse

    def losses(self, logits: Sequence[tf.Tensor], groundtruth: fields.Groundtruth, grid: Grid,
               labeled_classes: tf.Tensor | None = None) -> tf.Tensor:
        """Weighted loss per object.

        Args:
            logits: `[B, height, width, C]`, one per output of the network.
            groundtruth: normalised to the true part of the image.
            grid: where the images lie.
            labeled_classes: float32 `[B, C]`, 1 for the classes that were looked for in the image; all others have no
                loss there. None: all were.
        """
        boxes = grid.place(groundtruth.boxes)
        targets = center_targets.box_heat_map(boxes, groundtruth.classes, groundtruth.weights, grid, self.min_iou,
                                              self.static)
        return self.losses_of(targets, logits, groundtruth, grid, labeled_classes)

    def losses_of(self, targets: tf.Tensor, logits: Sequence[tf.Tensor], groundtruth: fields.Groundtruth, grid: Grid,
                  labeled_classes: tf.Tensor | None = None) -> tf.Tensor:
        """As `losses`, for given heat maps `[B, height, width, C]`."""
        weights = grid.valid()
        if labeled_classes is not None:
            weights = weights * labeled_classes[:, None, None, :]
        objects = count_real(groundtruth.weights)
        return self.weight * center_losses.pixel_loss(logits, targets, weights, self.loss, objects)

    def decode(self, logits: tf.Tensor, grid: Grid) -> tuple[tf.Tensor, center_decode.Peaks]:
        """Logits `[B, height, width, C]` of the last output -> probabilities, 0 in the padding, and their peaks.

        The OD API compares rows and columns of the grid with pixels of the image, so that its peaks may lie in the
        padding; boxes there are empty once clipped.
        """
        heat = tf.sigmoid(logits) * grid.valid()
        return heat, center_decode.top_peaks(heat, self.max_detections, self.kernel)


class Boxes(NamedTuple):
    """Sizes and offsets of boxes, by the fields of the config's `object_detection_task`."""

    loss: ElementLoss  # localization_loss
    weight: float = 1.0  # task_loss_weight
    scale_weight: float = 0.1  # scale_loss_weight
    offset_weight: float = 1.0  # offset_loss_weight

    def losses(self, sizes: Sequence[tf.Tensor], offsets: Sequence[tf.Tensor], groundtruth: fields.Groundtruth,
               grid: Grid) -> tuple[tf.Tensor, tf.Tensor]:
        """Weighted losses per object of `sizes` and of `offsets`, both `[B, height, width, 2]` per output."""
        cells, *targets = center_targets.box_targets(grid.place(groundtruth.boxes), grid)
        objects = count_real(groundtruth.weights)
        scale, offset = (
            center_losses.cell_loss(maps, cells, target, groundtruth.weights, self.loss, objects)
            for maps, target in zip((sizes, offsets), targets, strict=True)
        )
        return self.weight * self.scale_weight * scale, self.weight * self.offset_weight * offset
