"""A restore plan as text for people."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from od_finetune import names, text_table
from od_finetune.checkpoints import class_rows, leaves
from od_finetune.checkpoints.records import FULL, RestoreRequest, Row, Status

if TYPE_CHECKING:
    from od_finetune.checkpoints.matching import SourcePlan
    from od_finetune.checkpoints.plan import RestorePlan

_LINES = 30  # of each list; the JSON file has all


def text(plan: RestorePlan) -> str:
    """What each source is asked for and gives, a table of counts per scope, then what did not match."""
    several = len(plan.sources) > 1
    lines: list[str] = []
    for origin, part in enumerate(plan.sources):
        lines += _source(plan, origin, part, f"Source {origin + 1}: restoring" if several else "Restoring")
    lines += _table(plan.rows)
    if several:
        lines.append(f"Sources: {_origins(plan)}")
    if sentence := class_head(plan):
        lines.append(sentence)
    if plan.transfer is not None:
        lines += class_rows.lines(plan.rows, plan.transfer)
    lines += _list("Shape differs", [shape_difference(row) for row in plan.with_status(Status.SHAPE_DIFFERS)])
    lines += _list("Not in checkpoint", [row.name for row in plan.with_status(Status.NOT_IN_CHECKPOINT)])
    backbone = [row for row in plan.rows if row.part == "backbone" and row.status is not Status.LEFT_OUT]
    restored = sum(row.status is Status.RESTORED for row in backbone)
    if restored < len(backbone) / 2:
        lines.append(f"Warning: only {restored} of the backbone's {len(backbone)} variables. Another architecture?")
    if plan.shortfall:
        lines.append(f"Refused: {plan.shortfall}")
    return "\n".join(lines)


def class_head(plan: RestorePlan) -> str | None:
    """Says that and why the class outputs start anew; None if they do not."""
    fresh = [row for row in plan.rows if row.class_head and not row.restored]
    if not fresh:
        return None
    start = f"class head: {len(fresh)} variables start anew: "
    different = [row for row in fresh if row.status is Status.SHAPE_DIFFERS]
    if different:
        return start + _outputs(different, plan.target.num_classes)
    missing = fresh[0].status is Status.NOT_IN_CHECKPOINT
    reason = "the checkpoint does not have them" if missing else "the type leaves heads out"
    return start + reason


def shape_difference(row: Row) -> str:
    """`name: checkpoint [273], model [6]`, with the source's name where it is another."""
    there = "" if row.source == row.name else f" {row.source}"
    return f"{row.name}: checkpoint{there} {list(row.source_shape or ())}, model {list(row.shape)}"


def scope_counts(entries: Iterable[str], limit: int = 8) -> str:
    """The scopes that names fall into, most frequent first: `FeatureExtractor/MobilenetV2 (262), ...`."""
    ranked = sorted(scopes(entries).items(), key=lambda item: (-item[1], item[0]))
    more = f", and {len(ranked) - limit} more scopes" if len(ranked) > limit else ""
    return ", ".join(f"{scope} ({count})" for scope, count in ranked[:limit]) + more


def scopes(entries: Iterable[str]) -> dict[str, int]:
    """Number of names by scope: those of one first segment together, under the longest scope they share."""
    groups: dict[str, list[str]] = {}
    for entry in entries:
        groups.setdefault(re.split("[/.]", entry)[0], []).append(entry)
    return {names.common_scope(group) or first: len(group) for first, group in groups.items()}


def _source(plan: RestorePlan, origin: int, part: SourcePlan, verb: str) -> list[str]:
    """What one source is asked for, how its names answer, and what is left over of it."""
    request = part.request
    lines = [
        f"{verb} from {part.source.describe()}",
        f"fine_tune_checkpoint_type {request.type!r}, version {request.version}: {_selection(request)}",
        *(f"Notice: {notice}" for notice in part.notices),
    ]
    if part.restored:
        lines.append(f"Found by: {_tally(row.rule for row in part.restored)}")
    if changed := [row.transform for row in part.restored if row.transform]:
        lines.append(f"Transformed: {_tally(changed)}")
    overruled = len(part.restored) - len(plan.restored_from(origin))
    if overruled:
        lines.append(f"Overruled by a later source: {overruled} of {len(part.restored)} variables")
    if request.by_order:
        lines += _list("Pairs by order", _pairs(part.rows))
    if part.excluded:
        lines.append(f"Left out by only and skip ({len(part.excluded)}): {scope_counts(part.excluded)}")
    if part.unused:
        lines.append(f"Not used of the checkpoint ({len(part.unused)}): {scope_counts(part.unused)}")
    return lines


def _selection(request: RestoreRequest) -> str:
    parts = [part for part in ("backbone", "neck", "head") if part in request.parts]
    if request.type == FULL:
        what = "everything, every variable must match"
    else:
        what = "every variable found with the same shape" if len(parts) == 3 else f"the {' and '.join(parts)} only"
    return f"{what}; of it scope {', '.join(request.scope)}" if request.scope else what


def _pairs(rows: Sequence[Row]) -> list[str]:
    """A line per layer: its scope here, there, and the shape that they share."""
    lines: dict[str, str] = {}
    for row in rows:
        if row.source is not None:
            scope = row.name.rpartition("/")[0]
            there = leaves.split(row.source)[0]
            differs = "" if row.restored else f", model {list(row.shape)}: not restored"
            lines.setdefault(scope, f"{scope} <- {there} {list(row.source_shape or ())}{differs}")
    return list(lines.values())


def _origins(plan: RestorePlan) -> str:
    """`1: 260 variables, 2: 24, none: 12`."""
    counts = [f"{origin + 1}: {len(plan.restored_from(origin))}" for origin in range(len(plan.sources))]
    return f"{', '.join(counts)}, none: {sum(not row.restored for row in plan.rows)} variables"


def _tally(words: Iterable[str | None]) -> str:
    """`same name (260), torchvision (12)`."""
    counts = collections.Counter(str(word) for word in words)
    return ", ".join(f"{word} ({count})" for word, count in counts.most_common())


def _outputs(rows: Sequence[Row], num_classes: int | None) -> str:
    """Class outputs per anchor; the plain number of outputs where the anchors can't be told."""
    row = next((row for row in rows if len(row.shape) == 1), rows[0])
    there, here = (row.source_shape or (0,))[-1], row.shape[-1]
    if num_classes:
        per_anchor = num_classes + 1 if here % (num_classes + 1) == 0 else num_classes
        anchors = here // per_anchor if here % per_anchor == 0 else 0
        if anchors and there % anchors == 0:
            return f"checkpoint has {there // anchors} outputs per anchor, the model {per_anchor}"
    return f"checkpoint has {there} class outputs in {row.name}, the model {here}"


def _table(rows: Sequence[Row]) -> list[str]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.part, row.name.split("/")[0]), []).append(row)
    table = [["part", "scope", "variables", *(status.value for status in Status)]]
    for (part, _), members in groups.items():
        table.append([part, names.common_scope([row.name for row in members]), *_counts(members)])
    table.append(["total", "", *_counts(rows)])
    return text_table.lines(table, numbers=range(2, len(table[0])))


def _counts(rows: Sequence[Row]) -> list[str]:
    counts = collections.Counter(row.status for row in rows)
    return [str(len(rows)), *(str(counts[status] or "-") for status in Status)]


def _list(title: str, entries: Sequence[str]) -> list[str]:
    if not entries:
        return []
    more = [f"  ... and {len(entries) - _LINES} more"] if len(entries) > _LINES else []
    return [f"{title} ({len(entries)}):", *(f"  {entry}" for entry in entries[:_LINES]), *more]
