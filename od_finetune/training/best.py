"""The best checkpoint of a run, and when to give up improving on it."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from od_finetune import files, names
from od_finetune.errors import UserError
from od_finetune.training.checkpointing import PREFIX

logger = logging.getLogger(__name__)

RECORD = "best.json"


class BestSettings(NamedTuple):
    """By which metric the best is chosen, and for how long a run may fail to improve it."""

    metric: str
    lower_is_better: bool = False
    patience: int = 0  # stop after so many evaluations without improvement; 0: never
    min_delta: float = 0.0  # an improvement smaller than this does not count for patience


def check_metric(metric: str, known: Collection[str]) -> None:
    """Refuses a metric that an evaluation does not give.

    Raises:
      UserError: lists the nearest names.
    """
    if metric not in known:
        near = names.nearest(metric, sorted(known)) or sorted(known)
        raise UserError(
            f"eval_config.best_metric is {metric!r}, which the evaluation does not give. The nearest of what it gives: "
            f"{', '.join(near)}."
        )


class Best:
    """Keeps `<directory>/ckpt-<step>` of the best evaluation, and beside it best.json: metric, value, step.

    The record changes only after the new checkpoint is complete, and the old checkpoint goes only after the
    record changed, so that after a kill at any moment best.json names a whole checkpoint.
    """

    def __init__(self, directory: str | Path, checkpoint: tf.train.Checkpoint, settings: BestSettings) -> None:
        self.directory = Path(directory)
        self.settings = settings
        self._checkpoint = checkpoint
        self.record = self._read()

    @property
    def value(self) -> float | None:
        """The best value so far."""
        return self.record.get("value")

    @property
    def out_of_patience(self) -> bool:
        """Whether early stopping says to stop."""
        patience = self.settings.patience
        return bool(patience) and self.record["evaluations_without_improvement"] >= patience

    def start_anew(self) -> bool:
        """Forgets the best of another run in this directory; whether there was one.

        Its files stay until there is a new best to take their place.
        """
        found = self.value is not None
        self.record = self._fresh()
        return found

    def update(self, results: Mapping[str, float], step: int) -> bool:
        """Takes in an evaluation; True if it is the best so far, and then its checkpoint is written.

        Raises:
          UserError: the metric is not among the results.
        """
        metric = self.settings.metric
        check_metric(metric, results)
        value = float(results[metric])
        if not math.isfinite(value):
            logger.warning("%s is %s at step %d: it can't be the best.", metric, value, step)
        gain = self._gain(value)
        counts = gain > self.settings.min_delta or (gain > 0 and self.settings.min_delta == 0)
        waited = 0 if counts else self.record.get("evaluations_without_improvement", 0) + 1
        if gain > 0:
            path = self._checkpoint.write(str(self.directory / f"{PREFIX}-{step}"))
            self._point_to(path)
            self._write({"value": value, "step": step, "checkpoint": Path(path).name}, waited)
            self._remove_others(Path(path).name)
        else:
            self._write({}, waited)
        return gain > 0

    def _gain(self, value: float) -> float:
        """By how much `value` is better than the best; the first finite one by infinitely much."""
        if not math.isfinite(value):
            return -math.inf
        if self.value is None:
            return math.inf
        return self.value - value if self.settings.lower_is_better else value - self.value

    def _write(self, found: dict[str, Any], waited: int) -> None:
        record = {**self.record, "metric": self.settings.metric, **found, "evaluations_without_improvement": waited}
        files.write_json(self.directory / RECORD, record)
        self.record = record

    def _read(self) -> dict[str, Any]:
        path = self.directory / RECORD
        if not path.exists():
            return self._fresh()
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.get("metric") != self.settings.metric:
            logger.warning("%s is about %s, not %s: starting anew.", path, record.get("metric"), self.settings.metric)
            return self._fresh()
        return record

    def _fresh(self) -> dict[str, Any]:
        return {"metric": self.settings.metric, "evaluations_without_improvement": 0}

    def _point_to(self, path: str) -> None:
        # For tf.train.latest_checkpoint; Checkpoint.write leaves this file alone.
        tf.compat.v1.train.update_checkpoint_state(str(self.directory), path, [path])

    def _remove_others(self, name: str) -> None:
        for path in self.directory.glob(f"{PREFIX}-*"):
            if path.name.split(".")[0] != name:
                path.unlink(missing_ok=True)
