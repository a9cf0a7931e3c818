"""Batches whose optional fields are None, which neither tf.stack nor tf.data's slices take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from od_finetune import fields


def map_tensors(function: Callable[..., Any], *structures: Any) -> Any:
    """`tf.nest.map_structure` that leaves None alone."""
    return tf.nest.map_structure(lambda *values: None if values[0] is None else function(*values), *structures)


def batches_dataset(batches: Sequence[fields.Batch]) -> tf.data.Dataset:
    """A data set of these batches, which are alike in their shapes."""
    stacked = [tf.stack(values) for values in zip(*map(tf.nest.flatten, batches), strict=True) if values[0] is not None]

    def pack(*tensors: tf.Tensor) -> fields.Batch:
        left = iter(tensors)
        return map_tensors(lambda _: next(left), batches[0])

    return tf.data.Dataset.from_tensor_slices(tuple(stacked)).map(pack)


def two_objects() -> fields.Groundtruth:
    """Of two images, each with two objects and one place left empty."""
    no = tf.zeros([2, 3], tf.bool)
    return fields.Groundtruth(
        boxes=tf.constant([[[0.1, 0.1, 0.6, 0.6], [0.3, 0.4, 0.9, 0.9], [0, 0, 0, 0]]] * 2),
        classes=tf.one_hot([[0, 1, -1]] * 2, 2),
        weights=tf.constant([[1.0, 1.0, 0.0]] * 2),
        num_boxes=tf.constant([2, 2]),
        is_crowd=no,
        difficult=no,
        group_of=no,
        area=tf.zeros([2, 3]),
    )
