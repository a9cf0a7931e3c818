"""Learning-rate schedules of the config language, composed of tf-models-official's and tf_keras's.

Each function returns a `LearningRateSchedule`: step (int64 scalar) -> float32 scalar. The rates are those of
the OD API's TF2 schedules (`reference/schedules.json` records them).
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras
from official.modeling.optimization import lr_schedule

from od_finetune.errors import UserError

Schedule = tf_keras.optimizers.schedules.LearningRateSchedule


class Constant(Schedule):
    """The same rate at every step."""

    def __init__(self, learning_rate: float) -> None:
        super().__init__()
        self.learning_rate = learning_rate

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        return tf.constant(self.learning_rate, tf.float32)

    def get_config(self) -> dict[str, Any]:
        return {"learning_rate": self.learning_rate}


class Held(Schedule):
    """Another schedule that stands at its first value until `start`, counts from there, and has a floor.

    The `...WithOffset` schedules of tf-models-official pass negative steps on, where a cosine would rise above
    its first value; hence this one.
    """

    def __init__(self, schedule: Schedule, start: int = 0, floor: float = 0.0) -> None:
        super().__init__()
        self.schedule = schedule
        self.start = start
        self.floor = floor

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        since = tf.maximum(tf.cast(step, tf.float32) - float(self.start), 0.0)
        return tf.maximum(self.schedule(since), self.floor)

    def get_config(self) -> dict[str, Any]:
        return {"schedule": self.schedule, "start": self.start, "floor": self.floor}


class BurnIn(Schedule):
    """A fixed rate for the first `steps` steps, another schedule from then on."""

    def __init__(self, schedule: Schedule, steps: int, learning_rate: float) -> None:
        super().__init__()
        self.schedule = schedule
        self.steps = steps
        self.learning_rate = learning_rate

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        return tf.where(tf.cast(step, tf.int64) < self.steps, self.learning_rate, self.schedule(step))

    def get_config(self) -> dict[str, Any]:
        return {"schedule": self.schedule, "steps": self.steps, "learning_rate": self.learning_rate}


def constant(learning_rate: float) -> Schedule:
    """The same rate at every step."""
    return Constant(learning_rate)


def exponential_decay(
    initial: float,
    decay_steps: int,
    decay_factor: float,
    staircase: bool = True,
    burnin_learning_rate: float = 0.0,
    burnin_steps: int = 0,
    floor: float = 0.0,
) -> Schedule:
    """`initial * decay_factor ** (steps after burn-in / decay_steps)`, never below `floor`.

    A `burnin_learning_rate` of 0 with `burnin_steps` set means the initial rate, as in the OD API.
    """
    if decay_steps < 1:
        raise UserError(f"exponential_decay_learning_rate.decay_steps is {decay_steps}; it must be at least 1.")
    decay = tf_keras.optimizers.schedules.ExponentialDecay(initial, decay_steps, decay_factor, staircase)
    schedule: Schedule = Held(decay, start=burnin_steps, floor=floor)
    if burnin_steps and burnin_learning_rate:
        schedule = BurnIn(schedule, burnin_steps, burnin_learning_rate)
    return schedule


def manual_step(initial: float, steps: list[int], rates: list[float], warmup: bool = False) -> Schedule:
    """`initial` before `steps[0]`, `rates[i]` from `steps[i]` on; `warmup` rises linearly to `rates[0]` first."""
    if any(step < 1 for step in steps) or any(b <= a for a, b in zip(steps, steps[1:], strict=False)):
        raise UserError(f"manual_step_learning_rate.schedule has steps {steps}; they must be positive and increase.")
    if not steps:
        return constant(initial)
    # PiecewiseConstantDecay changes after its boundary, the config language at it.
    boundaries = [step - 1 for step in steps]
    schedule = tf_keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, [initial, *rates])
    if warmup:
        schedule = lr_schedule.LinearWarmup(schedule, warmup_steps=steps[0], warmup_learning_rate=initial)
    return schedule


def cosine_decay(
    base: float, total_steps: int, warmup_learning_rate: float = 0.0, warmup_steps: int = 0, hold_steps: int = 0
) -> Schedule:
    """Linear rise over `warmup_steps`, `base` for `hold_steps`, then half a cosine to 0 at `total_steps`."""
    field = "cosine_decay_learning_rate"
    if total_steps <= warmup_steps + hold_steps:
        raise UserError(
            f"{field}: total_steps is {total_steps}, but warmup_steps ({warmup_steps}) plus hold_base_rate_steps "
            f"({hold_steps}) leave no step to decay in; raise total_steps (num_steps as a rule) or lower the others."
        )
    if warmup_steps and warmup_learning_rate > base:
        raise UserError(
            f"{field}: warmup_learning_rate {warmup_learning_rate:g} is above learning_rate_base {base:g}; "
            "a warm-up has to rise."
        )
    start = warmup_steps + hold_steps
    schedule: Schedule = Held(tf_keras.optimizers.schedules.CosineDecay(base, total_steps - start), start=start)
    if warmup_steps:
        schedule = lr_schedule.LinearWarmup(schedule, warmup_steps, warmup_learning_rate)
    return schedule
