"""What goes from a checkpoint into the model: computed from names and shapes alone, shown, and only then applied."""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from od_finetune import files
from od_finetune.checkpoints import class_rows, diagnosis, report, vocabularies
from od_finetune.checkpoints.records import CLASSIFICATION, DONE, RestoreRequest, Row, Status
from od_finetune.checkpoints.source import Source
from od_finetune.errors import UserError
from od_finetune.fields import ClassLayout

logger = logging.getLogger(__name__)

__all__ = ["RestorePlan", "RestoreRequest", "Row", "Status"]


@dataclasses.dataclass(frozen=True)
class RestorePlan:
    """One row per model variable, in the model's order, and what of the source is left over."""

    source: Source
    request: RestoreRequest
    rows: tuple[Row, ...]
    unused: tuple[str, ...]  # source weights that no row restores, sorted
    num_classes: int | None = None
    transfer: class_rows.ClassTransfer | None = None
    transplants: Mapping[str, class_rows.Transplant] = dataclasses.field(default_factory=dict)  # by variable
    problem: str | None = None  # why this plan must not be applied

    @classmethod
    def compute(
        cls,
        variables: Mapping[str, Any],
        source: Source,
        request: RestoreRequest,
        tf2_names: Mapping[str, str],
        part: Callable[[str], str],
        is_class_head: Callable[[str], bool],
        num_classes: int | None = None,
        transfer: class_rows.ClassTransfer | None = None,
        class_layout: Callable[[str], ClassLayout | None] = lambda name: None,
    ) -> RestorePlan:
        """Matches every model variable against the source; reads no weights.

        Args:
          variables: the model's variables (anything with a `shape`) by canonical name.
          source: the open checkpoint.
          request: what is to be restored.
          tf2_names: canonical name -> full name in the OD API's TF2 checkpoints.
          part: canonical name -> `backbone`, `neck` or `head`.
          is_class_head: whether a canonical name's shape depends on the number of classes.
          num_classes: the model's number of classes, to state outputs per anchor.
          transfer: carries rows of the class predictor over by name.
          class_layout: where in a variable each class has its outputs, by canonical name; needed by `transfer`.

        Raises:
          UserError: the transfer's label map is not the checkpoint's.
        """
        by_type = vocabularies.CLASSIFICATION if request.type == CLASSIFICATION else vocabularies.DETECTION
        finder = vocabularies.Finder(source, by_type)
        rows = tuple(
            _row(name, tuple(variable.shape), finder, request, tf2_names.get(name, ""), part(name), is_class_head(name))
            for name, variable in variables.items()
        )
        rows, transplants = class_rows.transplanted(rows, transfer, class_layout)
        used = {row.source for row in rows if row.status in DONE}
        unused = tuple(name for name in source.names() if name not in used)
        plan = cls(source, request, rows, unused, num_classes, transfer, transplants)
        return dataclasses.replace(plan, problem=diagnosis.problem(plan, tf2_names))

    def with_status(self, status: Status) -> list[Row]:
        """The rows of one status, in order."""
        return [row for row in self.rows if row.status is status]

    def check(self) -> None:
        """Raises UserError if the plan restores nothing (of the backbone), or type `full` finds a mismatch."""
        if self.problem:
            raise UserError(self.problem)

    def text(self) -> str:
        """For people: a table of counts per scope, then what did not match."""
        return report.text(self)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values.

        `checkpoint`, `kind`: what was opened. `type`, `version`, `feature_extractor_only`, `notices`: the request.
        `problem`: why it is refused, or null. `counts`: status -> number of variables. `class_head`: the sentence
        about class outputs that start anew, or null. `class_rows`: which class got what (`ClassReport.to_json`), or
        null. `rows`: in the model's order, each `name`, `part`, `shape`, `status` (`restored`, `rows transplanted`,
        `shape differs`, `not in checkpoint`, `left out by type`), `source` and `source_shape` (null if not found or
        not looked for), `rule` (`same name`, `TF2 name`, `classification net`, ..., or null), `class_head`. `unused`:
        names of the checkpoint's weights that are not restored, sorted. `other_entries`: number of its entries that
        are no weights.
        """
        counts = collections.Counter(row.status for row in self.rows)
        return {
            "checkpoint": self.source.path,
            "kind": self.source.kind,
            "type": self.request.type,
            "version": self.request.version,
            "feature_extractor_only": self.request.feature_extractor_only,
            "notices": list(self.request.notices),
            "problem": self.problem,
            "counts": {status.value: counts[status] for status in Status},
            "class_head": report.class_head(self),
            "class_rows": class_rows.ClassReport(self.transfer, self.transplants).to_json() if self.transfer else None,
            "rows": [row._asdict() | {"status": row.status.value} for row in self.rows],
            "unused": list(self.unused),
            "other_entries": len(self.source.other_entries()),
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
          UserError: `check` fails, or the file is damaged, or holds values that are not finite.
        """
        self.check()
        self._warn()
        restored = [row for row in self.rows if row.status in DONE]
        values: dict[str, np.ndarray] = {}
        for row in restored:
            if row.source not in values:
                values[row.source] = _read(self.source, row.source)
        for row in restored:
            variable, value = variables[row.name], values[row.source]
            if row.name in self.transplants:
                value = self.transplants[row.name](variable.numpy(), value)
            variable.assign(value.astype(variable.dtype.as_numpy_dtype, copy=False))

    def _warn(self) -> None:
        for row in self.with_status(Status.NOT_IN_CHECKPOINT):
            logger.warning("Variable [%s] is not available in checkpoint", row.name)


def _row(
    name: str,
    shape: tuple[int, ...],
    finder: vocabularies.Finder,
    request: RestoreRequest,
    tf2_name: str,
    part: str,
    class_head: bool,
) -> Row:
    if part not in request.parts:
        return Row(name, part, shape, Status.LEFT_OUT, None, None, None, class_head)
    match = finder.find(name, tf2_name, shape)
    if match is None:
        return Row(name, part, shape, Status.NOT_IN_CHECKPOINT, None, None, None, class_head)
    status = Status.RESTORED if match.shape == shape else Status.SHAPE_DIFFERS
    return Row(name, part, shape, status, match.source, match.shape, match.rule, class_head)


def _read(source: Source, name: str) -> np.ndarray:
    value = source.read(name)
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise UserError(
            f"{source.path}: {name} has values that are not finite; the run that wrote it diverged. Use an earlier "
            "checkpoint."
        )
    return value
