"""CenterNet's DensePose: the parts of a body, and coordinates on their surface (Güler et al., 2018, arXiv:1802.00434),
within the objects' masks (see `center_masks`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from od_finetune import fields
from od_finetune.boxes import center_losses
from od_finetune.boxes.center_grid import Grid, gather_cells
from od_finetune.boxes.center_losses import ElementLoss


class DensePose(NamedTuple):
    """By the fields of the config's `densepose_estimation_task`."""

    class_id: int  # 0-based: the class whose objects have parts
    classification_loss: ElementLoss
    localization_loss: ElementLoss
    num_parts: int = 24
    weight: float = 1.0  # task_loss_weight
    part_weight: float = 1.0  # part_loss_weight
    coordinate_weight: float = 1.0  # coordinate_loss_weight
    upsample: bool = True  # upsample_to_input_res: points are learnt where they are, not where their cell is

    def losses(self, parts: Sequence[tf.Tensor], coordinates: Sequence[tf.Tensor], groundtruth: fields.Groundtruth,
               grid: Grid) -> tuple[tf.Tensor, tf.Tensor]:
        """Weighted losses per labelled point, of the parts and of the surface coordinates.

        Args:
            parts: logits `[B, height, width, num_parts]`, one per output of the network.
            coordinates: `[B, height, width, 2 * num_parts]`: v and u of the first part, then of the next.
            groundtruth: with DensePose points.
            grid: where the images lie.
        """
        labels = groundtruth.dense_pose_surface_coords
        batch, points = tf.shape(labels)[0], tf.shape(labels)[1] * tf.shape(labels)[2]
        real = tf.sequence_mask(groundtruth.dense_pose_num_points, tf.shape(labels)[2], tf.float32)
        weights = tf.reshape(real * groundtruth.weights[..., None], [batch, points])
        ids = tf.reshape(groundtruth.dense_pose_part_ids, [batch, points])
        places = tf.reshape(grid.place(labels[..., :2]), [batch, points, 2])
        count = tf.maximum(tf.cast(tf.math.count_nonzero(weights), tf.float32), 1.0)
        part = center_losses.gathered_loss([self._sample(maps, places, grid) for maps in parts],
                                           tf.one_hot(ids, self.num_parts), weights[..., None],
                                           self.classification_loss, count)
        own = [tf.reshape(self._sample(maps, places, grid), [batch, points, self.num_parts, 2]) for maps in coordinates]
        coordinate = center_losses.gathered_loss([tf.gather(x, ids, batch_dims=2) for x in own],
                                                 tf.reshape(labels[..., 2:], [batch, points, 2]), weights,
                                                 self.localization_loss, count)
        return self.weight * self.part_weight * part, self.weight * self.coordinate_weight * coordinate

    def _sample(self, maps: tf.Tensor, places: tf.Tensor, grid: Grid) -> tf.Tensor:
        return sample_upsampled(maps, places, grid.stride if self.upsample else 1)

    def decode(self, parts: tf.Tensor, coordinates: tf.Tensor, masks: tf.Tensor, boxes: tf.Tensor,
               classes: tf.Tensor, grid: Grid) -> tuple[tf.Tensor, tf.Tensor]:
        """Parts and surface coordinates of detected objects within their boxes.

        Args:
            parts, coordinates: of the last output, see `losses`.
            masks: float32 `[B, D, h, w]`, 0 or 1.
            boxes: `[B, D, 4]` relative to the true part of the image.
            classes: int32 `[B, D]`.
            grid: where the images lie.

        Returns:
            The masks, 1 + the part instead of 1 for objects of the class, and `[B, D, h, w, 2]` v and u there, else 0.
        """
        shape = tf.shape(masks)
        maps = tf.concat([parts, coordinates], axis=-1)
        images = tf.repeat(tf.range(shape[0]), shape[1])
        windows = tf.reshape(grid.windows(boxes), [-1, 4])
        size = [masks.shape[2], masks.shape[3]] if None not in masks.shape[2:] else shape[2:]

        def one(window_and_image: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
            # One by one: all of them, with three maps per part, would take hundreds of megabytes per image.
            window, image = window_and_image
            crop = tf.image.crop_and_resize(maps, window[None], image[None], size)[0]
            best = tf.argmax(crop[..., : self.num_parts], axis=-1, output_type=tf.int32)
            pairs = tf.reshape(crop[..., self.num_parts :], [size[0], size[1], self.num_parts, 2])
            return best, tf.gather(pairs, best, batch_dims=2)

        best, surface = tf.map_fn(one, (windows, images), fn_output_signature=(tf.int32, tf.float32))
        has_parts = (classes == self.class_id)[..., None, None]
        best = tf.reshape(tf.cast(best, tf.float32), shape)
        surface = tf.reshape(surface, tf.concat([shape, [2]], 0))
        covered = tf.where(has_parts, masks, 0.0)
        return masks + covered * best, surface * covered[..., None]


def sample_upsampled(maps: tf.Tensor, places: tf.Tensor, factor: int) -> tf.Tensor:
    """What `maps`, enlarged by `factor` (bilinear), hold in the pixel of each place, without enlarging them.

    Args:
        maps: `[B, height, width, C]`.
        places: `[B, N, 2]` in cells of `maps`.
        factor: pixels per cell.

    Returns:
        `[B, N, C]`.
    """
    last = tf.cast(tf.shape(maps)[1:3], tf.float32) - 1.0
    pixels = tf.floor(places * factor)
    points = tf.clip_by_value((pixels + 0.5) / factor - 0.5, 0.0, last)
    low = tf.floor(points)
    high = tf.minimum(low + 1.0, last)
    share = points - low
    corners = [(low, 1.0 - share), (high, share)]
    total = 0.0
    for y, y_share in ((c[..., 0], s[..., 0]) for c, s in corners):
        for x, x_share in ((c[..., 1], s[..., 1]) for c, s in corners):
            cells = tf.cast(tf.stack([y, x], axis=-1), tf.int32)
            total += gather_cells(maps, cells) * (y_share * x_share)[..., None]
    return total
