"""What a CenterNet should predict for boxes: heat maps of centres, sizes and offsets (Zhou et al., Objects as Points,
2019, arXiv:1904.07850). Coordinates are in cells, see `center_grid`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from od_finetune.boxes import box_ops
from od_finetune.boxes.center_grid import Grid


def gaussian_radius(heights: tf.Tensor, widths: tf.Tensor, min_iou: float) -> tf.Tensor:
    """About how far the corners of a box may move before it overlaps the original box by less than `min_iou`.

    The smallest of three cases: the box has moved, shrunk or grown by the distance on every side. The quadratic
    equations are right, their roots are those of the first CornerNet (the one with the plus sign, and halved instead of
    divided by twice the leading coefficient): the Gaussians are up to `4 * min_iou` times as wide as the geometry asks
    for, and the OD API's losses and checkpoints go by them.

    Args:
        heights, widths: of any one shape, in cells.
        min_iou: in (0, 1).

    Returns:
        Of the same shape, in cells.
    """
    around, area = heights + widths, heights * widths
    cases = [
        (1.0, -around, area * (1.0 - min_iou) / (1.0 + min_iou)),
        (4.0, -2.0 * around, area * (1.0 - min_iou)),
        (4.0 * min_iou, 2.0 * min_iou * around, -area * (1.0 - min_iou)),
    ]
    roots = [(tf.sqrt(tf.maximum(b * b - 4.0 * a * c, 0.0)) - b) / 2.0 for a, b, c in cases]
    return tf.minimum(tf.minimum(roots[0], roots[1]), roots[2])


def gaussian_sigma(heights: tf.Tensor, widths: tf.Tensor, min_iou: float) -> tf.Tensor:
    """Standard deviation of the Gaussian around a box's centre, in cells: a sixth of the diameter in whole cells, so
    that it has all but vanished where boxes overlap by less than `min_iou`."""
    return (2.0 * tf.maximum(tf.floor(gaussian_radius(heights, widths, min_iou)), 0.0) + 1.0) / 6.0


def heat_map(points: tf.Tensor, sigmas: tf.Tensor, channels: tf.Tensor, weights: tf.Tensor, grid: Grid,
             static: bool = False) -> tf.Tensor:
    """A Gaussian around the cell of every point, on the channels of the point; the highest counts where they overlap.

    Args:
        points: `[B, N, 2]`. A point outside the grid reaches into it with the slope of its Gaussian alone.
        sigmas: `[B, N]`.
        channels: float `[B, N, C]`, how much a point counts on each channel: one-hot or k-hot.
        weights: `[B, N]`, height of the Gaussian; 0 for a point that is not to be there.
        grid: gives the size of the map.
        static: takes each point on its highest channel only, at full height. All shapes are then known in advance,
            as TPUs need them, but padding costs as much as points.

    Returns:
        float32 `[B, height, width, C]` in [0, 1] without gradient; exactly 1 in the cell of a point of weight 1.
    """
    shape = tf.shape(channels)
    if static:
        image = tf.repeat(tf.range(shape[0]), shape[1])
        channel = tf.reshape(tf.argmax(channels, axis=-1, output_type=tf.int32), [-1])
        points, sigmas, heights = (tf.reshape(x, [-1, *x.shape[2:]]) for x in (points, sigmas, weights))
    else:
        strength = channels * weights[..., None]
        chosen = tf.cast(tf.where(strength > 0.0), tf.int32)
        image, channel = chosen[:, 0], chosen[:, 2]
        heights = tf.gather_nd(strength, chosen)
        points, sigmas = tf.gather_nd(points, chosen[:, :2]), tf.gather_nd(sigmas, chosen[:, :2])
    maps = _gaussians(points, sigmas, grid) * heights[:, None, None]
    highest = tf.math.unsorted_segment_max(maps, image * shape[2] + channel, shape[0] * shape[2])
    highest = tf.reshape(tf.maximum(highest, 0.0), [shape[0], shape[2], grid.height, grid.width])
    heat = tf.transpose(highest, [0, 2, 3, 1])
    return tf.stop_gradient(tf.ensure_shape(heat, [None, None, None, channels.shape[-1]]))


def _gaussians(points: tf.Tensor, sigmas: tf.Tensor, grid: Grid) -> tf.Tensor:
    """`[M, 2]`, `[M]` -> `[M, height, width]`."""
    centers = tf.floor(points)
    scale = -0.5 / tf.square(sigmas)[:, None]
    rows = tf.exp(scale * tf.square(tf.cast(tf.range(grid.height), tf.float32) - centers[:, :1]))
    columns = tf.exp(scale * tf.square(tf.cast(tf.range(grid.width), tf.float32) - centers[:, 1:]))
    return rows[:, :, None] * columns[:, None, :]


def box_heat_map(boxes: tf.Tensor, classes: tf.Tensor, weights: tf.Tensor, grid: Grid, min_iou: float = 0.7,
                 static: bool = False) -> tf.Tensor:
    """Heat maps of the centres of boxes, a channel per class.

    Args:
        boxes: `[B, N, 4]` in cells.
        classes: `[B, N, C]`.
        weights: `[B, N]`; 0 where padded.
        grid: gives the size of the map.
        min_iou: see `gaussian_radius`.
        static: see `heat_map`; the config language's `compute_heatmap_sparse`.

    Returns:
        `[B, height, width, C]`.
    """
    y, x, height, width = box_ops.to_center(boxes)
    # A box without extent on the image's lower or right edge has its centre on it, beyond the last cell.
    points = tf.cast(grid.cells(tf.stack([y, x], axis=-1)), tf.float32)
    return heat_map(points, gaussian_sigma(height, width, min_iou), classes, weights, grid, static)


class BoxTargets(NamedTuple):
    """What the cell of each box's centre should predict."""

    cells: tf.Tensor  # int32 [B, N, 2]: row, column
    sizes: tf.Tensor  # float32 [B, N, 2]: height, width, in cells
    offsets: tf.Tensor  # float32 [B, N, 2]: from the cell's upper left corner to the centre, y and x, in cells


def box_targets(boxes: tf.Tensor, grid: Grid) -> BoxTargets:
    """Boxes `[B, N, 4]` in cells -> their targets. Two boxes in one cell each have theirs; the loss settles it."""
    y, x, height, width = box_ops.to_center(boxes)
    points = tf.stack([y, x], axis=-1)
    cells = grid.cells(points)
    return BoxTargets(cells, tf.stack([height, width], axis=-1), points - tf.cast(cells, tf.float32))


def keypoint_center_heat_map(keypoints: tf.Tensor, keypoint_weights: tf.Tensor, center_weights: Sequence[float],
                             classes: tf.Tensor, weights: tf.Tensor, grid: Grid, min_iou: float = 0.7,
                             static: bool = False) -> tf.Tensor:
    """Heat maps of centres that are a weighted mean of keypoints instead of the middle of a box.

    Args:
        keypoints: `[B, N, K, 2]` in cells, no NaN.
        keypoint_weights: `[B, N, K]`; 0 for a keypoint that is not labelled or of an object without keypoints.
        center_weights: `K` numbers, the config language's `keypoint_weights_for_center`.
        classes: `[B, N, C]`.
        weights: `[B, N]`. An object none of whose keypoints counts is left out.
        grid, min_iou, static: see `box_heat_map`. The mean distance of the keypoints from the centre stands for half
            the side of a box.

    Returns:
        `[B, height, width, C]`.
    """
    shares = keypoint_weights * tf.constant(list(center_weights), tf.float32)
    total = tf.reduce_sum(shares, axis=-1)
    centers = tf.math.divide_no_nan(tf.reduce_sum(keypoints * shares[..., None], axis=-2), total[..., None])
    distances = tf.norm(keypoints - centers[..., None, :], axis=-1)
    side = 2.0 * tf.math.divide_no_nan(tf.reduce_sum(distances * shares, axis=-1), total)
    weights = tf.where(total > 0.0, weights, 0.0)
    return heat_map(centers, gaussian_sigma(side, side, min_iou), classes, weights, grid, static)
