"""Box coders: boxes `[ymin, xmin, ymax, xmax]` <-> offsets to anchors that a network can regress.

All take any leading dimensions that broadcast between boxes and anchors. `official.vision.ops.box_ops.encode_boxes`
is not used: it caps log sizes and has other weights and epsilon conventions than the published checkpoints.
"""

from __future__ import annotations

from typing import Protocol

import tensorflow as tf

from od_finetune.boxes import box_ops

# Keeps log and division finite for degenerate boxes; the published checkpoints were trained with this value.
EPSILON = 1e-8


class BoxCoder(Protocol):
    """What targets, losses and detectors need of a coder."""

    code_size: int

    def encode(self, boxes: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
        """Boxes `[..., 4]` -> codes `[..., code_size]`."""

    def decode(self, codes: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
        """Codes `[..., code_size]` -> boxes `[..., 4]`."""


class FasterRcnnCoder:
    """Centre offsets in units of the anchor and log size ratios `[ty, tx, th, tw]` (Ren et al., 2015)."""

    code_size = 4

    def __init__(self, y_scale: float = 10.0, x_scale: float = 10.0, height_scale: float = 5.0,
                 width_scale: float = 5.0):
        self._scales = (y_scale, x_scale, height_scale, width_scale)

    def encode(self, boxes: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
        """Boxes `[..., 4]` -> codes `[..., 4]`, multiplied by the four scales."""
        ya, xa, ha, wa = box_ops.to_center(anchors)
        y, x, h, w = box_ops.to_center(boxes)
        ha, wa, h, w = ha + EPSILON, wa + EPSILON, h + EPSILON, w + EPSILON
        codes = [(y - ya) / ha, (x - xa) / wa, tf.math.log(h / ha), tf.math.log(w / wa)]
        return tf.stack(codes, axis=-1) * tf.constant(self._scales, tf.float32)

    def decode(self, codes: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
        """Codes `[..., 4]` -> boxes `[..., 4]`."""
        ya, xa, ha, wa = box_ops.to_center(anchors)
        ty, tx, th, tw = tf.unstack(codes / tf.constant(self._scales, tf.float32), axis=-1)
        return box_ops.from_center(ty * ha + ya, tx * wa + xa, tf.exp(th) * ha, tf.exp(tw) * wa)


class MeanStddevCoder:
    """Each corner's difference from the anchor's, divided by one standard deviation (same unit as the boxes)."""

    code_size = 4

    def __init__(self, stddev: float = 0.01):
        self._stddev = stddev

    def encode(self, boxes: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
        """Boxes `[..., 4]` -> codes `[..., 4]`."""
        return (boxes - anchors) / self._stddev

    def decode(self, codes: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
        """Codes `[..., 4]` -> boxes `[..., 4]`."""
        return codes * self._stddev + anchors


class SquareCoder:
    """Centre offsets and the log of a side, `[ty, tx, tl]`, for square objects: sides are geometric means."""

    code_size = 3

    def __init__(self, y_scale: float = 10.0, x_scale: float = 10.0, length_scale: float = 5.0):
        self._scales = (y_scale, x_scale, length_scale)

    def encode(self, boxes: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
        """Boxes `[..., 4]` -> codes `[..., 3]`, multiplied by the three scales."""
        ya, xa, ha, wa = box_ops.to_center(anchors)
        y, x, h, w = box_ops.to_center(boxes)
        la, side = tf.sqrt(ha * wa) + EPSILON, tf.sqrt(h * w) + EPSILON
        codes = [(y - ya) / la, (x - xa) / la, tf.math.log(side / la)]
        return tf.stack(codes, axis=-1) * tf.constant(self._scales, tf.float32)

    def decode(self, codes: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
        """Codes `[..., 3]` -> square boxes `[..., 4]`."""
        ya, xa, ha, wa = box_ops.to_center(anchors)
        la = tf.sqrt(ha * wa)
        ty, tx, tl = tf.unstack(codes / tf.constant(self._scales, tf.float32), axis=-1)
        side = tf.exp(tl) * la
        return box_ops.from_center(ty * la + ya, tx * la + xa, side, side)


class KeypointCoder:
    """The Faster R-CNN code followed by every keypoint's offset from the anchor's centre, `[ky0, kx0, ky1, ...]`."""

    def __init__(self, num_keypoints: int, y_scale: float = 10.0, x_scale: float = 10.0, height_scale: float = 5.0,
                 width_scale: float = 5.0):
        self.num_keypoints = num_keypoints
        self.code_size = 4 + 2 * num_keypoints
        self._box_coder = FasterRcnnCoder(y_scale, x_scale, height_scale, width_scale)
        self._keypoint_scales = (y_scale, x_scale)

    def encode(self, boxes: tf.Tensor, anchors: tf.Tensor, keypoints: tf.Tensor | None = None) -> tf.Tensor:
        """Boxes `[..., 4]` and keypoints `[..., K, 2]` (y, x) -> codes `[..., 4 + 2K]`.

        Without keypoints their codes are NaN, which the localisation losses take for "no target".
        """
        box_codes = self._box_coder.encode(boxes, anchors)
        if keypoints is None:
            unknown = tf.fill(tf.concat([tf.shape(box_codes)[:-1], [2 * self.num_keypoints]], 0), float("nan"))
            return tf.concat([box_codes, unknown], axis=-1)
        center, size = self._anchor_frame(anchors)
        offsets = (keypoints - center) / (size + EPSILON) * tf.constant(self._keypoint_scales, tf.float32)
        shape = tf.concat([tf.shape(box_codes)[:-1], [2 * self.num_keypoints]], 0)
        return tf.concat([box_codes, tf.reshape(offsets, shape)], axis=-1)

    def decode(self, codes: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
        """Codes `[..., 4 + 2K]` -> boxes `[..., 4]`."""
        return self._box_coder.decode(codes[..., :4], anchors)

    def decode_keypoints(self, codes: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
        """Codes `[..., 4 + 2K]` -> keypoints `[..., K, 2]` (y, x)."""
        shape = tf.concat([tf.shape(codes)[:-1], [self.num_keypoints, 2]], 0)
        offsets = tf.reshape(codes[..., 4:], shape) / tf.constant(self._keypoint_scales, tf.float32)
        center, size = self._anchor_frame(anchors)
        return offsets * size + center

    @staticmethod
    def _anchor_frame(anchors: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        y, x, height, width = box_ops.to_center(anchors)
        return tf.stack([y, x], -1)[..., None, :], tf.stack([height, width], -1)[..., None, :]
