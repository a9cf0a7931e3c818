"""Random numbers as a function of a seed, so that a stream can be repeated from any point.

Every seed is an int32 tensor `[2]`. A step that needs several numbers splits its seed first.
"""

from __future__ import annotations

import tensorflow as tf


def split(seed: tf.Tensor, count: int) -> list[tf.Tensor]:
    """`count` independent seeds."""
    return tf.unstack(tf.random.split(seed, count), num=count)


def fold_in(seed: tf.Tensor, data: tf.Tensor | int) -> tf.Tensor:
    """The seed number `data` (of 2**31) of the family that `seed` stands for."""
    return tf.random.fold_in(seed, tf.cast(tf.cast(data, tf.int64) % 2**31, tf.int32))


def uniform(seed: tf.Tensor, low: tf.Tensor | float = 0.0, high: tf.Tensor | float = 1.0, shape=()) -> tf.Tensor:
    """float32 of `shape`, uniform in [low, high)."""
    return tf.cast(low, tf.float32) + tf.cast(tf.subtract(high, low), tf.float32) * tf.random.stateless_uniform(
        shape, seed
    )


def integer(seed: tf.Tensor, low: tf.Tensor | int, high: tf.Tensor | int) -> tf.Tensor:
    """int32 scalar, uniform over low..high, both included; `low` where `high` is smaller."""
    return tf.random.stateless_uniform((), seed, low, tf.maximum(high, low) + 1, dtype=tf.int32)


def chance(seed: tf.Tensor, probability: tf.Tensor | float) -> tf.Tensor:
    """bool scalar, true with `probability`."""
    return tf.less(uniform(seed), probability)
