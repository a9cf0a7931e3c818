"""From raw predictions of a detector to its detections."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from od_finetune.boxes import box_ops
from od_finetune.boxes.coders import BoxCoder
from od_finetune.boxes.nms import MulticlassNms
from od_finetune.boxes.proposals import Proposals
from od_finetune.boxes.scores import Converter
from od_finetune.fields import Detections

_DROPPED = -1.0  # a score that non-maximum suppression never selects


class Postprocessor(NamedTuple):
    """Built from the `post_processing` message of a config."""

    nms: MulticlassNms
    convert_scores: Converter

    def __call__(self, box_encodings: tf.Tensor, class_logits: tf.Tensor, anchors: tf.Tensor, coder: BoxCoder,
                 clip_window: tf.Tensor | None = None, has_background: bool = True) -> Detections:
        """Decodes, scores and selects.

        Args:
            box_encodings: `[B, A, code_size]`.
            class_logits: `[B, A, K]`, background first if there is one.
            anchors: `[A, 4]`.
            coder: the coder that `box_encodings` were learnt with.
            clip_window: `[B, 4]`, see `true_window`.
            has_background: whether the first column is background, which is never detected.
        """
        raw_boxes = coder.decode(box_encodings, anchors)
        raw_scores = self.convert_scores(class_logits)
        foreground = raw_scores[..., 1:] if has_background else raw_scores
        selected = self.nms(raw_boxes, foreground, clip_window)
        return Detections(selected.boxes, selected.scores, selected.classes, selected.num_detections,
                          selected.gather(raw_scores), selected.anchor_indices, raw_boxes, raw_scores)

    def of_regions(self, box_encodings: tf.Tensor, class_logits: tf.Tensor, proposed: Proposals, coder: BoxCoder,
                   window: tf.Tensor) -> Detections:
        """Decodes, scores and selects what the second stage of a two-stage detector says of regions.

        Args:
            box_encodings: `[B, P, K, code_size]`, K boxes, one for each class or one for all.
            class_logits: `[B, P, C + 1]`, background first.
            proposed: the regions, in pixels.
            coder: the coder that `box_encodings` were learnt with.
            window: `[B, 4]`, the true part of each image in pixels. Boxes become relative to it.
        """
        boxes = coder.decode(box_encodings, proposed.boxes[:, :, tf.newaxis])
        raw_scores = self.convert_scores(class_logits)
        foreground = raw_scores[..., 1:]
        real = tf.sequence_mask(proposed.count, tf.shape(proposed.boxes)[1])
        shared = boxes.shape[2] == 1
        candidates = boxes[:, :, 0] if shared else boxes
        selected = self.nms(candidates, tf.where(real[..., tf.newaxis], foreground, _DROPPED), window)
        raw_boxes = candidates if shared else tf.gather(boxes, tf.argmax(foreground, axis=-1), axis=2, batch_dims=2)
        return Detections(selected.boxes, selected.scores, selected.classes, selected.num_detections,
                          selected.gather(raw_scores), selected.anchor_indices,
                          box_ops.change_coordinate_frame(box_ops.clip_to_window(raw_boxes, window), window),
                          raw_scores)


def true_window(true_shapes: tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor) -> tf.Tensor:
    """True shapes int32 `[B, 3]` in inputs of `height` x `width` -> the windows `[B, 4]` that are no padding."""
    sides = tf.cast(true_shapes[:, :2], tf.float32)
    ends = sides / tf.cast(tf.stack([height, width]), tf.float32)
    return tf.concat([tf.zeros_like(ends), ends], axis=1)
