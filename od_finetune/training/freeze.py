"""The FreezePlan: which variables training moves, decided and shown before the first step.

Frozen means more than a zero update: the trainer does not let the gradient tape watch a frozen variable, the
optimiser has no slot for it, it gets no weight decay and no moving average, and a batch norm layer whose scale
and offset are frozen runs in inference mode, so that its moving statistics stay what they were. (A norm that the
model's own config has in inference mode keeps its statistics too, whether its scale and offset are trained or not.
`trainable_batch_norm` overrides both.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from od_finetune import files
from od_finetune.errors import UserError
from od_finetune.fields import Detector
from od_finetune.training import freeze_report
from od_finetune.training.freeze_patterns import scope_of
from od_finetune.training.freeze_records import (
    FROZEN,
    FROZEN_STATISTICS,
    STATISTICS,
    TRAINED,
    FreezeRequest,
    NormRule,
    Row,
    Unfreezing,
    is_statistic,
)
from od_finetune.training.freeze_rules import Decisions
from od_finetune.training.row_masks import RowMasks

__all__ = [
    "FROZEN", "FROZEN_STATISTICS", "STATISTICS", "TRAINED",
    "FreezePlan", "FreezeRequest", "NormRule", "Row", "Unfreezing",
]  # fmt: skip


class FreezePlan:
    """What training will move, from a step on. `compute` decides, `text` and `write` show, `apply` acts.

    Attributes:
      rows: one for each variable, in the detector's order.
      frozen_norms: scopes of the batch norm layers that run in inference mode.
      from_step: after how many updates it takes effect.
      phases: this plan and those that `unfreeze` puts before or after it, by from_step.
      row_masks: rows of trained class predictors that are frozen; the same in all phases.
    """

    def __init__(self, rows: Sequence[Row], frozen_norms: Sequence[str] = (), from_step: int = 0) -> None:
        self.rows = list(rows)
        self.frozen_norms = list(frozen_norms)
        self.from_step = from_step
        self.phases: list[FreezePlan] = [self]
        self.row_masks: RowMasks | None = None

    @classmethod
    def compute(cls, detector: Detector, request: FreezeRequest) -> FreezePlan:
        """Decides for every variable of a built detector; returns the plan of the first step.

        Raises:
          UserError: a pattern or stage matches nothing, a pattern is no regular expression, a number is out of its
            range, an unfreeze has nothing to unfreeze, or nothing is left to train.
        """
        decisions = Decisions(detector, request)
        phases = [cls._from_step(step, detector, decisions) for step in decisions.steps]
        for phase in phases:
            phase.phases = phases
        if not phases[0].trainable:
            raise UserError(_nothing_left(phases[0].rows, request))
        decisions.warn_of_idle_patterns()
        return phases[0]

    @classmethod
    def _from_step(cls, step: int, detector: Detector, decisions: Decisions) -> FreezePlan:
        layers = detector.weighted_layers()
        norms = {
            scope: decisions.norm_mode(scope, getattr(layers[scope], "keeps_statistics", False), step)
            for scope in decisions.norms.affine
        }
        selectable = set(decisions.selectable)
        rows = []
        for name, variable in detector.named_variables().items():
            size = variable.shape.num_elements()
            if is_statistic(name):
                inference, reason = norms[scope_of(name)]
                if not reason and name in selectable:
                    reason = decisions.decide(name, step).reason
                rows.append(Row(name, FROZEN_STATISTICS if inference else STATISTICS, reason, 0.0, size))
            elif name in selectable:
                rows.append(_row(name, size, decisions, step))
            else:
                rows.append(Row(name, FROZEN, "not trainable in this model", 0.0, size))
        return cls(rows, [scope for scope, (inference, _) in norms.items() if inference], step)

    def at(self, step: int) -> FreezePlan:
        """The plan for the update that comes after `step` others."""
        return [phase for phase in self.phases if phase.from_step <= max(step, 0)][-1]

    def next_change(self, step: int) -> int | None:
        """The first step after `step` at which another plan takes effect; None if there is none."""
        return next((phase.from_step for phase in self.phases if phase.from_step > step), None)

    @property
    def trainable(self) -> list[str]:
        """Names of what the optimiser updates, in the detector's order."""
        return [row.name for row in self.rows if row.trainable]

    @property
    def frozen(self) -> list[str]:
        """Names of what keeps its value, statistics of frozen batch norms included."""
        return [row.name for row in self.rows if row.frozen]

    @property
    def multipliers(self) -> list[float]:
        """The learning-rate multiplier of each of `trainable`."""
        return [row.multiplier for row in self.rows if row.trainable]

    @property
    def first_steps(self) -> list[int]:
        """After how many updates each of `trainable` began to train."""
        first: dict[str, int] = {}
        for phase in self.phases:
            for name in phase.trainable:
                first.setdefault(name, phase.from_step)
        return [first[name] for name in self.trainable]

    @property
    def weight_decay(self) -> dict[str, float]:
        """L2 weight, 0 for none, of the trainable variables whose layer's own does not count."""
        return {row.name: row.weight_decay for row in self.rows if row.trainable and row.weight_decay is not None}

    def apply(self, detector: Detector) -> dict[str, tf.Variable]:
        """Tells each layer whether it is frozen and puts each batch norm layer into its mode; returns the variables to
        train by name."""
        variables = detector.named_variables()
        layers = detector.weighted_layers()
        for scope in {scope_of(name): None for name in variables if is_statistic(name)}:
            # tf_keras: a batch norm layer that is not trainable normalises with, and keeps, its statistics. Its gamma
            # and beta train all the same where the tape watches them.
            layers[scope].trainable = scope not in self.frozen_norms
        moving = {scope_of(row.name) for row in self.rows if not row.frozen}
        for scope, layer in layers.items():
            layer.frozen = scope not in moving
        return {name: variables[name] for name in self.trainable}

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data, with the outline of all phases."""
        return {
            **_outline(self),
            "batch_norms_in_inference_mode": self.frozen_norms,
            "rows_frozen": self.row_masks.to_json() if self.row_masks else None,
            "phases": [
                {**_outline(phase), "unfrozen": [row.name for row in freeze_report.unfrozen(phase)]}
                for phase in self.phases
            ],
            "variables": [_plain(row) for row in self.rows],
        }

    def write(self, path: str | Path) -> None:
        """Writes the plan as JSON, at once."""
        files.write_json(path, self.to_json())

    def text(self) -> str:
        """Counts by scope; a scope of which only some variables are trained is opened further."""
        return "\n".join([freeze_report.text(self), *([self.row_masks.text()] if self.row_masks else [])])


def _row(name: str, size: int, decisions: Decisions, step: int) -> Row:
    trained, reason = decisions.decide(name, step)
    if not trained:
        return Row(name, FROZEN, reason, 0.0, size)
    return Row(name, TRAINED, reason, decisions.multiplier(name), size, decisions.weight_decay(name))


def _outline(plan: FreezePlan) -> dict[str, int]:
    return {
        "from_step": plan.from_step,
        "trained_parameters": sum(row.parameters for row in plan.rows if row.trainable),
        "frozen_parameters": sum(row.parameters for row in plan.rows if row.frozen),
    }


def _plain(row: Row) -> dict[str, Any]:
    plain = row._asdict()
    if row.weight_decay is None:  # only where it says something
        del plain["weight_decay"]
    return plain


def _nothing_left(rows: Sequence[Row], request: FreezeRequest) -> str:
    through = f", freeze_through: {request.freeze_through!r}" if request.freeze_through else ""
    return (
        f"train_config freezes every one of the {len(rows)} variables (update_trainable_variables: "
        f"{list(request.update) or 'all'}, freeze_variables: {list(request.freeze)}{through}): nothing would be "
        "trained. Narrow the patterns, or evaluate and export without training."
    )
