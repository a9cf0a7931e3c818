from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.training import optimizers, schedules

GRADIENTS = [1.0, -2.0, 0.5, 3.0]


def run(optimizer: optimizers.Optimizer, gradients: list[float], multiplier: float = 1.0) -> float:
    variable = tf.Variable(1.0)
    optimizer.build([variable], tf.Variable(0, dtype=tf.int64), [multiplier])
    for gradient in gradients:
        optimizer.apply_gradients([(tf.constant(gradient), variable)])
    return float(variable)


def test_momentum_applies_todays_rate_to_the_whole_accumulator():
    rates = [0.1, 0.1, 0.01, 0.01]
    weight, velocity = 1.0, 0.0
    for rate, gradient in zip(rates, GRADIENTS, strict=True):
        velocity = 0.9 * velocity + gradient
        weight -= rate * velocity
    schedule = schedules.manual_step(0.1, [2], [0.01])
    assert run(optimizers.Momentum(schedule, 0.9), GRADIENTS) == pytest.approx(weight, rel=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rms_prop_starts_at_one_with_epsilon_inside_the_root(momentum):
    weight, square, moved = 1.0, 1.0, 0.0
    for gradient in GRADIENTS:
        square = 0.8 * square + 0.2 * gradient**2
        moved = momentum * moved + 0.1 * gradient / np.sqrt(square + 0.5)
        weight -= moved
    optimizer = optimizers.RmsProp(schedules.constant(0.1), momentum, decay=0.8, epsilon=0.5)
    assert run(optimizer, GRADIENTS) == pytest.approx(weight, rel=1e-5)


def test_rms_prop_is_tf1s():
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variable = tf.compat.v1.Variable(1.0, use_resource=True)
        gradient = tf.compat.v1.placeholder(tf.float32, [])
        optimizer = tf.compat.v1.train.RMSPropOptimizer(0.1, decay=0.8, momentum=0.9, epsilon=0.5)
        update = optimizer.apply_gradients([(gradient, variable)])
        session.run(tf.compat.v1.global_variables_initializer())
        for value in GRADIENTS:
            session.run(update, {gradient: value})
        expected = session.run(variable)
    ours = optimizers.RmsProp(schedules.constant(0.1), 0.9, decay=0.8, epsilon=0.5)
    assert run(ours, GRADIENTS) == pytest.approx(expected, rel=1e-6)


def test_adam_is_the_papers():
    weight, m, v = 1.0, 0.0, 0.0
    for t, gradient in enumerate(GRADIENTS, 1):
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        weight -= 0.1 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-3)
    assert run(optimizers.Adam(schedules.constant(0.1), epsilon=1e-3), GRADIENTS) == pytest.approx(weight, rel=1e-4)


@pytest.mark.parametrize("kind", [optimizers.Momentum, optimizers.RmsProp, optimizers.Adam])
def test_a_multiplier_scales_the_update(kind):
    step = run(kind(schedules.constant(0.01)), GRADIENTS) - 1.0
    assert run(kind(schedules.constant(0.01)), GRADIENTS, multiplier=10.0) - 1.0 == pytest.approx(10 * step, rel=1e-4)


def test_moving_average_starts_at_the_variable_and_lends_its_values():
    variable = tf.Variable([2.0, 4.0])
    average = optimizers.MovingAverage({"w": variable}, decay=0.75)
    np.testing.assert_array_equal(average.shadows["w"], [2.0, 4.0])
    variable.assign([6.0, 0.0])
    average.update()
    np.testing.assert_allclose(average.shadows["w"], [3.0, 3.0])
    with average.applied():
        np.testing.assert_allclose(variable, [3.0, 3.0])
    np.testing.assert_array_equal(variable, [6.0, 0.0])
    average.reset(["w"])
    np.testing.assert_array_equal(average.shadows["w"], [6.0, 0.0])


def test_no_number_of_the_config_is_stored_in_a_checkpoint(tmp_path):
    variable = tf.Variable(1.0)
    optimizer = optimizers.RmsProp(schedules.constant(0.1))
    optimizer.build([variable], tf.Variable(0, dtype=tf.int64))
    path = tf.train.Checkpoint(optimizer=optimizer, model=variable).write(str(tmp_path / "ckpt"))
    stored = {name.split("/.ATTRIBUTES")[0] for name, _ in tf.train.list_variables(path)}
    slots = {f"model/.OPTIMIZER_SLOT/optimizer/{slot}" for slot in ("rms", "momentum")}
    assert stored - {"_CHECKPOINTABLE_OBJECT_GRAPH"} == {"model", *slots}
