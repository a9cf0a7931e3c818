"""A record's lists: picked, filled and checked without failing, whatever the record holds."""

from __future__ import annotations

import tensorflow as tf

from od_finetune.data.checks import Check, describe

BOX = "image/object/bbox/"


def first(values: tf.Tensor, default: tf.Tensor | str) -> tf.Tensor:
    """The first of `values`, or `default`."""
    return tf.concat([values, [default]], axis=0)[0]


def fit(values: tf.Tensor, length: tf.Tensor, default: float | bool | str | None = None) -> tf.Tensor:
    """`values` cut to `length`, or filled with `default` (the type's zero where not given)."""
    filler = zero(values.dtype) if default is None else tf.constant(default, values.dtype)
    return tf.concat([values, tf.fill([length], filler)], axis=0)[:length]


def zero(dtype: tf.DType) -> tf.Tensor:
    """The type's zero, of strings the empty one."""
    return tf.constant("") if dtype == tf.string else tf.zeros([], dtype)


def first_true(mask: tf.Tensor) -> tf.Tensor:
    """Index of the first true element; the length of `mask` if there is none."""
    return tf.argmax(tf.concat([tf.cast(mask, tf.int32), [1]], axis=0), output_type=tf.int32)


def pick(values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """The element (row) of `values` at the first true element of `mask`, or the type's zero."""
    filler = tf.fill(tf.concat([[1], tf.shape(values)[1:]], axis=0), zero(values.dtype))
    return tf.concat([values, filler], axis=0)[first_true(mask)]


def same_length(
    features: dict[str, tf.Tensor], key: str, length: tf.Tensor, hint: str = "", optional: bool = False
) -> Check:
    """That `key` has `length` values; where `optional`, none is right too."""
    count = tf.size(features[key])
    holds = tf.equal(count, length)
    if optional:
        holds = tf.logical_or(holds, tf.equal(count, 0))
    return Check(
        holds, lambda: describe(count, f" values in {key}, expected ", length, f" (as many as {BOX}ymin){hint}")
    )
