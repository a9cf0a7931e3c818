"""Evaluation of a run's checkpoints beside the run, or after it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orbit
import tensorflow as tf

from od_finetune.errors import UnreadableError, UserError
from od_finetune.training import checkpointing
from od_finetune.training.evaluator import Evaluator, Interrupted, quiet
from od_finetune.training.loop import COMPLETED, SIGNALLED, Outcome
from od_finetune.training.stopping import StopRequest

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 1.0  # also how long a request to stop can go unheard while waiting


def evaluate_checkpoints(
    evaluator: Evaluator,
    load: Callable[[str], int],
    checkpoint_dir: str | Path,
    summary_dir: str | Path,
    run_once: bool = False,
    timeout: float | None = None,
    interval: float = 0.0,
    last_step: int = 0,
    on_results: Callable[[int, dict[str, float]], None] | None = None,
) -> Outcome:
    """Evaluates a run's checkpoints, without training: the newest once, or each new one as it appears.

    A checkpoint that can't be read, as one that training deletes meanwhile, is left out with a warning (with
    `run_once` it is an error). SIGINT and SIGTERM end it cleanly.

    Args:
      load: puts a checkpoint (a path) into the evaluator's detector and returns its step. Raises UnreadableError where
        the files can't be read.
      checkpoint_dir: where a run writes its checkpoints, or a folder with a checkpoint from elsewhere.
      summary_dir: for TensorBoard.
      run_once: evaluate the newest checkpoint and return.
      timeout: seconds to wait for a further checkpoint before returning; None waits for ever.
      interval: least seconds between two evaluations.
      last_step: return once a checkpoint of this step was evaluated; 0: never for this reason.
      on_results: called with step and results of each evaluation.

    Returns:
      The last evaluation's step, results and checkpoint.

    Raises:
      UserError: there is no checkpoint (within `timeout`), or it is another model's.
    """
    step = tf.Variable(0, dtype=tf.int64, trainable=False)
    controller = orbit.Controller(global_step=step, evaluator=evaluator, eval_summary_dir=str(summary_dir))
    outcome: Outcome | None = None
    with StopRequest() as stop:
        evaluator.should_stop = lambda: bool(stop)
        for path in _newest(checkpoint_dir) if run_once else _appearing(checkpoint_dir, timeout, interval, stop):
            try:
                step.assign(load(path))
            except UnreadableError as error:
                if run_once:
                    raise
                logger.warning("%s Going on with the next one.", error)
                continue
            try:
                with quiet():
                    results = {name: float(value) for name, value in controller.evaluate().items()}
            except Interrupted:
                break
            outcome = Outcome(int(step), COMPLETED, 0, results, path)
            if on_results is not None:
                on_results(outcome.step, results)
            if last_step and outcome.step >= last_step:
                break
    if stop:
        outcome = outcome or Outcome(0, SIGNALLED, 0, {}, "")
        return outcome._replace(reason=SIGNALLED, exit_code=stop.exit_code)
    if outcome is None:
        raise UserError(
            f"There is no checkpoint in {checkpoint_dir} (looked for index files that can be read); "
            "train first, or name the model_dir of a run."
        )
    return outcome


def _newest(directory: str | Path) -> list[str]:
    """A run's newest checkpoint; else another one that lies there (zoo: `model.ckpt`, `checkpoint/ckpt-0`)."""
    folder = Path(directory)
    others = sorted([*folder.glob("*.index"), *folder.glob("checkpoint/*.index")])
    return checkpointing.candidates(folder)[:1] or [str(path).removesuffix(".index") for path in others[-1:]]


def _appearing(
    directory: str | Path, timeout: float | None, interval: float, stop: StopRequest
) -> Iterator[str]:
    """The newest checkpoint, then each that is the newest when it is looked for, until the wait is too long."""
    seen: list[str] = []
    waiting_from = time.monotonic()
    while not stop:
        now = time.monotonic()
        newest = _newest(directory) if now >= waiting_from else seen
        if newest != seen and newest:
            seen = newest
            yield seen[0]
            waiting_from = max(time.monotonic(), now + interval)
        elif timeout is not None and now - waiting_from >= timeout:
            return
        else:
            time.sleep(min(_SECONDS_BETWEEN_LOOKS, timeout or _SECONDS_BETWEEN_LOOKS))
