"""From CenterNet's keypoint maps to the keypoints of detected objects.

The centre of an object says about where its keypoints are; each then snaps to a peak of the heat map of its type
nearby, if there is one (Zhou et al., Objects as Points, 2019, section 4.2). Coordinates are in cells, see
`center_grid`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from od_finetune.boxes import box_ops, center_decode, center_targets
from od_finetune.boxes.center_grid import gather_cells, gather_channels
from od_finetune.boxes.center_keypoint_results import Found
from od_finetune.errors import UserError

MIN_DISTANCE = "min_distance"
SCORE_DISTANCE_RATIO = "score_distance_ratio"
SCORE_SCALED_DISTANCE_RATIO = "score_scaled_distance_ratio"
GAUSSIAN_WEIGHTED = "gaussian_weighted"
GAUSSIAN_WEIGHTED_CONST = "gaussian_weighted_const"
_OF_CANDIDATES = (MIN_DISTANCE, SCORE_DISTANCE_RATIO, SCORE_SCALED_DISTANCE_RATIO, GAUSSIAN_WEIGHTED)
_NEED_BOXES = (SCORE_SCALED_DISTANCE_RATIO, GAUSSIAN_WEIGHTED, GAUSSIAN_WEIGHTED_CONST)

_FAR = 1e5  # cells; farther than any candidate
_MIN_IOU = 0.7


class Maps(NamedTuple):
    """Of the last output of the network, `[B, height, width, ...]`."""

    heat: tf.Tensor  # logits, K channels
    offsets: tf.Tensor  # 2 channels, or 2 K
    regressions: tf.Tensor  # 2 K channels
    depths: tf.Tensor | None = None  # 1 channel, or K


class Candidates(NamedTuple):
    """The peaks of each type's heat map, best first."""

    points: tf.Tensor  # float32 [B, K, P, 2] in cells
    scores: tf.Tensor  # float32 [B, K, P]
    depths: tf.Tensor | None  # float32 [B, K, P]


class KeypointDecoder(NamedTuple):
    """Decoding of one `keypoint_estimation_task`, by its fields."""

    std_devs: Sequence[float]  # keypoint_label_to_std
    threshold: float = 0.1  # keypoint_candidate_score_threshold
    candidates: int = 100  # num_candidates_per_keypoint
    kernel: int = 3  # peak_max_pool_kernel_size
    unmatched_score: float = 0.1  # unmatched_keypoint_score
    box_scale: float = 1.2
    search_scale: float = 0.3  # candidate_search_scale
    ranking: str = MIN_DISTANCE  # candidate_ranking_mode
    distance_offset: float = 1.0  # score_distance_offset
    distance_multiplier: float = 0.1  # score_distance_multiplier
    std_dev_multiplier: float = 1.0
    argmax: bool = False  # argmax_postprocessing
    denominator_ratio: float = 0.1  # gaussian_denom_ratio

    def check(self, has_boxes: bool = True) -> KeypointDecoder:
        """Raises a UserError where the fields do not go together; `has_boxes`: objects have predicted boxes."""
        modes = (GAUSSIAN_WEIGHTED_CONST,) if self.argmax else _OF_CANDIDATES
        if self.ranking not in modes:
            raise UserError(
                f"keypoint_estimation_task.candidate_ranking_mode is {self.ranking!r}; with argmax_postprocessing: "
                f"{str(self.argmax).lower()} it must be {' or '.join(modes)}"
            )
        if self.ranking in _NEED_BOXES and not has_boxes:
            raise UserError(f"keypoint_estimation_task.candidate_ranking_mode {self.ranking!r} needs the boxes of "
                            f"objects: add an object_detection_task, or take {MIN_DISTANCE!r}")
        return self

    def __call__(self, maps: Maps, cells: tf.Tensor, boxes: tf.Tensor | None) -> Found:
        """Keypoints of the objects with their centres in `cells` int32 `[B, D, 2]`.

        Args:
            maps: the task's maps.
            cells: of the centres.
            boxes: of the objects, `[B, D, 4]` in cells. None where the network predicts none: every keypoint then
                snaps to its best candidate, however far.
        """
        heat = tf.sigmoid(maps.heat)
        guesses = regressed(maps.regressions, cells)
        if self.argmax:
            return self._from_weighted_heat(heat, maps.offsets, guesses, boxes)
        return self._snapped(guesses, candidates(heat, maps, self.candidates, self.kernel), boxes)

    def _snapped(self, guesses: tf.Tensor, candidates_: Candidates, boxes: tf.Tensor | None) -> Found:
        # All are [B, D, K, P] here, or broadcast to it.
        scores = candidates_.scores[:, None]
        steps = guesses[:, :, :, None] - candidates_.points[:, None]
        distances = tf.sqrt(tf.reduce_sum(steps * steps, axis=-1))
        distances = tf.where(scores >= self.threshold, distances, _FAR)
        ranks = self._ranks(scores, distances, boxes)
        chosen = tf.argmax(ranks, axis=-1, output_type=tf.int32)
        points, score, depth = (_pick(x, chosen) for x in candidates_)
        if self.ranking == GAUSSIAN_WEIGHTED:
            score = tf.reduce_max(ranks, axis=-1)
        keep = score >= self.threshold
        if boxes is not None:
            keep &= self._nearby(points, tf.reduce_min(distances, axis=-1), boxes)
        return Found(
            tf.where(keep[..., None], points, guesses),
            tf.where(keep, score, self.unmatched_score),
            None if depth is None else tf.where(keep, depth, 0.0),
        )

    def _ranks(self, scores: tf.Tensor, distances: tf.Tensor, boxes: tf.Tensor | None) -> tf.Tensor:
        """How good a candidate is for an object, `[B, D, K, P]`."""
        if self.ranking == MIN_DISTANCE:
            return -distances
        if self.ranking == SCORE_DISTANCE_RATIO:
            return scores / (distances + self.distance_offset)
        _, _, height, width = box_ops.to_center(boxes)
        if self.ranking == SCORE_SCALED_DISTANCE_RATIO:
            offset = tf.maximum(height, width) * self.distance_multiplier
            return scores / (distances + offset[..., None, None])
        widths = tf.constant(list(self.std_devs), tf.float32) * self.std_dev_multiplier
        sigmas = (center_targets.gaussian_sigma(height, width, _MIN_IOU)[..., None] * widths)[..., None]
        return scores * tf.exp(-tf.square(distances) / (2.0 * tf.square(sigmas)))

    def _nearby(self, points: tf.Tensor, nearest: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
        """Whether a chosen candidate `[B, D, K]` lies within the enlarged box, and any at all near the guess."""
        y, x, height, width = (side[..., None] for side in box_ops.to_center(boxes))
        height, width = height * self.box_scale, width * self.box_scale
        inside = (tf.abs(points[..., 0] - y) <= height / 2.0) & (tf.abs(points[..., 1] - x) <= width / 2.0)
        return inside & (nearest <= tf.maximum(height, width) * self.search_scale)

    def _from_weighted_heat(self, heat: tf.Tensor, offsets: tf.Tensor, guesses: tf.Tensor,
                            boxes: tf.Tensor) -> Found:
        """The highest cell of the heat map within the box, weighted by a Gaussian around the guess.

        Nothing has more than four dimensions, as TFLite's and the browser's kernels ask for.
        """
        shape, types = tf.shape(heat), heat.shape[-1]
        objects = guesses.shape[1] or tf.shape(guesses)[1]
        spread = tf.cast(tf.minimum(shape[1], shape[2]), tf.float32) * self.denominator_ratio
        lows, highs = (tf.repeat(x, types, axis=1) for x in (boxes[..., :2], boxes[..., 2:]))
        centers = tf.reshape(guesses, [shape[0], objects * types, 2])
        rows, columns = (
            _slice(shape[1 + axis], centers[..., axis], lows[..., axis], highs[..., axis], spread) for axis in (0, 1)
        )
        tiled = tf.tile(tf.transpose(heat, [0, 3, 1, 2]), [1, objects, 1, 1])
        weighted = tf.reshape(tiled * rows[..., None] * columns[:, :, None], [shape[0], objects * types, -1])
        best = tf.argmax(weighted, axis=-1, output_type=tf.int32)
        cells = tf.stack([best // shape[2], best % shape[2]], axis=-1)
        own = tf.tile(tf.range(types)[None], [shape[0], objects])
        points = tf.cast(cells, tf.float32) + gather_channels(offsets, cells, own, 2)
        # As in the OD API an object's score is the highest that any object has there.
        highest = tf.reduce_max(tf.reshape(weighted, [shape[0], objects, types, -1]), axis=1)
        scores = tf.gather(highest, tf.transpose(tf.reshape(best, [shape[0], objects, types]), [0, 2, 1]), batch_dims=2)
        return Found(tf.reshape(points, [shape[0], objects, types, 2]), tf.transpose(scores, [0, 2, 1]))


def _slice(size: tf.Tensor, centers: tf.Tensor, lows: tf.Tensor, highs: tf.Tensor, spread: tf.Tensor) -> tf.Tensor:
    """One dimension of the Gaussians within boxes: `[B, N]` -> `[B, N, size]`."""
    positions = tf.cast(tf.range(size), tf.float32)
    inside = (positions >= lows[..., None]) & (positions < highs[..., None])
    return tf.where(inside, tf.exp(-tf.square(positions - centers[..., None]) / spread), 0.0)


def _pick(values: tf.Tensor | None, chosen: tf.Tensor) -> tf.Tensor | None:
    """`[B, K, P, ...]` at `chosen` `[B, D, K]` -> `[B, D, K, ...]`."""
    if values is None:
        return None
    picked = tf.gather(values, tf.transpose(chosen, [0, 2, 1]), batch_dims=2)
    return tf.transpose(picked, [0, 2, 1] + list(range(3, picked.shape.rank)))


def regressed(maps: tf.Tensor, cells: tf.Tensor) -> tf.Tensor:
    """Where the centres in `cells` int32 `[B, D, 2]` expect their keypoints: maps `[B, height, width, 2 K]` ->
    `[B, D, K, 2]`."""
    types = maps.shape[-1] // 2
    steps = tf.reshape(gather_cells(maps, cells), [tf.shape(cells)[0], cells.shape[1] or tf.shape(cells)[1], types, 2])
    return tf.cast(cells, tf.float32)[:, :, None] + steps


def candidates(heat: tf.Tensor, maps: Maps, count: int, kernel: int) -> Candidates:
    """The `count` highest peaks of each type.

    Args:
        heat: probabilities `[B, height, width, K]`.
        maps: for their offsets and depths.
        count: `P`.
        kernel: see `center_decode.only_peaks`.
    """
    peaks = center_decode.top_peaks_per_channel(heat, count, kernel)
    shape = tf.shape(peaks.scores)
    cells, types = tf.reshape(peaks.cells, [shape[0], -1, 2]), tf.reshape(peaks.channels, [shape[0], -1])
    points = tf.cast(cells, tf.float32) + gather_channels(maps.offsets, cells, types, 2)
    depths = None
    if maps.depths is not None:
        depths = tf.reshape(gather_channels(maps.depths, cells, types, 1), shape)
    return Candidates(tf.reshape(points, tf.concat([shape, [2]], 0)), peaks.scores, depths)
