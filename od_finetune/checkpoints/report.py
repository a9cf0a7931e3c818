"""A restore plan as text for people."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from od_finetune import names, text_table
from od_finetune.checkpoints import class_rows
from od_finetune.checkpoints.records import DONE, FULL, Row, Status

if TYPE_CHECKING:
    from od_finetune.checkpoints.plan import RestorePlan

_LINES = 30  # of each list; the JSON file has all


def text(plan: RestorePlan) -> str:
    """Source and request, a table of counts per scope, then what did not match."""
    request = plan.request
    lines = [
        f"Restoring from {plan.source.describe()}",
        f"fine_tune_checkpoint_type {request.type!r}, version {request.version}: {_selection(plan)}",
        *(f"Notice: {notice}" for notice in request.notices),
        *_table(plan.rows),
    ]
    if sentence := class_head(plan):
        lines.append(sentence)
    if plan.transfer is not None:
        lines += class_rows.ClassReport(plan.transfer, plan.transplants).lines()
    lines += _list("Shape differs", [shape_difference(row) for row in plan.with_status(Status.SHAPE_DIFFERS)])
    lines += _list("Not in checkpoint", [row.name for row in plan.with_status(Status.NOT_IN_CHECKPOINT)])
    backbone = [row for row in plan.rows if row.part == "backbone"]
    restored = sum(row.status is Status.RESTORED for row in backbone)
    if restored < len(backbone) / 2:
        lines.append(f"Warning: only {restored} of the backbone's {len(backbone)} variables. Another architecture?")
    if plan.unused:
        lines.append(f"Not used of the checkpoint ({len(plan.unused)}): {scope_counts(plan.unused)}")
    return "\n".join(lines)


def class_head(plan: RestorePlan) -> str | None:
    """Says that and why the class outputs start anew; None if they do not."""
    fresh = [row for row in plan.rows if row.class_head and row.status not in DONE]
    if not fresh:
        return None
    start = f"class head: {len(fresh)} variables start anew: "
    different = [row for row in fresh if row.status is Status.SHAPE_DIFFERS]
    if different:
        return start + _outputs(different, plan.num_classes)
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
        groups.setdefault(entry.split("/")[0], []).append(entry)
    return {names.common_scope(group) or first: len(group) for first, group in groups.items()}


def _selection(plan: RestorePlan) -> str:
    parts = [part for part in ("backbone", "neck", "head") if part in plan.request.parts]
    if plan.request.type == FULL:
        return "everything, every variable must match"
    return "every variable found with the same shape" if len(parts) == 3 else f"the {' and '.join(parts)} only"


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
