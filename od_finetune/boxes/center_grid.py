"""The grid of a CenterNet's output: a cell per `stride` x `stride` pixels of the input, measured in cells.

`official.projects.centernet` is not used in this family of modules: its targets take one image at a time, and it has
neither weights, nor padding, nor any task beyond boxes.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class Grid(NamedTuple):
    """How the images of a batch lie on the grid."""

    true_shapes: tf.Tensor  # int32 [B, 3]: height, width, channels of the part of the inputs that is no padding
    stride: int  # pixels per cell
    height: int | tf.Tensor  # cells
    width: int | tf.Tensor

    def place(self, coordinates: tf.Tensor) -> tf.Tensor:
        """Points `[B, ..., 2]` or boxes `[B, ..., 4]`, normalised to the true part of the image -> in cells."""
        return coordinates * self._cells_per_image(coordinates)

    def normalize(self, coordinates: tf.Tensor) -> tf.Tensor:
        """Inverse of `place`."""
        return coordinates / self._cells_per_image(coordinates)

    def windows(self, boxes: tf.Tensor) -> tf.Tensor:
        """Boxes `[B, ..., 4]`, normalised to the true part of the image -> normalised to the whole grid."""
        return self.place(boxes) / tf.cast(tf.stack([self.height, self.width] * 2), tf.float32)

    def _cells_per_image(self, coordinates: tf.Tensor) -> tf.Tensor:
        extent = tf.cast(self.true_shapes[:, :2], tf.float32) / self.stride
        extent = tf.tile(extent, [1, coordinates.shape[-1] // 2])
        return tf.reshape(extent, [-1] + [1] * (coordinates.shape.rank - 2) + [coordinates.shape[-1]])

    def valid(self) -> tf.Tensor:
        """float32 `[B, height, width, 1]`: 1 where a cell has any pixel that is no padding."""
        ends = tf.math.ceil(tf.cast(self.true_shapes[:, :2], tf.float32) / self.stride)
        rows = tf.cast(tf.range(self.height), tf.float32) < ends[:, :1]
        columns = tf.cast(tf.range(self.width), tf.float32) < ends[:, 1:]
        return tf.cast((rows[:, :, None] & columns[:, None, :])[..., None], tf.float32)

    def cells(self, points: tf.Tensor) -> tf.Tensor:
        """Points `[..., 2]` in cells -> int32 `[..., 2]`, row and column of the cell each lies in.

        A point on the lower or right edge of the image, or beyond any edge, belongs to the nearest cell.
        """
        last = tf.cast(tf.stack([self.height, self.width]), tf.float32) - 1.0
        return tf.cast(tf.clip_by_value(tf.floor(points), 0.0, last), tf.int32)


def gather_cells(maps: tf.Tensor, cells: tf.Tensor) -> tf.Tensor:
    """What `maps` `[B, height, width, channels]` holds at `cells` int32 `[B, N, 2]` -> `[B, N, channels]`.

    Gathers from the flattened map, which accelerators do much faster than with two indices.
    """
    shape = tf.shape(maps)
    flat = tf.reshape(maps, [shape[0], -1, maps.shape[-1] or shape[3]])
    return tf.gather(flat, cells[..., 0] * shape[2] + cells[..., 1], batch_dims=1)


def gather_channels(maps: tf.Tensor, cells: tf.Tensor, channels: tf.Tensor, width: int) -> tf.Tensor:
    """As `gather_cells`, of maps whose channels are groups of `width`: one group each, `channels` int32 `[B, N]`.

    Where the maps have a single group, it is everybody's. Returns `[B, N, width]`.
    """
    shape = tf.shape(maps)
    groups = (maps.shape[-1] or shape[3]) // width
    flat = tf.reshape(maps, [shape[0], shape[1] * shape[2] * groups, width])
    group = channels if maps.shape[-1] != width else tf.zeros_like(channels)
    return tf.gather(flat, (cells[..., 0] * shape[2] + cells[..., 1]) * groups + group, batch_dims=1)


def flatten(maps: tf.Tensor) -> tf.Tensor:
    """`[B, height, width, channels]` -> `[B, cells, channels]`."""
    shape = tf.shape(maps)
    return tf.reshape(maps, [shape[0], shape[1] * shape[2], maps.shape[-1] or shape[3]])


def count_real(weights: tf.Tensor) -> tf.Tensor:
    """How many weights are not 0, at least 1, as a float: what losses of a batch are divided by."""
    return tf.maximum(tf.cast(tf.math.count_nonzero(weights), tf.float32), 1.0)
