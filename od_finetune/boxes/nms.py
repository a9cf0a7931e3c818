"""Non-maximum suppression over a batch of images and many classes, all options of `batch_non_max_suppression`."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import tensorflow as tf

from od_finetune.boxes import box_ops
from od_finetune.errors import UserError

_LOWEST = -float("inf")
# Boxes that are looked at first for each detection asked for: enough for nearly every photograph.
_CANDIDATES_PER_DETECTION = 10


class Selected(NamedTuple):
    """Selected boxes of a batch, best score first, zeros beyond `num_detections`."""

    boxes: tf.Tensor  # float32 [B, D, 4]
    scores: tf.Tensor  # float32 [B, D]
    classes: tf.Tensor  # int32 [B, D]: column of the scores
    num_detections: tf.Tensor  # int32 [B]
    anchor_indices: tf.Tensor  # int32 [B, D]: row of the boxes

    def gather(self, field: tf.Tensor) -> tf.Tensor:
        """`[B, A, ...]` -> `[B, D, ...]`: what belongs to the selected boxes; zeros beyond `num_detections`."""
        picked = tf.gather(field, self.anchor_indices, batch_dims=1)
        valid = tf.sequence_mask(self.num_detections, tf.shape(self.scores)[1])
        valid = tf.reshape(valid, tf.concat([tf.shape(valid), tf.ones([tf.rank(picked) - 2], tf.int32)], 0))
        return tf.where(valid, picked, tf.zeros_like(picked))


class NmsOptions(NamedTuple):
    """The fields of `batch_non_max_suppression`, by their names there.

    `use_static_shapes` and `use_partitioned_nms` change nothing: shapes are always fixed here (`[B,
    max_total_detections]`), and a partitioned NMS selects the same boxes in another order of computation.
    """

    score_threshold: float = 0.0
    iou_threshold: float = 0.6
    max_detections_per_class: int = 100
    max_total_detections: int = 100
    use_class_agnostic_nms: bool = False
    max_classes_per_detection: int = 1
    soft_nms_sigma: float = 0.0
    use_combined_nms: bool = False
    change_coordinate_frame: bool = True
    use_hard_nms: bool = False
    use_cpu_nms: bool = False
    use_static_shapes: bool = False
    use_partitioned_nms: bool = False

    def check(self) -> NmsOptions:
        """Raises a UserError that names the field that cannot be."""
        if not 0.0 <= self.iou_threshold <= 1.0:
            raise UserError(f"batch_non_max_suppression.iou_threshold is {self.iou_threshold}; it must lie in [0, 1]")
        if self.soft_nms_sigma < 0.0:
            raise UserError(f"batch_non_max_suppression.soft_nms_sigma is {self.soft_nms_sigma}; it must be 0 or more")
        if self.max_detections_per_class > self.max_total_detections:
            raise UserError(f"batch_non_max_suppression.max_detections_per_class ({self.max_detections_per_class}) "
                            f"must not exceed max_total_detections ({self.max_total_detections})")
        if self.max_detections_per_class < 1:
            raise UserError("batch_non_max_suppression.max_detections_per_class must be at least 1")
        if self.use_combined_nms and self.use_class_agnostic_nms:
            raise UserError("batch_non_max_suppression: use_combined_nms and use_class_agnostic_nms exclude each other")
        if self.max_classes_per_detection > 1 and self.use_class_agnostic_nms:
            raise UserError(f"batch_non_max_suppression.max_classes_per_detection is {self.max_classes_per_detection}; "
                            "class-agnostic NMS keeps one class per detection (the OD API refuses more as well)")
        if self.soft_nms_sigma > 0.0 and (self.use_combined_nms or self.use_static_shapes):
            other = "use_combined_nms" if self.use_combined_nms else "use_static_shapes"
            raise UserError(f"batch_non_max_suppression: soft_nms_sigma cannot be used with {other}")
        return self


class MulticlassNms:
    """Greedy NMS (optionally Soft-NMS, Bodla et al., 2017) of each class by itself, or over all classes at once."""

    def __init__(self, options: NmsOptions):
        self.options = options.check()

    def __call__(self, boxes: tf.Tensor, scores: tf.Tensor, clip_window: tf.Tensor | None = None) -> Selected:
        """Selects from each image.

        Args:
            boxes: `[B, A, 4]`, or `[B, A, C, 4]` with a box for each class.
            scores: `[B, A, C]` without background.
            clip_window: `[B, 4]`. Selected boxes are clipped to it, dropped where nothing is left, and, with
                `change_coordinate_frame`, made relative to it. None: boxes stay as they are.
        """
        boxes, scores = tf.convert_to_tensor(boxes), tf.convert_to_tensor(scores)
        with tf.device("/cpu:0") if self.options.use_cpu_nms else contextlib.nullcontext():
            if self.options.use_combined_nms:
                return self._combined(boxes, scores, clip_window)
            if self.options.use_class_agnostic_nms:
                return self._class_agnostic(boxes, scores, clip_window)
            return self._per_class(boxes, scores, clip_window)

    def _per_class(self, boxes: tf.Tensor, scores: tf.Tensor, clip_window: tf.Tensor | None) -> Selected:
        """NMS over the best candidates of each image; over all of them where that leaves too few detections.

        Greedy NMS judges a box by better ones of its class alone. So what it selects from all boxes above some score
        is the beginning of what it selects from all boxes, and enough of it is the whole answer. With a low
        `score_threshold` and many classes this spares nearly all of the work. (Soft-NMS changes scores as it goes.)
        """
        floor = tf.fill([tf.shape(scores)[0]], self.options.score_threshold)
        if self.options.soft_nms_sigma > 0.0 and not self.options.use_hard_nms:
            return self._each_class(boxes, scores, floor, clip_window)
        flat = tf.reshape(scores, [tf.shape(scores)[0], -1])
        wanted = tf.minimum(_CANDIDATES_PER_DETECTION * self.options.max_total_detections, tf.shape(flat)[1])
        raised = tf.maximum(floor, tf.math.top_k(flat, wanted).values[:, -1])
        first = self._each_class(boxes, scores, raised, clip_window)
        complete = (first.num_detections == self.options.max_total_detections) | tf.equal(raised, floor)
        return Selected(*tf.cond(tf.reduce_all(complete), lambda: tuple(first),
                                 lambda: tuple(self._each_class(boxes, scores, floor, clip_window))))

    def _each_class(self, boxes: tf.Tensor, scores: tf.Tensor, floor: tf.Tensor,
                    clip_window: tf.Tensor | None) -> Selected:
        """NMS class by class over the boxes with scores above `floor` `[B]`."""
        batch, classes = tf.shape(scores)[0], tf.shape(scores)[2]
        limit = self.options.max_detections_per_class
        by_class = tf.reshape(tf.transpose(scores, [0, 2, 1]), [batch * classes, -1])
        own_boxes = boxes.shape.rank == 4
        share = 1 if own_boxes else classes
        rows = tf.reshape(tf.transpose(boxes, [0, 2, 1, 3]), [batch * classes, -1, 4]) if own_boxes else boxes
        index, score, count = self._suppress(rows, by_class, tf.repeat(floor, classes), share, limit)
        shape = [batch, classes * limit]
        label = tf.broadcast_to(tf.repeat(tf.range(classes), limit)[None], shape)
        index, score = tf.reshape(index, shape), tf.reshape(score, shape)
        valid = tf.reshape(tf.sequence_mask(count, limit), shape)
        if own_boxes:
            picked = tf.gather_nd(boxes, tf.stack([index, label], axis=-1), batch_dims=1)
        else:
            picked = tf.gather(boxes, index, batch_dims=1)
        return self._finish(picked, score, label, index, valid, clip_window)

    def _class_agnostic(self, boxes: tf.Tensor, scores: tf.Tensor, clip_window: tf.Tensor | None) -> Selected:
        best_class = tf.argmax(scores, axis=-1, output_type=tf.int32)
        best = tf.reduce_max(scores, axis=-1)
        if boxes.shape.rank == 4:
            boxes = tf.gather(boxes, best_class, batch_dims=2)
        limit = self.options.max_total_detections
        floor = tf.fill([tf.shape(scores)[0]], self.options.score_threshold)
        index, score, count = self._suppress(boxes, best, floor, 1, limit)
        label, picked = (tf.gather(field, index, batch_dims=1) for field in (best_class, boxes))
        return self._finish(picked, score, label, index, tf.sequence_mask(count, limit), clip_window)

    def _suppress(self, boxes: tf.Tensor, scores: tf.Tensor, floor: tf.Tensor, share: int | tf.Tensor,
                  limit: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Runs NMS on each row of `scores` `[R, A]` above `floor` `[R]`, with the boxes `[R // share, A, 4]`.

        Returns:
            Indices `[R, limit]`, scores `[R, limit]`, both padded, and how many are real `[R]`.
        """
        sigma = 0.0 if self.options.use_hard_nms else self.options.soft_nms_sigma

        def one_row(row: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            index, score, count = tf.raw_ops.NonMaxSuppressionV5(
                boxes=boxes[row // share], scores=scores[row], max_output_size=limit,
                iou_threshold=self.options.iou_threshold, score_threshold=floor[row],
                soft_nms_sigma=sigma, pad_to_max_output_size=True)
            return tf.ensure_shape(index, [limit]), tf.ensure_shape(score, [limit]), count

        return tf.map_fn(one_row, tf.range(tf.shape(scores)[0]), parallel_iterations=32,
                         fn_output_signature=(tf.int32, tf.float32, tf.int32))

    def _combined(self, boxes: tf.Tensor, scores: tf.Tensor, clip_window: tf.Tensor | None) -> Selected:
        """TensorFlow's own multi-class NMS: it truncates before the window is looked at, so it may yield fewer."""
        limit = self.options.max_total_detections
        per_class = boxes if boxes.shape.rank == 4 else boxes[:, :, None]
        picked, score, label, count = tf.image.combined_non_max_suppression(
            per_class, scores, self.options.max_detections_per_class, limit, self.options.iou_threshold,
            self.options.score_threshold, clip_boxes=clip_window is None)
        label, valid = tf.cast(label, tf.int32), tf.sequence_mask(count, limit)
        # The op does not say which anchors it took: they are found again by their score in the class.
        same = tf.equal(tf.gather(tf.transpose(scores, [0, 2, 1]), label, batch_dims=1), score[..., None])
        index = tf.argmax(tf.cast(same, tf.int8), axis=-1, output_type=tf.int32)
        return self._finish(picked, score, label, index, valid, clip_window)

    def _finish(self, boxes: tf.Tensor, scores: tf.Tensor, classes: tf.Tensor, indices: tf.Tensor, valid: tf.Tensor,
                clip_window: tf.Tensor | None) -> Selected:
        """Clips, drops what is invalid (empty boxes too), sorts by score and keeps the best."""
        if clip_window is not None:
            boxes = box_ops.clip_to_window(boxes, clip_window)
            # Negative scores go too, as in the OD API, where -1 marks what is to be dropped.
            valid &= (box_ops.area(boxes) > 0.0) & (scores >= 0.0)
            if self.options.change_coordinate_frame:
                boxes = box_ops.change_coordinate_frame(boxes, clip_window)
        limit = self.options.max_total_detections
        short = tf.maximum(limit - tf.shape(scores)[1], 0)
        key = tf.pad(tf.where(valid, scores, _LOWEST), [[0, 0], [0, short]], constant_values=_LOWEST)
        best, order = tf.math.top_k(key, limit)
        count = tf.minimum(tf.reduce_sum(tf.cast(valid, tf.int32), axis=1), limit)
        real = tf.sequence_mask(count, limit)
        order = tf.where(real, order, 0)

        def take(field: tf.Tensor) -> tf.Tensor:
            return tf.where(real, tf.gather(field, order, batch_dims=1), 0)

        boxes = tf.where(real[..., None], tf.gather(boxes, order, batch_dims=1), 0.0)
        return Selected(boxes, tf.where(real, best, 0.0), take(classes), count, take(indices))
