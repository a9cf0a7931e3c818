"""CenterNet's tracking: an embedding that tells objects apart (Zhang et al., FairMOT, 2020, arXiv:2004.01888), and how
far an object has moved since the frame before (Zhou et al., Tracking Objects as Points, 2020, arXiv:2004.01177)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from od_finetune import fields
from od_finetune.boxes import center_losses, center_targets
from od_finetune.boxes.center_grid import Grid, count_real, gather_cells
from od_finetune.boxes.center_losses import ElementLoss


class Tracks(NamedTuple):
    """By the fields of the config's `track_estimation_task`."""

    loss: ElementLoss  # classification_loss
    num_ids: int  # num_track_ids
    weight: float = 1.0  # task_loss_weight

    def losses(self, embeddings: Sequence[tf.Tensor], classify: Callable[[tf.Tensor], tf.Tensor],
               groundtruth: fields.Groundtruth, grid: Grid) -> tf.Tensor:
        """Weighted loss per object: embeddings are learnt by telling which track of the whole dataset they are.

        Args:
            embeddings: maps `[B, height, width, E]`, one per output of the network.
            classify: `[B, N, E]` -> logits `[B, N, num_ids]`; needed in training only.
            groundtruth: with track ids. An object with an id outside of `0 .. num_ids - 1` is on no track and learns
                nothing.
            grid: where the images lie.
        """
        cells = center_targets.box_targets(grid.place(groundtruth.boxes), grid).cells
        ids = groundtruth.track_ids
        weights = groundtruth.weights * tf.cast((ids >= 0) & (ids < self.num_ids), tf.float32)
        logits = [classify(gather_cells(maps, cells)) for maps in embeddings]
        objects = count_real(groundtruth.weights)
        return self.weight * center_losses.gathered_loss(
            logits, tf.one_hot(ids, self.num_ids), weights[..., None], self.loss, objects)


def embeddings_at(maps: tf.Tensor, cells: tf.Tensor) -> tf.Tensor:
    """Embeddings of the objects with their centres in `cells` int32 `[B, D, 2]`, of length 1: `[B, D, E]`."""
    return tf.math.l2_normalize(gather_cells(maps, cells), axis=-1)


class TemporalOffsets(NamedTuple):
    """By the fields of the config's `temporal_offset_task`. Decoding is `center_grid.gather_cells`."""

    loss: ElementLoss  # localization_loss
    weight: float = 1.0  # task_loss_weight

    def losses(self, offsets: Sequence[tf.Tensor], groundtruth: fields.Groundtruth, grid: Grid) -> tf.Tensor:
        """Weighted loss per object.

        Args:
            offsets: maps `[B, height, width, 2]`, one per output of the network, in the unit of the ground truth's.
            groundtruth: with temporal offsets and match flags; an object without a match learns nothing.
            grid: where the images lie.
        """
        cells = center_targets.box_targets(grid.place(groundtruth.boxes), grid).cells
        weights = groundtruth.weights * groundtruth.track_match_flags
        objects = count_real(groundtruth.weights)
        return self.weight * center_losses.cell_loss(
            offsets, cells, groundtruth.temporal_offsets, weights, self.loss, objects)
