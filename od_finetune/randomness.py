"""Random numbers within a training step that depend on the step alone, so that a resumed run draws the same ones.

TensorFlow's stateful generators start anew in every process. Here the trainer says the step's seed once, around
the code that it traces, and whatever draws (dropout, sampled anchors) asks for a seed of its own:

    with step_seed(tf.stack([seed, step])):
        ...
        tf.nn.experimental.stateless_dropout(x, rate, next_seed())
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import tensorflow as tf


class _Draws:
    """A step's seed, and how many were derived from it; the count goes up while tracing, by place in the code."""

    def __init__(self, seed: tf.Tensor) -> None:
        self._seed = seed
        self._count = 0

    def next(self) -> tf.Tensor:
        self._count += 1
        return tf.random.experimental.stateless_fold_in(self._seed, self._count)


_CURRENT: ContextVar[_Draws | None] = ContextVar("draws", default=None)


@contextlib.contextmanager
def step_seed(seed: tf.Tensor) -> Iterator[None]:
    """Within it, `next_seed` derives from `seed`, an integer tensor `[2]`."""
    token = _CURRENT.set(_Draws(seed))
    try:
        yield
    finally:
        _CURRENT.reset(token)


def next_seed() -> tf.Tensor:
    """A seed `[2]` for one stateless operation, another at each call; outside of `step_seed` a random one."""
    draws = _CURRENT.get()
    if draws is not None:
        return draws.next()
    return tf.random.uniform([2], maxval=tf.int32.max, dtype=tf.int32)
