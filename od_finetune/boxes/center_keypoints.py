"""What a CenterNet should predict for keypoints, and its losses (Zhou et al., Objects as Points, 2019, section 4.2).

A keypoint of each type has a heat map of its own, whatever object it belongs to, and an offset within its cell. An
object's centre predicts, besides, about where each of its keypoints is. Coordinates are in cells, see `center_grid`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from od_finetune import fields
from od_finetune.boxes import box_ops, center_losses, center_targets
from od_finetune.boxes.center_grid import Grid, gather_cells, gather_channels
from od_finetune.boxes.center_losses import ElementLoss

_MIN_IOU = 0.7  # of the Gaussians of keypoints; the config language has no field for it


class Labels(NamedTuple):
    """The keypoints of one task."""

    points: tf.Tensor  # float32 [B, N, K, 2] in cells; zeros where not labelled
    weights: tf.Tensor  # float32 [B, N, K]; 0 where not labelled, padded, or of an object of another class


def select(groundtruth: fields.Groundtruth, class_id: int, indices: Sequence[int], grid: Grid) -> Labels:
    """The keypoints `indices` of the objects of the class `class_id` (0-based)."""
    points = tf.gather(groundtruth.keypoints, list(indices), axis=2)
    labelled = tf.logical_not(tf.reduce_any(tf.math.is_nan(points), axis=-1))
    points = tf.where(labelled[..., None], points, 0.0)
    of_class = groundtruth.classes[..., class_id] * groundtruth.weights
    return Labels(grid.place(points), of_class[..., None] * tf.cast(labelled, tf.float32))


def heat_map(labels: Labels, boxes: tf.Tensor, std_devs: Sequence[float], grid: Grid,
             static: bool = False) -> tf.Tensor:
    """A channel per type of keypoint: `[B, height, width, K]`.

    Args:
        labels: of `N` objects.
        boxes: of the objects, `[B, N, 4]` in cells; the larger a box, the wider its keypoints' Gaussians.
        std_devs: `K` numbers that the Gaussians of each type are wider by.
        grid, static: see `center_targets.heat_map`.
    """
    _, _, height, width = box_ops.to_center(boxes)
    sigmas = center_targets.gaussian_sigma(height, width, _MIN_IOU)[..., None] * tf.constant(list(std_devs), tf.float32)
    shape = tf.shape(sigmas)
    types = tf.broadcast_to(tf.eye(len(std_devs)), [shape[0], shape[1], len(std_devs), len(std_devs)])
    points, sigmas, types, weights = (
        tf.reshape(x, tf.concat([[shape[0], shape[1] * shape[2]], tf.shape(x)[3:]], 0))
        for x in (labels.points, sigmas, types, labels.weights)
    )
    types = tf.ensure_shape(types, [None, None, len(std_devs)])
    return center_targets.heat_map(points, sigmas, types, weights, grid, static)


def known_cells(labels: Labels, boxes: tf.Tensor, grid: Grid) -> tf.Tensor:
    """float32 `[B, height, width, K]`: 0 within the boxes of objects whose keypoint of the type has no weight.

    Such an object may well show the keypoint, so that nothing is to be learnt from its box. As in the OD API these are
    the objects of other classes as well.
    """
    unknown = tf.cast(labels.weights < 1e-3, tf.float32)
    ymin, xmin, ymax, xmax = (x[..., None] for x in tf.unstack(boxes, axis=-1))
    rows, columns = tf.cast(tf.range(grid.height), tf.float32), tf.cast(tf.range(grid.width), tf.float32)
    rows = tf.cast((rows >= ymin) & (rows < ymax), tf.float32)
    columns = tf.cast((columns >= xmin) & (columns < xmax), tf.float32)
    inside = tf.einsum("bnh,bnw,bnk->bhwk", rows, columns, unknown)
    return tf.cast(inside < 0.5, tf.float32)


class Around(NamedTuple):
    """The cells around some points."""

    cells: tf.Tensor  # int32 [..., M, 2]; (0, 0) where outside of the grid
    inside: tf.Tensor  # float32 [..., M]: 1 where within the grid


def cells_around(points: tf.Tensor, radius: int, grid: Grid) -> Around:
    """The cells no farther than `radius` from the cell of each point `[..., 2]`."""
    reach = range(-radius, radius + 1)
    steps = [[y, x] for y in reach for x in reach if y * y + x * x <= radius * radius]
    cells = tf.floor(points)[..., None, :] + tf.constant(steps, tf.float32)
    ends = tf.cast(tf.stack([grid.height, grid.width]), tf.float32)
    inside = tf.reduce_all((cells >= 0.0) & (cells < ends), axis=-1)
    return Around(tf.cast(tf.where(inside[..., None], cells, 0.0), tf.int32), tf.cast(inside, tf.float32))


class Predictions(NamedTuple):
    """Maps `[B, height, width, ...]`, one per output of the network."""

    heat: Sequence[tf.Tensor]  # logits, K channels
    offsets: Sequence[tf.Tensor]  # 2 channels, or 2 K (y and x of the first type, then of the next)
    regressions: Sequence[tf.Tensor]  # 2 K channels
    depths: Sequence[tf.Tensor] | None = None  # 1 channel, or K


class Losses(NamedTuple):
    """Weighted scalars."""

    heat: tf.Tensor
    offset: tf.Tensor
    regression: tf.Tensor
    depth: tf.Tensor | None


class Keypoints(NamedTuple):
    """Training of one `keypoint_estimation_task`, by its fields."""

    class_id: int  # 0-based
    indices: Sequence[int]  # of its keypoints among all of the ground truth
    std_devs: Sequence[float]  # keypoint_label_to_std, in the order of `indices`
    classification_loss: ElementLoss
    localization_loss: ElementLoss
    weight: float = 1.0  # task_loss_weight
    heat_weight: float = 1.0  # keypoint_heatmap_loss_weight
    offset_weight: float = 1.0  # keypoint_offset_loss_weight
    regression_weight: float = 1.0  # keypoint_regression_loss_weight
    depth_weight: float = 1.0  # keypoint_depth_loss_weight
    radius: int = 0  # offset_peak_radius: how far around a keypoint or centre cells learn its offsets
    static: bool = False  # the model's compute_heatmap_sparse

    def losses(self, predictions: Predictions, groundtruth: fields.Groundtruth, grid: Grid) -> Losses:
        """Weighted losses, each per labelled keypoint (offsets: and cell around it).

        Args:
            predictions: the task's maps.
            groundtruth: with keypoints, and depths where `predictions` have some.
            grid: where the images lie.
        """
        labels = select(groundtruth, self.class_id, self.indices, grid)
        boxes = grid.place(groundtruth.boxes)
        around = cells_around(labels.points, self.radius, grid)
        depth = None
        if predictions.depths is not None:
            depth = self.weight * self.depth_weight * self._depth_loss(predictions.depths, labels, around, groundtruth)
        return Losses(
            self.weight * self.heat_weight * self._heat_loss(predictions.heat, labels, boxes, grid),
            self.weight * self.offset_weight * self._offset_loss(predictions.offsets, labels, around),
            self.weight * self.regression_weight * self._regression_loss(predictions.regressions, labels, boxes, grid),
            depth,
        )

    def _heat_loss(self, logits: Sequence[tf.Tensor], labels: Labels, boxes: tf.Tensor, grid: Grid) -> tf.Tensor:
        targets = heat_map(labels, boxes, self.std_devs, grid, self.static)
        weights = grid.valid() * known_cells(labels, boxes, grid)
        # The OD API counts in whole keypoints of each type and image.
        count = tf.maximum(tf.reduce_sum(tf.floor(tf.reduce_sum(labels.weights, axis=1))), 1.0)
        return center_losses.pixel_loss(logits, targets, weights, self.classification_loss, count)

    def _offset_loss(self, maps: Sequence[tf.Tensor], labels: Labels, around: Around) -> tf.Tensor:
        targets = labels.points[..., None, :] - tf.cast(around.cells, tf.float32)
        weights = labels.weights[..., None] * around.inside
        return self._loss([self._at(around, x, 2) for x in maps], _rows(targets, 2), _rows(weights))

    def _depth_loss(self, maps: Sequence[tf.Tensor], labels: Labels, around: Around,
                    groundtruth: fields.Groundtruth) -> tf.Tensor:
        depths, weights = (
            tf.gather(x, list(self.indices), axis=2)[..., None]
            for x in (groundtruth.keypoint_depths, groundtruth.keypoint_depth_weights)
        )
        known = tf.logical_not(tf.math.is_nan(depths) | tf.math.is_nan(weights))
        weights = tf.where(known, weights, 0.0) * labels.weights[..., None] * around.inside
        depths = tf.where(known, depths, 0.0) * tf.ones_like(around.inside)
        return self._loss([self._at(around, x, 1) for x in maps], _rows(depths[..., None], 1), _rows(weights))

    def _at(self, around: Around, maps: tf.Tensor, width: int) -> tf.Tensor:
        """What maps with a group of channels for each type hold around the keypoints, `[B, N * K * M, width]`."""
        types = tf.range(len(self.indices))[:, None] * tf.ones_like(around.cells[..., 0])
        return gather_channels(maps, _rows(around.cells, 2), _rows(types), width)

    def _regression_loss(self, maps: Sequence[tf.Tensor], labels: Labels, boxes: tf.Tensor, grid: Grid) -> tf.Tensor:
        y, x, _, _ = box_ops.to_center(boxes)
        around = cells_around(tf.stack([y, x], axis=-1), self.radius, grid)  # of centres: [B, N, M]
        targets = labels.points[:, :, None] - tf.cast(around.cells, tf.float32)[:, :, :, None]  # [B, N, M, K, 2]
        weights = labels.weights[:, :, None] * around.inside[..., None]
        predicted = [_pairs(gather_cells(x, _rows(around.cells, 2))) for x in maps]
        return self._loss(predicted, _rows(targets, 2), _rows(weights))

    def _loss(self, predicted: Sequence[tf.Tensor], targets: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """Per unit of weight."""
        count = tf.maximum(tf.reduce_sum(weights), 1.0)
        return center_losses.gathered_loss(predicted, targets, weights, self.localization_loss, count)


def _rows(values: tf.Tensor, width: int | None = None) -> tf.Tensor:
    """`[B, ..., width]` -> `[B, N, width]`; without a width, `[B, ...]` -> `[B, N]`."""
    return tf.reshape(values, [tf.shape(values)[0], -1] + ([] if width is None else [width]))


def _pairs(values: tf.Tensor) -> tf.Tensor:
    """`[B, N, 2 K]` -> `[B, N * K, 2]`."""
    return _rows(values, 2)
