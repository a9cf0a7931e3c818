"""A run's own checkpoints: written whole, restored exactly, refused if they are another model's.

Objects: `step`, `optimizer` (slots of the trained variables), `model` (every variable by canonical name) and
`moving_average` (shadows by canonical name, empty where none are kept).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf

from od_finetune import names, object_keys
from od_finetune.errors import UserError, first_line
from od_finetune.training.trainer import Trainer

logger = logging.getLogger(__name__)

PREFIX = "ckpt"
# TensorFlow's checkpoint reader reports a data file that is too short as IndexError.
_UNREADABLE = (tf.errors.OpError, IndexError)
_NUMBER = re.compile(rf"{PREFIX}-(\d+)\.index$")


def candidates(directory: str | Path) -> list[str]:
    """Checkpoint paths in `directory` that have an index file, newest (highest step) first.

    TensorFlow writes the index last and renames it into place, so a checkpoint that a kill cut short has none.
    """
    found = {int(m.group(1)): p for p in Path(directory).glob(f"{PREFIX}-*.index") if (m := _NUMBER.search(p.name))}
    return [str(found[number]).removesuffix(".index") for number in sorted(found, reverse=True)]


def training_checkpoint(trainer: Trainer) -> tf.train.Checkpoint:
    """Everything a run needs to continue, as one checkpoint object."""
    averages = trainer.moving_average.shadows if trainer.moving_average is not None else {}
    return tf.train.Checkpoint(
        step=trainer.global_step,
        optimizer=trainer.optimizer,
        model=trainer.detector.named_variables(),
        moving_average=dict(averages),
    )


class Checkpoints:
    """The checkpoints of one model_dir."""

    def __init__(
        self, trainer: Trainer, directory: str | Path, keep: int = 5, keep_every_n_hours: float | None = None
    ) -> None:
        """Args:
        keep: how many of the newest to keep; 0 keeps all.
        keep_every_n_hours: besides, keep one of each such interval for good.
        """
        self.trainer = trainer
        self.directory = Path(directory)
        self.checkpoint = training_checkpoint(trainer)
        self._manager = tf.train.CheckpointManager(
            self.checkpoint,
            str(directory),
            max_to_keep=keep or None,
            keep_checkpoint_every_n_hours=keep_every_n_hours,
            checkpoint_name=PREFIX,
        )
        self.latest: str | None = None  # path of the newest good one this run restored or wrote
        self._saved_step: int | None = None

    def save(self) -> str:
        """Writes the present state, unless this step is saved already; returns the path."""
        step = int(self.trainer.global_step)
        if self._saved_step != step or self.latest is None:
            self.latest = self._manager.save(checkpoint_number=step)
            self._saved_step = step
        return self.latest

    def restore(self) -> str | None:
        """Restores the newest checkpoint that can be read; None where the directory has none.

        Raises:
          UserError: checkpoints exist, but none can be read, or they are another model's.
        """
        paths = candidates(self.directory)
        failures: list[str] = []
        for path in paths:
            try:
                self._restore(path)
            except _UNREADABLE as error:
                failures.append(f"{path}: {first_line(error)}")
                logger.warning("Checkpoint %s can't be read (%s); trying the one before.", path, first_line(error))
                continue
            self.latest = path
            self._saved_step = int(self.trainer.global_step)
            return path
        if failures:
            raise UserError(
                "No checkpoint in model_dir can be read:\n  " + "\n  ".join(failures) + "\nRemove them to start anew, "
                "or name another model_dir."
            )
        return None

    def follow_averages(self) -> None:
        """Saves, from now on, the moving averages that the trainer has now."""
        averages = self.trainer.moving_average
        self.checkpoint.moving_average = dict(averages.shadows) if averages is not None else {}

    def _restore(self, path: str) -> None:
        reader = tf.train.load_checkpoint(path)
        shapes = reader.get_variable_to_shape_map()
        _check_same_model(path, shapes, self.trainer.detector.named_variables())
        # The phase first, so that its slots and averages are there to be restored.
        self.trainer.follow_plan(int(reader.get_tensor(object_keys.STEP + object_keys.VALUE)))
        self.follow_averages()
        self.checkpoint.restore(path).expect_partial()
        self.trainer.optimizer.drop_slots_of_others(self.trainer.trained.values())
        self._start_missing_state(path, shapes)

    def _start_missing_state(self, path: str, shapes: Mapping[str, list[int]]) -> None:
        """Says which optimiser state the checkpoint lacks (freezing or optimiser changed), starts new averages."""
        trainer = self.trainer
        slots = [
            object_keys.slot_key(name, slot)
            for name in trainer.trained
            for slot in trainer.optimizer.get_slot_names()
        ]
        missing = sum(slot not in shapes for slot in slots)
        if missing:
            logger.warning(
                "%s lacks %d of %d optimizer slots (the optimizer or what is frozen has changed since): these start "
                "anew.", path, missing, len(slots)
            )
        if trainer.moving_average is not None:
            averaged = object_keys.named(shapes, object_keys.MOVING_AVERAGE)
            trainer.moving_average.reset(name for name in trainer.trained if name not in averaged)


def _check_same_model(
    path: str, shapes: Mapping[str, list[int]], variables: Mapping[str, tf.Variable]
) -> None:
    stored = {name: tuple(shapes[key]) for name, key in object_keys.named(shapes, object_keys.MODEL).items()}
    wanted = {name: tuple(variable.shape) for name, variable in variables.items()}
    if stored == wanted:
        return
    differing = [f"{n} has shape {stored[n]}, the config's {s}" for n, s in wanted.items() if stored.get(n, s) != s]
    missing = sorted(wanted.keys() - stored.keys())
    unknown = sorted(stored.keys() - wanted.keys())
    found = differing + [f"{n} is missing" for n in missing] + [f"{n} is not in this model" for n in unknown]
    near = f" (it has {', '.join(names.nearest(missing[0], unknown))})" if missing and unknown else ""
    raise UserError(
        f"{path} is a checkpoint of another config: {len(found)} variables differ, e.g. {'; '.join(found[:3])}{near}. "
        "Name another model_dir, or the config that this one was trained with."
    )
