"""One training step, and the errors that stop a run."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import orbit
import tensorflow as tf

from od_finetune import fields, randomness
from od_finetune.errors import UserError
from od_finetune.training.distillation import KeptOutputs
from od_finetune.training.freeze import FreezePlan
from od_finetune.training.optimizers import MovingAverage, Optimizer
from od_finetune.training.row_masks import RowMasks

_NOT_FINITE = "the loss or its gradient is not finite"
# What TensorFlow puts around the message of an operation in the input pipeline: where in which graph it happened,
# before it (an optional stack trace, the dataset's kind) and after it ([[...]]).
_NOISE_BEFORE = (
    re.compile(r"^Graph execution error:.*\n\n", re.DOTALL),
    re.compile(r"^Detected at node.*\n(?=Error in user-defined|Iterator::|\{\{)", re.DOTALL),
    re.compile(r"^Detected at node .*\n<stack traces unavailable>\n"),
    re.compile(r"^.*user-defined function passed to \S+ transformation with iterator: ", re.DOTALL),
    re.compile(r"Iterator::[^\s:]+(::[^\s:]+)*: |\{\{function_node [^}]*\}\} ?|assertion failed: "),
)
_NOISE_AFTER = re.compile(r"\s*(\[\[|\[Op:).*", re.DOTALL)


Explain = Callable[[BaseException], UserError | None]


class NotFiniteError(UserError):
    """The loss turned NaN or infinite; names the step and the records of the batch."""


class TrainerSettings(NamedTuple):
    """Numbers of a training step."""

    clip_norm: float = 0.0  # largest global norm of the gradient; 0: no clipping
    bias_multiplier: float = 0.0  # factor on the gradients of biases; 0: none
    regularize: bool = True  # add the weight decay of trained variables to the loss
    seed: int = 0  # of what is random within the model and its losses, together with the step


class Trainer(orbit.StandardTrainer):
    """Trains what the freeze plan leaves trainable. `train(num_steps)` runs in one traced `tf.function`.

    A step: forward pass in training mode, losses, weight decay of the trained variables, gradients of them,
    biases' gradients scaled, those of frozen class rows masked, clipping by global norm (the OD API's TF2 loop; TF1
    slim clipped each variable by itself), the optimiser's update, and the moving averages. Nothing of it is copied to
    the host.
    """

    def __init__(
        self,
        detector: fields.Detector,
        plan: FreezePlan,
        optimizer: Optimizer,
        dataset: tf.data.Dataset | None = None,
        settings: TrainerSettings | None = None,
        moving_average_decay: float | None = None,
        explain: Explain | None = None,
        kept_outputs: KeptOutputs | None = None,
    ) -> None:
        """Applies the plan's first phase to the (built, restored) detector, and creates optimiser slots and averages.

        Args:
          dataset: of `fields.Batch`, normally without end; a TrainingLoop sets its own.
          moving_average_decay: keep an exponential moving average of the trained variables.
          explain: asked first what an error means to the user; see `input_error`.
          kept_outputs: what is done for classes that are to be kept; their rows are the plan's.
        """
        super().__init__(dataset)
        self.detector = detector
        self.settings = settings or TrainerSettings()
        self.global_step = orbit.utils.create_global_step()
        self.optimizer = optimizer
        self.moving_average = None if moving_average_decay is None else MovingAverage({}, moving_average_decay)
        self._carry_out(plan)
        self._explain = explain
        self._kept_outputs = kept_outputs or KeptOutputs([])
        self._row_masks = plan.row_masks or RowMasks({}, (), 0)
        self.exhausted = False  # whether the dataset came to its end
        # Losses summed since reset_means, in the order of names that tracing finds. The shape is open because only
        # the detector knows its losses, and a variable made while tracing would have everything traced twice.
        self._loss_names: list[str] = []
        self._sums = tf.Variable([0.0], shape=[None], trainable=False)
        self._summed = tf.Variable(0.0, trainable=False)
        self._keys = tf.Variable([""], shape=[None], trainable=False)
        self._last_loss = tf.Variable(0.0, trainable=False)

    def _carry_out(self, plan: FreezePlan) -> None:
        self.plan = plan  # of the present phase
        self.trained = plan.apply(self.detector)
        self.optimizer.build(list(self.trained.values()), self.global_step, plan.multipliers, plan.first_steps)
        if self.moving_average is not None:
            self.moving_average.follow(self.trained)
        self._regularizers = _regularizers(self.detector, plan) if self.settings.regularize else {}
        self._train_loop_fn = None  # orbit traces the step anew

    def follow_plan(self, step: int) -> bool:
        """Trains from now on what the plan says for the update after `step` others; whether that is a change.

        What begins to train gets its optimiser slots and its moving average here, as new as those of a first step; what
        stays keeps its own. The losses' means start afresh: weight decay may be new among them, or no longer be.
        """
        phase = self.plan.at(step)
        if phase is self.plan:
            return False
        self._carry_out(phase)
        self.reset_means()
        return True

    def losses(self, batch: fields.Batch) -> dict[str, tf.Tensor]:
        """The detector's losses in training mode, the regularisation loss if there is any, and their total."""
        inputs = self.detector.normalize(batch.images, batch.true_shapes)
        predictions = self.detector.predict(inputs, batch.true_shapes, training=True, **batch.side_inputs)
        kept, num_classes = self._kept_outputs, self.detector.num_classes
        losses = dict(self.detector.losses(kept.for_losses(predictions, num_classes), batch.groundtruth))
        losses.update(kept.losses(inputs, batch.true_shapes, predictions, num_classes))
        if self._regularizers:
            decay = [f(self.trained[name]) for name, f in self._regularizers.items()]
            losses[fields.REGULARIZATION_LOSS] = tf.add_n(decay)
        losses[fields.TOTAL_LOSS] = tf.add_n(list(losses.values()))
        return losses

    def gradients(self, batch: fields.Batch) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """Losses by name and the total's gradients by variable name (without what the loss does not reach).

        Only trained variables are watched, so that no backward operation and no stored activation exists below
        the lowest of them.
        """
        variables = list(self.trained.values())
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            losses = self.losses(batch)
        gradients = tape.gradient(losses[fields.TOTAL_LOSS], variables)
        reached = {n: tf.convert_to_tensor(g) for n, g in zip(self.trained, gradients, strict=True) if g is not None}
        return losses, reached

    def train_step(self, iterator: tf.data.Iterator) -> None:
        """One update from the iterator's next batch."""
        batch = next(iterator)
        with randomness.step_seed(tf.stack([tf.constant(self.settings.seed, tf.int64), self.global_step])):
            losses, gradients = self.gradients(batch)
        if self.settings.bias_multiplier:
            for name in gradients:
                if name.endswith("/biases"):
                    gradients[name] *= self.settings.bias_multiplier
        self._row_masks.mask_gradients(gradients)
        norm = tf.linalg.global_norm(list(gradients.values()))
        values = self._checked(batch, losses[fields.TOTAL_LOSS], norm, list(gradients.values()))
        if self.settings.clip_norm:
            values, _ = tf.clip_by_global_norm(values, self.settings.clip_norm, use_norm=norm)
        with self._row_masks.held(self.trained):
            self.optimizer.apply_gradients(zip(values, [self.trained[name] for name in gradients], strict=True))
        if self.moving_average is not None:
            self.moving_average.update()
        self._record(losses)

    def _checked(
        self, batch: fields.Batch, loss: tf.Tensor, norm: tf.Tensor, gradients: list[tf.Tensor]
    ) -> list[tf.Tensor]:
        """The gradients, which can't be had (so that nothing is updated) unless loss and gradient are finite."""
        # Kept for the error's message: an Assert's own data would have to be parsed out of text.
        noted = [self._keys.assign(batch.keys), self._last_loss.assign(loss)]
        with tf.control_dependencies(noted):
            check = tf.debugging.Assert(tf.math.is_finite(loss) & tf.math.is_finite(norm), [_NOT_FINITE])
        with tf.control_dependencies([check]):
            return [tf.identity(gradient) for gradient in gradients]

    def _record(self, losses: dict[str, tf.Tensor]) -> None:
        self._loss_names[:] = losses
        self._sums.assign(self._sums + tf.stack(list(losses.values())))  # the [0.0] of a reset spreads
        self._summed.assign_add(1.0)

    def train(self, num_steps: tf.Tensor) -> orbit.runner.Output | None:
        """Runs `num_steps` steps (int32 scalar tensor), fewer where the dataset ends (see `exhausted`).

        Raises:
          NotFiniteError: loss or gradient is NaN or infinite. The trained variables are those before that step, but
            the moving statistics of batch norms have taken its batch in, and may be NaN with it: go on from a
            checkpoint.
          UserError: the input pipeline failed; carries its message.
        """
        try:
            return super().train(num_steps)
        except tf.errors.OutOfRangeError:
            self.exhausted = True
            return self.train_loop_end()
        except tf.errors.OpError as error:
            if _NOT_FINITE in error.message:
                raise NotFiniteError(self._not_finite_message()) from None
            reported = input_error(error, self._explain)
            if reported is None:
                raise
            raise reported from error

    def train_loop_end(self) -> dict[str, tf.Tensor]:
        """Mean of each loss since the last call of `reset_means`, and the learning rate."""
        count = tf.maximum(self._summed, 1.0)
        means = dict(zip(self._loss_names, tf.unstack(self._sums / count), strict=False))
        return {**means, "learning_rate": self.optimizer.current_rate()}

    def reset_means(self) -> None:
        """Starts the means of `train_loop_end` afresh."""
        self._sums.assign([0.0])
        self._summed.assign(0.0)

    def _not_finite_message(self) -> str:
        keys = ", ".join(key.decode("utf-8", "replace") for key in self._keys.numpy())
        return (
            f"Step {int(self.global_step) + 1}: {_NOT_FINITE} (loss {float(self._last_loss):g}). The batch holds the "
            f"records: {keys}. Its update was not applied. Look for broken boxes in these records; otherwise lower the "
            "learning rate, lengthen its warm-up, or set gradient_clipping_by_norm."
        )


def _regularizers(detector: fields.Detector, plan: FreezePlan) -> dict[str, Callable[[tf.Tensor], tf.Tensor]]:
    """Of the trained variables: their layers' own, or the L2 weights that the plan has in their place."""
    trained = set(plan.trainable)
    own = {name: f for name, f in detector.regularizers().items() if name in trained}
    for name, weight in plan.weight_decay.items():
        own.pop(name, None)
        if weight:
            own[name] = functools.partial(_l2, weight)
    return own


def _l2(weight: float, variable: tf.Tensor) -> tf.Tensor:
    """`weight / 2 * sum(variable^2)`, as the config's l2_regularizer."""
    return weight * tf.nn.l2_loss(variable)


def input_error(error: tf.errors.OpError, explain: Explain | None = None) -> UserError | None:
    """What an input pipeline reported as an error for the user; None if `error` does not come from one.

    Args:
      explain: knows the pipeline's own messages; returns None for what it does not know.
    """
    known = explain(error) if explain is not None else None
    if known is not None:
        return known
    from_data = isinstance(error, tf.errors.DataLossError | tf.errors.NotFoundError)
    if not from_data and "IteratorGetNext" not in error.message:
        return None
    message = _NOISE_AFTER.sub("", error.message)
    for noise in _NOISE_BEFORE:
        message = noise.sub("", message)
    return UserError(f"The input pipeline failed: {message.strip()}")
