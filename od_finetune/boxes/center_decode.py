"""From CenterNet's maps to detections: peaks of the heat maps, and what the other maps hold at a peak's cell."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from od_finetune.boxes.center_grid import Grid, gather_cells
from od_finetune.fields import Detections

_PEAK_TOLERANCE = 1e-6


class Peaks(NamedTuple):
    """The highest peaks of a batch's heat maps, best first; score 0 where there are no more."""

    scores: tf.Tensor  # float32 [B, D]
    cells: tf.Tensor  # int32 [B, D, 2]: row, column
    channels: tf.Tensor  # int32 [B, D]


def only_peaks(heat: tf.Tensor, kernel: int = 3) -> tf.Tensor:
    """`[B, height, width, C]`, 0 where another cell of the `kernel` x `kernel` around, on the channel, is higher.

    Neighbours that are equally high stay both. A kernel of 0 or 1 keeps everything.
    """
    if kernel <= 1:
        return heat
    highest = tf.nn.max_pool2d(heat, kernel, strides=1, padding="SAME")
    return tf.where(highest - heat < _PEAK_TOLERANCE, heat, 0.0)


def top_peaks(heat: tf.Tensor, count: int, kernel: int = 3) -> Peaks:
    """The `count` highest peaks of each image over all channels.

    Args:
        heat: probabilities `[B, height, width, C]`.
        count: `D`.
        kernel: side of the square in which a peak must be the highest.
    """
    shape = tf.shape(heat)
    flat = tf.reshape(only_peaks(heat, kernel), [shape[0], -1])
    scores, indices = _top_k(flat, count)
    channels = heat.shape[-1] or shape[3]
    return Peaks(scores, _cells(indices // channels, shape[2]), indices % channels)


def top_peaks_per_channel(heat: tf.Tensor, count: int, kernel: int = 3) -> Peaks:
    """The `count` highest peaks of each channel: scores `[B, C, D]`, cells `[B, C, D, 2]`, channels `[B, C, D]`."""
    shape = tf.shape(heat)
    channels = heat.shape[-1] or shape[3]
    flat = tf.reshape(tf.transpose(only_peaks(heat, kernel), [0, 3, 1, 2]), [shape[0], channels, -1])
    scores, indices = _top_k(flat, count)
    own = tf.broadcast_to(tf.range(channels)[:, None], tf.shape(indices))
    return Peaks(scores, _cells(indices, shape[2]), own)


def _top_k(flat: tf.Tensor, count: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Always `count` along the last axis; index 0 and score 0 where a small map has fewer cells."""
    size = flat.shape[-1]
    enough = count if size is not None and size >= count else tf.minimum(count, tf.shape(flat)[-1])
    scores, indices = tf.math.top_k(flat, enough)
    if not isinstance(enough, int):
        missing = [[0, 0]] * (flat.shape.rank - 1) + [[0, count - enough]]
        scores, indices = tf.pad(scores, missing), tf.pad(indices, missing)
        scores, indices = (tf.ensure_shape(x, [*flat.shape[:-1], count]) for x in (scores, indices))
    return scores, indices


def _cells(indices: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    return tf.stack([indices // width, indices % width], axis=-1)


def boxes_at(cells: tf.Tensor, sizes: tf.Tensor, offsets: tf.Tensor) -> tf.Tensor:
    """The boxes that the size and offset maps predict in some cells, clipped to the grid.

    Args:
        cells: int32 `[B, D, 2]`.
        sizes: map of heights and widths `[B, height, width, 2]`, in cells; negative ones count as 0.
        offsets: map `[B, height, width, 2]`.

    Returns:
        `[B, D, 4]` in cells.
    """
    centers = tf.cast(cells, tf.float32) + gather_cells(offsets, cells)
    halves = tf.maximum(gather_cells(sizes, cells), 0.0) / 2.0
    boxes = tf.concat([centers - halves, centers + halves], axis=-1)
    extent = tf.cast(tf.tile(tf.shape(sizes)[1:3], [2]), tf.float32)
    return tf.minimum(tf.maximum(boxes, 0.0), extent)


def detections(peaks: Peaks, heat: tf.Tensor, boxes: tf.Tensor, grid: Grid) -> Detections:
    """Puts together what is known without any task beyond boxes.

    Args:
        peaks: of `heat`.
        heat: probabilities `[B, height, width, C]`, before the peaks were picked out.
        boxes: `[B, D, 4]` in cells.
        grid: where the images lie.

    Returns:
        Boxes are clipped to the true part of the image. `multiclass_scores` are all classes' scores in the peak's cell
        (without background), `anchor_indices` the cells, counted row by row. The raw boxes and scores are the final
        ones: there is no others to select from.
    """
    boxes = tf.clip_by_value(grid.normalize(boxes), 0.0, 1.0)
    scores = gather_cells(heat, peaks.cells)
    count = tf.reduce_sum(tf.cast(peaks.scores > 0.0, tf.int32), axis=1)
    cells = peaks.cells[..., 0] * grid.width + peaks.cells[..., 1]
    return Detections(boxes, peaks.scores, peaks.channels, count, scores, cells, boxes, scores)
