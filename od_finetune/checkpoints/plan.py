"""What goes from checkpoints into the model: computed from names and shapes alone, shown, and only then applied."""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from od_finetune import files
from od_finetune.checkpoints import averages, demands, diagnosis, matching, report
from od_finetune.checkpoints.matching import SourcePlan
from od_finetune.checkpoints.records import NO_DEMAND, Demand, Inputs, RestoreRequest, Row, Status, Target
from od_finetune.checkpoints.source import Source
from od_finetune.errors import ShortfallError, UserError

logger = logging.getLogger(__name__)

__all__ = ["Demand", "RestorePlan", "RestoreRequest", "Row", "SourcePlan", "Status", "Target"]


@dataclasses.dataclass(frozen=True)
class RestorePlan:
    """One row per model variable, in the model's order, and what each source would give by itself."""

    target: Target
    sources: tuple[SourcePlan, ...]  # in the order they are applied
    rows: tuple[Row, ...]  # what the last source that restores a variable makes of it
    demand: Demand = NO_DEMAND
    shortfall: str | None = None  # why a run must not start with so little

    @classmethod
    def compute(
        cls, target: Target, sources: Sequence[tuple[Source, RestoreRequest]], demand: Demand = NO_DEMAND
    ) -> RestorePlan:
        """Matches every model variable against the sources; reads no weights.

        Args:
          target: the model; `Target.of(detector)`.
          sources: open checkpoints and what is to be restored from them, in order; a later one has the last word on
            the variables that it restores.
          demand: how much must be restored.

        Raises:
          UserError: a rule of a request or demand matches nothing, or moving averages are asked of a source without.
        """
        parts = []
        for origin, (source, request) in enumerate(sources):
            if request.moving_averages:
                source = averages.with_moving_averages(source)
            part = matching.match(target, source, request, origin)
            parts.append(dataclasses.replace(part, problem=diagnosis.problem(part, target)))
        rows = tuple(_merged(views) for views in zip(*(part.rows for part in parts), strict=True)) or _fresh(target)
        return cls(target, tuple(parts), rows, demand, demands.shortfall(rows, demand, target))

    @property
    def problem(self) -> str | None:
        """Why this plan must not be applied; None if it may."""
        problems = [part.problem for part in self.sources if part.problem]
        return "\n".join([*problems, *([self.shortfall] if self.shortfall else [])]) or None

    def with_status(self, status: Status) -> list[Row]:
        """The rows of one status, in order."""
        return [row for row in self.rows if row.status is status]

    def restored_from(self, origin: int) -> list[Row]:
        """The rows whose values come from one source, after later ones have overruled it."""
        return [row for row in self.with_status(Status.RESTORED) if row.origin == origin]

    def check(self) -> None:
        """Raises UserError if a source restores nothing (of the backbone) or, of type `full`, has a mismatch;
        ShortfallError if less than demanded is restored."""
        problems = [part.problem for part in self.sources if part.problem]
        if problems:
            raise UserError("\n".join(problems))
        if self.shortfall:
            raise ShortfallError(self.shortfall)

    def text(self) -> str:
        """For people: per source what it gives, a table of counts per scope, then what did not match."""
        return report.text(self)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values.

        `problem`: why it is refused, or null. `counts`: status -> number of variables. `class_head`: the sentence
        about class outputs that start anew, or null. `restored_fraction`: see `Demand`. `rows`: in the model's order,
        each `name`, `part`, `shape`, `status` (`restored`, `shape differs`, `not in checkpoint`, `left out by type`),
        `source` and `source_shape` (null if not found or not looked for; the shape is in the model's layout), `rule`
        (`same name`, `TF2 name`, `classification net`, `torchvision`, `by order`, ..., or null), `class_head`,
        `origin` (index of the one of `sources` that decided, or null), `transform` (`OIHW -> HWIO`, ..., or null).

        `sources`: in the order they are applied, each with `checkpoint`, `kind`: what was opened; `type`, `version`,
        `feature_extractor_only`, `scope`, `map`, `only`, `skip`, `by_order`, `moving_averages`,
        `batch_norm_epsilon`: the request; `notices`; `problem`; `found`: number of variables it has, `restored`: of
        those, not overruled by a later source; `rules`: rule -> number of variables; `unused`: names of the
        checkpoint's weights that are not restored, sorted; `excluded`: those that `only` and `skip` leave out;
        `other_entries`: number of its entries that are no weights. If there is one source, its values are also at the
        top.
        """
        counts = collections.Counter(row.status for row in self.rows)
        described = [_source_json(part, len(self.restored_from(i))) for i, part in enumerate(self.sources)]
        return {
            **(described[0] if len(described) == 1 else {}),
            "problem": self.problem,
            "counts": {status.value: counts[status] for status in Status},
            "class_head": report.class_head(self),
            "restored_fraction": demands.restored_fraction(self.rows),
            "rows": [row.to_json() for row in self.rows],
            "sources": described,
        }

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes `to_json()` to a file, atomically; its directory is made if need be."""
        files.write_json(path, self.to_json())

    def apply(self, variables: Mapping[str, Any]) -> None:
        """Warns of what is missing, reads every tensor once and then assigns.

        All tensors are read before the first is assigned, so that a damaged file leaves the model as it was.

        Args:
          variables: the model's `tf.Variable`s by canonical name; the same that the plan was computed for.

        Raises:
          ShortfallError, UserError: as `check`; the latter also if a file is damaged, or holds values that are not
            finite.
        """
        self.check()
        self._warn()
        tensors: dict[tuple[int, str], np.ndarray] = {}

        def read(origin: int, name: str) -> np.ndarray:
            if (origin, name) not in tensors:
                tensors[origin, name] = self.sources[origin].read(name)
            return tensors[origin, name]

        values = {}
        for row in self.rows:
            if row.status is Status.RESTORED:
                values[row.name] = _value(row, read, variables[row.name])
        for name, value in values.items():
            variables[name].assign(value.astype(variables[name].dtype.as_numpy_dtype, copy=False))

    def _warn(self) -> None:
        for row in self.with_status(Status.NOT_IN_CHECKPOINT):
            logger.warning("Variable [%s] is not available in checkpoint", row.name)


def _value(row: Row, read: Any, variable: Any) -> np.ndarray:
    inputs = Inputs(lambda name: read(row.origin, name), lambda: variable.numpy())
    value = read(row.origin, row.source)
    for step in row.steps:
        value = step(value, inputs)
    return value


def _merged(views: Sequence[Row]) -> Row:
    """What several sources make of one variable: the last that restores it, else the last that was asked for it."""
    restored = [row for row in views if row.status is Status.RESTORED]
    asked = [row for row in views if row.status is not Status.LEFT_OUT]
    return (restored or asked or views)[-1]


def _fresh(target: Target) -> tuple[Row, ...]:
    """The rows of a model that nothing is restored into."""
    return tuple(
        Row(name, target.part(name), shape, Status.LEFT_OUT, None, None, None, target.is_class_head(name))
        for name, shape in target.shapes.items()
    )


def _source_json(part: SourcePlan, restored: int) -> dict[str, Any]:
    request = dataclasses.asdict(part.request)
    kept = ("type", "version", "feature_extractor_only", "scope", "map", "only", "skip", "by_order", "moving_averages")
    return {
        "checkpoint": part.source.path,
        "kind": part.source.kind,
        **{name: list(request[name]) if isinstance(request[name], tuple) else request[name] for name in kept},
        "batch_norm_epsilon": request["batch_norm_epsilon"],
        "notices": list(part.notices),
        "problem": part.problem,
        "found": len(part.restored),
        "restored": restored,
        "rules": dict(collections.Counter(row.rule for row in part.restored)),
        "unused": list(part.unused),
        "excluded": list(part.excluded),
        "other_entries": len(part.source.other_entries()),
    }
