"""First stage of a two-stage detector: anchors and their encodings -> the regions that the second stage looks at."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from od_finetune.boxes.coders import BoxCoder
from od_finetune.boxes.nms import MulticlassNms, Selected

Size = int | tf.Tensor


class Proposals(NamedTuple):
    """Regions of a batch of images, best first, zeros beyond `count`."""

    boxes: tf.Tensor  # float32 [B, P, 4], in pixels
    count: tf.Tensor  # int32 [B]


class ProposalGenerator(NamedTuple):
    """Decodes, clips to the image and suppresses near-duplicates, whatever their class."""

    coder: BoxCoder
    nms: MulticlassNms  # of one class, in the coordinates that it is given

    def select(self, encodings: tf.Tensor, objectness: tf.Tensor, anchors: tf.Tensor, window: tf.Tensor) -> Selected:
        """The best boxes, no gradient.

        Args:
            encodings: `[B, A, 4]`.
            objectness: logits `[B, A, 2]`, background first.
            anchors: `[A, 4]`, in pixels.
            window: `[B, 4]`, in pixels, that boxes are clipped to.
        """
        boxes = self.coder.decode(encodings, anchors)
        scores = tf.nn.softmax(objectness)[..., 1:]
        return Selected(*map(tf.stop_gradient, self.nms(boxes, scores, window)))

    def __call__(
        self, encodings: tf.Tensor, objectness: tf.Tensor, anchors: tf.Tensor, window: tf.Tensor
    ) -> Proposals:
        """As `select`, without scores."""
        selected = self.select(encodings, objectness, anchors, window)
        return Proposals(selected.boxes, selected.num_detections)


def image_window(height: Size, width: Size) -> tf.Tensor:
    """`[0, 0, height, width]`, float32."""
    return tf.cast(tf.stack([0, 0, height, width]), tf.float32)


def is_inside(boxes: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """Which boxes `[A, 4]` do not stick out of the window `[4]`: bool `[A]`."""
    return tf.reduce_all((boxes[:, :2] >= window[:2]) & (boxes[:, 2:] <= window[2:]), axis=-1)
