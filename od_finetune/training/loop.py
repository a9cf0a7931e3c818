"""The outer loop: train, save, evaluate, keep the best, stop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import orbit
import tensorflow as tf

from od_finetune import fields
from od_finetune.errors import UserError
from od_finetune.training.best import Best, BestSettings, check_metric
from od_finetune.training.checkpointing import Checkpoints
from od_finetune.training.evaluator import Evaluator, Interrupted, quiet
from od_finetune.training.freeze import FreezePlan
from od_finetune.training.freeze_proof import FREEZE_PROOF, FreezeProof, FrozenChangedError
from od_finetune.training.history import History
from od_finetune.training.loop_records import (
    COMPLETED,
    EARLY_STOPPING,
    END_OF_DATA,
    SIGNALLED,
    LoopSettings,
    Outcome,
)
from od_finetune.training.progress import Progress
from od_finetune.training.stopping import StopRequest
from od_finetune.training.trainer import NotFiniteError, Trainer

# Python handles a signal only between calls of the traced loop, so a call should not take much longer than this.
_SECONDS_PER_CALL = 2.0


class _EndOfData(Exception):
    """Leaves orbit's controller, which would call an exhausted trainer for ever."""


class _Scalars(orbit.utils.SummaryManager):
    """Writes at log intervals only, where orbit would write after every call of the trainer.

    Attributes:
      rates: of the interval that ends now, None where none does. They leave evaluating and saving out, unlike
        orbit's own steps_per_second, whose place they take.
    """

    rates: dict[str, float] | None = None

    def write_summaries(self, summary_dict: dict[str, object]) -> None:
        if self.rates is not None:
            super().write_summaries({**summary_dict, **self.rates})


class TrainingLoop:
    """Trains in `model_dir` until done, continuing from the newest checkpoint there.

    What is to be unfrozen at a step is so right after the update before it, ahead of that step's checkpoint.
    Scalars go to `model_dir/train` and `model_dir/eval`, the best checkpoint to `model_dir/best`, the results of each
    evaluation to `model_dir/eval/results.jsonl`, the hashes of what is frozen to `model_dir/freeze_proof.json`.
    """

    def __init__(
        self,
        trainer: Trainer,
        model_dir: str | Path,
        settings: LoopSettings,
        make_dataset: Callable[[int], tf.data.Dataset],
        evaluator: Evaluator | None = None,
        best: BestSettings | None = None,
        progress: Progress | None = None,
        show_plan: Callable[[FreezePlan], None] | None = None,
    ) -> None:
        """Args:
        make_dataset: number of batches to skip -> the training dataset from there on; called once, with the
          step that training starts at.
        best: how the best checkpoint is chosen; needs an evaluator.
        show_plan: called with the plan of each later phase of the freeze plan as it begins, also by a resume within it.

        Raises:
          UserError: the evaluator gives no such metric, or averages are to be evaluated that the trainer lacks.
        """
        if settings.evaluate_averages and trainer.moving_average is None:
            raise UserError("Averages are to be evaluated, but optimizer.use_moving_average is false.")
        self.trainer = trainer
        self.settings = settings
        self.evaluator = evaluator
        self.model_dir = Path(model_dir)
        self.model_dir.mkdir(parents=True, exist_ok=True)
        self.checkpoints = Checkpoints(
            trainer, model_dir, settings.keep_checkpoints, settings.keep_every_n_hours or None
        )
        self.best = None
        if evaluator is not None and best is not None:
            check_metric(best.metric, evaluator.result_names(best.metric.startswith(fields.LOSSES)))
            self.best = Best(self.model_dir / "best", self.checkpoints.checkpoint, best)
        self.progress = progress or Progress(settings.num_steps, settings.batch_size)
        self.stop = StopRequest()
        self._show_plan = show_plan or (lambda plan: None)
        variables = trainer.detector.named_variables()
        rows = trainer.plan.row_masks.views(variables) if trainer.plan.row_masks else {}
        self._frozen_rows = list(rows)
        self._proof = FreezeProof(self.model_dir / FREEZE_PROOF, {**variables, **rows})
        self._make_dataset = make_dataset
        train_dir, self._eval_dir = (
            str(self.model_dir / name) if settings.summaries else None for name in ("train", "eval")
        )
        self._scalars = _Scalars(train_dir, tf.summary.scalar, trainer.global_step)
        self._history = History(self.model_dir / "eval" / "results.jsonl")
        self._results: dict[str, float] = {}
        self._evaluated_step: int | None = None
        if evaluator is not None:
            evaluator.should_stop = lambda: bool(self.stop)

    @property
    def step(self) -> int:
        """Updates made so far, those before a resume included."""
        return int(self.trainer.global_step)

    def run(self) -> Outcome:
        """Restores, trains, saves; see `Outcome` for how it can end.

        Raises:
          NotFiniteError: names the step, the batch's records and the last good checkpoint.
          FrozenChangedError: a variable changed although it was frozen; everything is saved.
          UserError: the input pipeline failed (what was trained until then is saved), or model_dir's checkpoints
            are unreadable or another config's.
        """
        restored = self.checkpoints.restore()
        if restored:
            self.progress.note(f"Continuing from {restored} at step {self.step}.")
        elif self.best is not None and self.best.start_anew():
            self.progress.note(f"{self.best.directory} is of another run: the best starts anew.")
        if self.trainer.plan.from_step:
            self._show_plan(self.trainer.plan)
        self._recall()
        self._proof.begin(self.step, self._frozen())
        self.trainer.train_dataset = self._make_dataset(self.step)
        controller = self._controller()
        self.progress.start(self.step)
        with self.stop:
            try:
                reason = self._train(controller)
            except NotFiniteError as error:
                good = self.checkpoints.latest or "none was written yet"
                raise NotFiniteError(f"{error} The last good checkpoint: {good}.") from None
            except UserError as error:
                if self.step:  # a checkpoint of step 0 would keep the next run from restoring what the config says
                    self.checkpoints.save()
                try:
                    self._proof.finish(self.step)
                except FrozenChangedError as changed:
                    raise FrozenChangedError(f"{error}\n{changed}") from error
                raise
            self.checkpoints.save()
            self._proof.finish(self.step)
        return Outcome(self.step, reason, self.stop.exit_code, self._results, self.checkpoints.save())

    def _frozen(self) -> list[str]:
        return [*self.trainer.plan.frozen, *self._frozen_rows]

    def _recall(self) -> None:
        """Takes up what is known of the evaluation of the step at which the run goes on."""
        if self.evaluator is None:
            return
        self._history.begin(self.step)
        results = self._history.read().get(self.step, {})
        if self.evaluator.primary in results and (self.best is None or self.best.settings.metric in results):
            self._results = results
            self._evaluated_step = self.step

    def _controller(self) -> orbit.Controller:
        return orbit.Controller(
            global_step=self.trainer.global_step,
            trainer=self.trainer,
            evaluator=self.evaluator,
            train_actions=[self._after_steps],
            steps_per_loop=2**31 - 1,  # _next_stop decides how many
            summary_manager=self._scalars,
            eval_summary_dir=self._eval_dir,
        )

    def _train(self, controller: orbit.Controller) -> str:
        reason = COMPLETED
        due = self._due()[1] if self.step else self.settings.evaluate_at_start
        if due and self._evaluated_step != self.step:  # the run was stopped in this evaluation, or begins with it
            self._evaluate(controller)
            if self._gave_up():
                return EARLY_STOPPING
            self.progress.start(self.step)
        while not self.stop and not self._complete():
            try:
                with quiet():
                    controller.train(self._next_stop(), checkpoint_at_completion=False)
            except _EndOfData:
                reason = END_OF_DATA
                break
            started = time.perf_counter()
            self._save_and_evaluate(controller)
            self.progress.pause(time.perf_counter() - started)
            if self._gave_up():
                return EARLY_STOPPING
        self.checkpoints.save()
        if not self.stop and self._evaluated_step != self.step:
            self._evaluate(controller)
        if self.stop:
            self.progress.note(f"Stopped by signal {self.stop.signal}; saved {self.checkpoints.latest}.")
            return SIGNALLED
        return reason

    def _gave_up(self) -> bool:
        if self.best is None or not self.best.out_of_patience:
            return False
        self.progress.note(f"{self.best.settings.metric} stopped improving: stopping at step {self.step}.")
        return True

    def _complete(self) -> bool:
        return bool(self.settings.num_steps) and self.step >= self.settings.num_steps

    def _next_stop(self) -> int:
        """Train up to this step in one call: the next one at which something is due, or about two seconds on."""
        step = self.step
        intervals = (self.settings.checkpoint_every, self.settings.log_every, self.settings.evaluate_every)
        due = [step + interval - step % interval for interval in intervals if interval]
        unfreezing = self.trainer.plan.next_change(step)
        if unfreezing is not None:
            due.append(unfreezing)
        if self.settings.num_steps:
            due.append(self.settings.num_steps)
        rate = self.progress.steps_per_second(step)
        return min([*due, step + max(1, int(rate * _SECONDS_PER_CALL))])

    def _after_steps(self, output: dict[str, tf.Tensor]) -> None:
        """The train action: progress line, scalars at log intervals, the next phase of freezing, end of data."""
        step = self.step
        due = bool(self.settings.log_every) and step % self.settings.log_every == 0
        due = due or self._complete() or self.trainer.exhausted
        if fields.TOTAL_LOSS in output:
            values = {"loss": float(output[fields.TOTAL_LOSS]), "lr": float(output["learning_rate"])}
            self.progress.show(step, values, last=due)
        self._scalars.rates = None
        if due:
            rate = self.progress.steps_per_second(step)
            self._scalars.rates = {"steps_per_second": rate, "images_per_second": rate * self.settings.batch_size}
            self.trainer.reset_means()
            self.progress.start(step)
        self._unfreeze()
        if self.trainer.exhausted:
            self.progress.note(f"The training data ended at step {step}.")
            raise _EndOfData

    def _unfreeze(self) -> None:
        """Begins the phase of the freeze plan that is due, if any."""
        if self.trainer.follow_plan(self.step):
            self.checkpoints.follow_averages()
            self._proof.release(self.step, self._frozen())
            self.progress.note(f"Step {self.step}: more variables train from here on.")
            self._show_plan(self.trainer.plan)

    def _due(self) -> tuple[bool, bool]:
        """Whether to save and whether to evaluate at the present step."""
        step, settings = self.step, self.settings
        save = bool(settings.checkpoint_every) and step % settings.checkpoint_every == 0
        save = save or self._complete()
        return save, step % settings.evaluate_every == 0 if settings.evaluate_every else save

    def _save_and_evaluate(self, controller: orbit.Controller) -> None:
        save, evaluate = self._due()
        if save or evaluate:  # what is evaluated is saved first, so that a stop during evaluation loses nothing
            self.checkpoints.save()
        if evaluate and not self.stop:
            self._evaluate(controller)

    def _evaluate(self, controller: orbit.Controller) -> None:
        if self.evaluator is None:
            return
        averages = self.trainer.moving_average if self.settings.evaluate_averages else None
        try:
            with quiet(), averages.applied() if averages is not None else contextlib.nullcontext():
                results = controller.evaluate()
        except Interrupted:
            return
        self._results = {name: float(value) for name, value in results.items()}
        self._evaluated_step = self.step
        shown = dict.fromkeys((self.evaluator.primary, fields.TOTAL_LOSS))
        values = ", ".join(f"{name} {self._results[name]:.4f}" for name in shown if name in self._results)
        self.progress.note(f"Evaluation at step {self.step}: {values}")
        if self.best is not None and self.best.update(self._results, self.step):
            self.progress.note(f"Best {self.best.settings.metric} so far; kept in {self.best.directory}.")
        self._history.add(self.step, self._results)  # last: what it holds is not evaluated again
