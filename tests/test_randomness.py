from __future__ import annotations

import numpy as np
import tensorflow as tf

from od_finetune import randomness


def draws(seed: int, step: tf.Tensor) -> tf.Tensor:
    with randomness.step_seed(tf.stack([tf.constant(seed, tf.int64), tf.cast(step, tf.int64)])):
        return tf.stack([tf.random.stateless_uniform([4], randomness.next_seed()) for _ in range(3)])


def test_draws_depend_on_seed_step_and_place_alone():
    traced = tf.function(draws)
    found = {(seed, step): traced(seed, tf.constant(step)).numpy() for seed in (0, 1) for step in range(3)}
    for (seed, step), drawn in found.items():
        np.testing.assert_array_equal(drawn, draws(seed, tf.constant(step)))  # another process would trace anew
    every = np.concatenate(list(found.values()))
    assert len(np.unique(every)) == every.size


def test_draws_within_a_traced_loop_differ_from_step_to_step():
    @tf.function
    def loop() -> tf.Tensor:
        found = tf.TensorArray(tf.float32, 3)
        for step in tf.range(3):
            found = found.write(step, draws(0, step))
        return found.stack()

    np.testing.assert_array_equal(loop(), [draws(0, tf.constant(step)) for step in range(3)])


def test_outside_of_a_step_every_draw_is_another():
    assert not np.array_equal(randomness.next_seed(), randomness.next_seed())
