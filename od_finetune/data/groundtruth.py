"""From a decoded, augmented sample to one image's `Groundtruth`."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from od_finetune.data import sample as s
from od_finetune.data.sample import Sample
from od_finetune.fields import Groundtruth


class BatchOptions(NamedTuple):
    """What becomes of a record."""

    batch_size: int
    num_classes: int
    max_boxes: int = 100  # boxes are filled up to this many ...
    truncate: bool = True  # ... and cut off there; else a batch is as long as its longest image needs
    merge_labels: bool = False  # boxes with equal corners become one with several classes
    drop_remainder: bool = True
    prefetch: int = 2  # batches


def to_groundtruth(sample: Sample, options: BatchOptions) -> Groundtruth:
    """The sample's objects as one image's `Groundtruth`, classes one-hot, filled or cut to `max_boxes`."""
    classes = tf.one_hot(sample.objects[s.CLASSES] - 1, options.num_classes, dtype=tf.float32)
    if options.merge_labels:
        sample, classes = merge_labels(sample, classes)
    count = tf.shape(sample.boxes)[0]
    length: int | tf.Tensor = options.max_boxes
    if not options.truncate:
        length = tf.maximum(count, options.max_boxes)

    def fit(values: tf.Tensor) -> tf.Tensor:
        values = values[:length]
        margins = [[0, length - tf.shape(values)[0]]] + [[0, 0]] * (values.shape.rank - 1)
        static = options.max_boxes if options.truncate else None
        return tf.ensure_shape(tf.pad(values, margins), [static, *values.shape[1:]])

    objects = {name: fit(values) for name, values in sample.objects.items() if name != s.CLASSES}
    return Groundtruth(
        boxes=fit(tf.ensure_shape(sample.boxes, [None, 4])),
        classes=fit(classes),
        weights=objects[s.WEIGHTS],
        num_boxes=tf.minimum(count, length),
        is_crowd=objects[s.IS_CROWD],
        difficult=objects[s.DIFFICULT],
        group_of=objects[s.GROUP_OF],
        area=objects[s.AREA],
        **{name: objects[name] for name in s.OPTIONAL if name in objects},
    )


def merge_labels(sample: Sample, classes: tf.Tensor) -> tuple[Sample, tf.Tensor]:
    """One box for all boxes with the same corners, with the classes of all of them (k-hot `[n, C]`).

    Everything else is taken from the first of them.
    """
    same = tf.reduce_all(tf.equal(sample.boxes[:, None], sample.boxes[None]), axis=-1)
    count = tf.shape(sample.boxes)[0]
    # arg max over a row of no element is an error, and there is nothing to merge
    first = tf.cond(
        count > 0,
        lambda: tf.equal(tf.argmax(tf.cast(same, tf.int32), axis=-1, output_type=tf.int32), tf.range(count)),
        lambda: tf.zeros([0], tf.bool),
    )
    merged = tf.minimum(tf.matmul(tf.cast(same, tf.float32), classes), 1.0)
    return sample.select(first), tf.boolean_mask(merged, tf.ensure_shape(first, [None]))
