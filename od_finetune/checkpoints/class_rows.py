"""Rows of class predictors, carried over from a checkpoint of other classes: pure shapes and arrays.

A row is what belongs to one class: its columns of the last axis of a kernel, its entry of the biases.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from od_finetune.checkpoints.class_match import ANEW, MEAN, RENAMED, SAME_NAME, ClassStart
from od_finetune.checkpoints.records import Inputs, Row, Status
from od_finetune.errors import UserError
from od_finetune.fields import ClassLayout

_FIELD = "train_config.class_transfer"


class Transplant(NamedTuple):
    """How the rows of one variable are put together. A `records.Step`."""

    target: ClassLayout
    source: ClassLayout
    slots: tuple[tuple[int, ...], ...]  # for each of the target's, the source's whose mean it is; none: its own start

    def __call__(self, value: np.ndarray, inputs: Inputs) -> np.ndarray:
        """The model's own start, `[..., target.size]`, with rows of the checkpoint's, `[..., source.size]`; a new array
        of the model's type. A row that comes from one class alone is copied bit for bit."""
        start = inputs.start()
        result, rows = self._split(start, self.target).copy(), self._split(value, self.source)
        for slot, sources in enumerate(self.slots):
            if len(sources) == 1:
                result[..., slot, :] = rows[..., sources[0], :]
            elif sources:
                result[..., slot, :] = np.mean(rows[..., list(sources), :], axis=-2)
        return result.reshape(start.shape)

    def __str__(self) -> str:
        filled = sum(bool(sources) for sources in self.slots)
        return f"{filled} of {self.target.slots} rows by class"

    @staticmethod
    def _split(value: np.ndarray, layout: ClassLayout) -> np.ndarray:
        return value.reshape(*value.shape[:-1], layout.groups, layout.slots, layout.width)


@dataclasses.dataclass(frozen=True)
class ClassTransfer:
    """What each class of the model starts from, for every variable of its class predictors.

    Attributes:
      starts: one per item of the model's label map.
      source_path: the label map of the checkpoint's classes, for messages.
      source_ids: its ids by name.
      near_misses: classes that start anew though the checkpoint has one in another spelling.
    """

    starts: tuple[ClassStart, ...]
    source_path: str
    source_ids: Mapping[str, int]
    near_misses: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def num_source_classes(self) -> int:
        """The smallest number of classes that holds every label of the source."""
        return max(self.source_ids.values())

    def plan(
        self, name: str, target: ClassLayout, shape: tuple[int, ...], source_shape: tuple[int, ...]
    ) -> Transplant | None:
        """How a variable gets its rows; None where shapes differ in more than the classes, so that no row fits.

        Args:
          name: of the variable, for messages.
          target: the layout of the model's variable.
          shape: the model's.
          source_shape: the checkpoint's.

        Raises:
          UserError: the checkpoint has fewer classes than its label map.
        """
        if len(shape) != len(source_shape) or shape[:-1] != source_shape[:-1] or shape[-1] != target.size:
            return None
        if source_shape[-1] % (target.groups * target.width):
            return None
        source = self._source_layout(name, target, source_shape[-1] // (target.groups * target.width))
        slots: list[tuple[int, ...]] = [()] * target.slots
        if target.background is not None and source.background is not None:
            slots[target.background] = (source.background,)
        for start in self.starts:
            slots[target.slot(start.id - 1)] = tuple(source.slot(id_ - 1) for id_ in start.source_ids)
        return Transplant(target, source, tuple(slots))

    def _source_layout(self, name: str, target: ClassLayout, slots: int) -> ClassLayout:
        """What the checkpoint's variable holds, from its size and the label map.

        One slot more than classes is a background, the first, in every checkpoint of the OD API. Still more are
        classes that the label map does not name (Open Images: 545 labels, 546 classes); a background is then where the
        model has one. Boxes have no background.
        """
        classes = self.num_source_classes
        if slots < classes:
            raise UserError(
                f"{_FIELD}.source_label_map: {self.source_path} has ids up to {classes}, but the checkpoint has "
                f"{slots} outputs per {'anchor' if target.groups > 1 else 'location'} in {name}: it is the label map "
                "of another checkpoint."
            )
        has_background = target.background is not None if slots > classes + 1 else slots == classes + 1
        background = 0 if has_background and target.width == 1 else None
        return ClassLayout(target.groups, slots, background, target.width)


def transplanted(
    rows: tuple[Row, ...], transfer: ClassTransfer | None, class_layout: Callable[[str], ClassLayout | None]
) -> tuple[Row, ...]:
    """The rows of a plan with those of class predictors put together by class.

    Also where the shapes agree: as many classes need not be the same ones.

    Raises:
      UserError: as `ClassTransfer.plan`.
    """
    if transfer is None:
        return rows
    result = []
    for row in rows:
        layout = class_layout(row.name) if row.source_shape is not None else None
        transplant = transfer.plan(row.name, layout, row.shape, row.source_shape) if layout is not None else None
        if transplant is not None:
            row = row._replace(status=Status.TRANSPLANTED, steps=(*row.steps, transplant))
        result.append(row)
    return tuple(result)


def problem(rows: Sequence[Row], transfer: ClassTransfer | None) -> str | None:
    """Why a plan with a transfer must not be applied: it carries nothing over. None if it does."""
    if transfer is None or _transplants(rows):
        return None
    predictors = [row for row in rows if row.class_head]
    different = [row for row in predictors if row.status is Status.SHAPE_DIFFERS]
    if different:
        row = different[0]
        reason = (
            f"shapes differ in more than the number of classes: {row.name} is {list(row.source_shape or ())} in the "
            f"checkpoint, {list(row.shape)} in the model. Do anchors per location or depths differ?"
        )
    elif any(row.status is Status.LEFT_OUT for row in predictors):
        reason = (
            "fine_tune_checkpoint_type (or scope) leaves heads out. Take type 'detection' with "
            "fine_tune_checkpoint_version: V1, or 'full'."
        )
    else:
        reason = (
            "the checkpoint has no class predictor by the model's names, as its map, only and skip leave them. Change "
            "these, or take class_transfer out."
        )
    return f"{_FIELD}: no row of a class predictor can be carried over: {reason}"


def to_json(rows: Sequence[Row], transfer: ClassTransfer) -> dict[str, Any]:
    """Which class got what, as JSON values.

    `source_label_map`; `background`: see `background`; `classes`: in the order of the label map, each `name`, `id`,
    `how`, `sources`, `source_ids`; `unused`: classes of the checkpoint that nothing starts from; `variables`: those
    that rows are carried over into.
    """
    return {
        "source_label_map": transfer.source_path,
        "background": background(rows),
        "classes": [start._asdict() for start in transfer.starts],
        "unused": _unused(transfer),
        "variables": list(_transplants(rows)),
    }


def lines(rows: Sequence[Row], transfer: ClassTransfer) -> list[str]:
    """Which class got what, for people."""
    by_how = collections.defaultdict(list)
    for start in transfer.starts:
        by_how[start.how].append(start)
    found = [f"Class rows, by {transfer.source_path}, in {len(_transplants(rows))} variables:"]
    if background(rows) != "none":
        found.append(f"  background: {background(rows)}")
    found += _listed("carried over under the same name", [start.name for start in by_how[SAME_NAME]])
    found += _listed("renamed", [f"{start.sources[0]} -> {start.name}" for start in by_how[RENAMED]])
    found += _listed("mean", [f"{start.name} from {' + '.join(start.sources)}" for start in by_how[MEAN]])
    found += _listed("start anew", [start.name for start in by_how[ANEW]])
    found += _listed("of the checkpoint, not used", _unused(transfer))
    for name, spelling in transfer.near_misses.items():
        found.append(
            f"  Notice: {name!r} starts anew, but the checkpoint has {spelling!r}. The same? Then rename "
            f"{{ from: {spelling!r} to: {name!r} }}."
        )
    return found


def background(rows: Sequence[Row]) -> str:
    """What became of the background: `carried over`, `starts anew`, `left out` or `none`."""
    scores = [one for one in _transplants(rows).values() if one.target.width == 1]
    here = any(one.target.background is not None for one in scores)
    there = any(one.source.background is not None for one in scores)
    return {(True, True): "carried over", (True, False): ANEW, (False, True): "left out"}.get((here, there), "none")


def _transplants(rows: Sequence[Row]) -> dict[str, Transplant]:
    return {row.name: row.steps[-1] for row in rows if row.status is Status.TRANSPLANTED}


def _unused(transfer: ClassTransfer) -> list[str]:
    used = {id_ for start in transfer.starts for id_ in start.source_ids}
    return [name for name, id_ in transfer.source_ids.items() if id_ not in used]


def _listed(title: str, entries: list[str], limit: int = 20) -> list[str]:
    if not entries:
        return []
    more = f", and {len(entries) - limit} more" if len(entries) > limit else ""
    return [f"  {title} ({len(entries)}): {', '.join(entries[:limit])}{more}"]
