"""The optimisers of the config language with TF1's arithmetic, and the moving average of the weights.

They are tf_keras legacy optimisers (`OptimizerV2`), because those apply a variable's update with one fused
kernel. tf_keras's own classes are not used as they stand: their RMSProp starts the mean square at 0 (TF1: 1)
and, without momentum, adds epsilon outside the root; their momentum keeps `momentum * v - rate * gradient`, so
that the past keeps its old learning rate when the schedule changes it (TF1 multiplies the whole accumulator by
today's); and they store numbers such as the momentum in the checkpoint, where a resumed run would silently
prefer them to the config's.

A variable's learning-rate multiplier scales its update, not its gradient: scaling the gradient would cancel
out in Adam and RMSProp.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from od_finetune.training.schedules import Schedule


class Optimizer(tf_keras.optimizers.legacy.Optimizer):
    """Base: a schedule, learning-rate multipliers by variable, and slots that exist before the first step."""

    def __init__(self, schedule: Schedule, name: str) -> None:
        super().__init__(name)
        self._set_hyper("learning_rate", schedule)
        self.schedule = schedule
        self._multipliers: dict[Any, float] = {}
        self._first_steps: dict[Any, int] = {}

    def build(
        self,
        variables: Sequence[tf.Variable],
        step: tf.Variable,
        multipliers: Sequence[float] | None = None,
        first_steps: Sequence[int] | None = None,
    ) -> None:
        """Creates the slots of `variables`; counts in `step`, the one step counter of a run.

        Called again, it keeps the slots of variables that stay, adds those of new ones and drops the others'.

        Args:
          variables: everything this optimiser updates from now on.
          step: int64 scalar; read by the schedule, incremented by every update.
          multipliers: of the learning rate, one for each variable; all 1 when left out.
          first_steps: what `step` was when each variable began to be updated; all 0 when left out.
        """
        if self._iterations is None:
            self.iterations = step
        self._multipliers = {v.ref(): m for v, m in zip(variables, multipliers or [1.0] * len(variables), strict=True)}
        self._first_steps = {v.ref(): s for v, s in zip(variables, first_steps or [0] * len(variables), strict=True)}
        self.drop_slots_of_others(variables)
        with tf.init_scope():
            # Otherwise made within the first traced step: a checkpoint written before it would lack them.
            self._create_all_weights(variables)

    def drop_slots_of_others(self, variables: Iterable[tf.Variable]) -> None:
        """Removes what is no slot of `variables`; tf_keras makes such while it restores a checkpoint that has them."""
        kept = {var._unique_id for var in variables}  # tf_keras's own key of slots
        dropped = {id(slot) for key, slots in self._slots.items() if key not in kept for slot in slots.values()}
        self._slots = {key: slots for key, slots in self._slots.items() if key in kept}
        self._weights = [weight for weight in self._weights if id(weight) not in dropped]

    def current_rate(self) -> tf.Tensor:
        """The schedule's learning rate for the coming step (multipliers left aside)."""
        return tf.cast(self.schedule(self.iterations), tf.float32)

    def _rate(self, var: tf.Variable, apply_state: Mapping | None) -> tf.Tensor:
        rate = apply_state[(var.device, var.dtype.base_dtype)]["lr_t"]
        multiplier = self._multipliers.get(var.ref(), 1.0)
        return rate if multiplier == 1.0 else rate * multiplier

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "schedule": self.schedule}


class Momentum(Optimizer):
    """`v = momentum * v + g;  w -= rate * v` (TF1 MomentumOptimizer); momentum 0 is plain SGD."""

    def __init__(self, schedule: Schedule, momentum: float = 0.9) -> None:
        super().__init__(schedule, "momentum")
        self.momentum = momentum

    def _create_slots(self, var_list: Sequence[tf.Variable]) -> None:
        if self.momentum:
            for var in var_list:
                self.add_slot(var, "momentum")

    def _resource_apply_dense(self, grad: tf.Tensor, handle: tf.Variable, apply_state: Mapping) -> tf.Operation:
        rate = self._rate(handle, apply_state)
        if not self.momentum:
            return tf.raw_ops.ResourceApplyGradientDescent(var=handle.handle, alpha=rate, delta=grad)
        return tf.raw_ops.ResourceApplyMomentum(
            var=handle.handle,
            accum=self.get_slot(handle, "momentum").handle,
            lr=rate,
            grad=grad,
            momentum=self.momentum,
        )


class RmsProp(Optimizer):
    """`s = decay * s + (1 - decay) * g^2;  m = momentum * m + rate * g / sqrt(s + epsilon);  w -= m`.

    TF1's: `s` starts at 1 and epsilon lies inside the root, which is why published configs set it to 1.0.
    """

    def __init__(self, schedule: Schedule, momentum: float = 0.9, decay: float = 0.9, epsilon: float = 1.0) -> None:
        super().__init__(schedule, "rms_prop")
        self.momentum = momentum
        self.decay_rate = decay
        self.epsilon = epsilon

    def _create_slots(self, var_list: Sequence[tf.Variable]) -> None:
        for var in var_list:
            self.add_slot(var, "rms", initializer="ones")
            self.add_slot(var, "momentum")

    def _resource_apply_dense(self, grad: tf.Tensor, handle: tf.Variable, apply_state: Mapping) -> tf.Operation:
        return tf.raw_ops.ResourceApplyRMSProp(
            var=handle.handle,
            ms=self.get_slot(handle, "rms").handle,
            mom=self.get_slot(handle, "momentum").handle,
            lr=self._rate(handle, apply_state),
            rho=self.decay_rate,
            momentum=self.momentum,
            epsilon=self.epsilon,
            grad=grad,
        )


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015) with the bias correction folded into the rate; epsilon is the paper's "hat".

    The correction counts the updates of each variable: the averages of one that is unfrozen late begin at 0 only then.
    """

    def __init__(
        self, schedule: Schedule, epsilon: float = 1e-8, beta_1: float = 0.9, beta_2: float = 0.999
    ) -> None:
        super().__init__(schedule, "adam")
        self.epsilon = epsilon
        self.beta_1 = beta_1
        self.beta_2 = beta_2

    def _create_slots(self, var_list: Sequence[tf.Variable]) -> None:
        for var in var_list:
            self.add_slot(var, "m")
            self.add_slot(var, "v")

    def _prepare_local(self, var_device: str, var_dtype: tf.DType, apply_state: dict) -> None:
        super()._prepare_local(var_device, var_dtype, apply_state)
        apply_state[(var_device, var_dtype)]["powers"] = {
            first: self._powers(first, var_dtype) for first in set(self._first_steps.values()) | {0}
        }

    def _powers(self, first_step: int, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
        count = tf.cast(self.iterations + 1 - first_step, dtype)
        return tf.pow(tf.constant(self.beta_1, dtype), count), tf.pow(tf.constant(self.beta_2, dtype), count)

    def _resource_apply_dense(self, grad: tf.Tensor, handle: tf.Variable, apply_state: Mapping) -> tf.Operation:
        powers = apply_state[(handle.device, handle.dtype.base_dtype)]["powers"]
        beta1_power, beta2_power = powers[self._first_steps.get(handle.ref(), 0)]
        return tf.raw_ops.ResourceApplyAdam(
            var=handle.handle,
            m=self.get_slot(handle, "m").handle,
            v=self.get_slot(handle, "v").handle,
            beta1_power=beta1_power,
            beta2_power=beta2_power,
            lr=self._rate(handle, apply_state),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=grad,
        )


class MovingAverage:
    """Exponential moving averages of trainable variables: `shadow -= (1 - decay) * (shadow - variable)`.

    A shadow starts as a copy of its variable, so no bias has to be removed; TF1's MovingAverageOptimizer does
    the same, while tf-models-official's ExponentialMovingAverage starts at zero. Frozen variables are their own
    average and have no shadow, and neither have batch-norm statistics, which are moving averages already: an
    averaged model is the shadows, the frozen variables, and the statistics as they stand.
    """

    def __init__(self, variables: Mapping[str, tf.Variable], decay: float) -> None:
        self.decay = decay
        self.variables: dict[str, tf.Variable] = {}
        self.shadows: dict[str, tf.Variable] = {}
        self.follow(variables)

    def follow(self, variables: Mapping[str, tf.Variable]) -> None:
        """Averages these from now on: the shadow of a new one starts as a copy of it, those of others go."""
        self.variables = dict(variables)
        self.shadows = {
            name: self.shadows[name] if name in self.shadows else tf.Variable(variable, trainable=False)
            for name, variable in self.variables.items()
        }

    def reset(self, names: Iterable[str]) -> None:
        """Starts these variables' averages anew from their present values."""
        for name in names:
            self.shadows[name].assign(self.variables[name])

    def update(self) -> None:
        """One step of averaging; works in graph and eager mode."""
        for name, shadow in self.shadows.items():
            shadow.assign_sub((1.0 - self.decay) * (shadow - self.variables[name]), read_value=False)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model's variables hold the averages; afterwards their own values again."""
        trained = {name: tf.identity(v) for name, v in self.variables.items()}
        try:
            for name, shadow in self.shadows.items():
                self.variables[name].assign(shadow)
            yield
        finally:
            for name, value in trained.items():
                self.variables[name].assign(value)
