"""Why a restore plan must not be applied, and what the user most likely meant."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from od_finetune import names
from od_finetune.checkpoints import class_rows, report, vocabularies
from od_finetune.checkpoints.records import DONE, FULL, Row, Status

if TYPE_CHECKING:
    from od_finetune.checkpoints.plan import RestorePlan


def problem(plan: RestorePlan, tf2_names: Mapping[str, str]) -> str | None:
    """The error message for a plan that restores nothing (of the backbone) or, under `full`, not all; else None."""
    selected = [row for row in plan.rows if row.status is not Status.LEFT_OUT]
    if not selected:
        return f"fine_tune_checkpoint_type {plan.request.type!r} selects no variable of this model; use another type."
    # A foreign checkpoint may share a name and shape by accident (a bias of the head, a layer of a wider network), so
    # that the backbone must be in it, and must not be mostly of other shapes.
    backbone = [row for row in selected if row.part == "backbone"] or selected
    restored = sum(row.status is Status.RESTORED for row in backbone)
    different = sum(row.status is Status.SHAPE_DIFFERS for row in backbone)
    if restored == 0 or different > len(backbone) / 2:
        what = "variables" if backbone is selected else "variables of the backbone"
        return (
            f"{plan.source.path} ({plan.source.kind}): fine_tune_checkpoint_type {plan.request.type!r} would restore "
            f"{restored or 'none'} of {len(backbone)} {what}. {_cause(plan, backbone, tf2_names)} "
            f"{_scopes(plan, backbone)}"
        )
    misfits = [row for row in selected if row.status not in DONE]
    if plan.request.type == FULL and misfits:
        return _mismatches(plan, misfits)
    return class_rows.problem(plan.rows, plan.transfer, plan.transplants)


def _mismatches(plan: RestorePlan, misfits: Sequence[Row]) -> str:
    lines = [
        report.shape_difference(row) if row.source else f"{row.name}: not in the checkpoint" for row in misfits
    ]
    heads = sum(row.class_head for row in misfits)
    hint = " Other classes? Type 'detection' starts the class head anew." if heads else ""
    return (
        f"{plan.source.path}: fine_tune_checkpoint_type 'full' wants every variable, but {len(misfits)} of "
        f"{len(plan.rows)} do not match.{hint}\n  " + "\n  ".join(lines)
    )


def _cause(plan: RestorePlan, wanted: Sequence[Row], tf2_names: Mapping[str, str]) -> str:
    different = [row for row in wanted if row.status is Status.SHAPE_DIFFERS]
    if different:
        return (
            f"Likely cause: another architecture: {len(different)} of the names are in the checkpoint with another "
            f"shape, e.g. {report.shape_difference(different[0])}. Check depth_multiplier and the extractor's type."
        )
    finder = vocabularies.Finder(plan.source, vocabularies.CLASSIFICATION)
    found = [finder.find(row.name, tf2_names.get(row.name, ""), row.shape) for row in wanted]
    there = [match for match in found if match is not None]
    if there:
        return (
            f"Likely cause: another kind of file: it has {len(there)} of them without the detector's scope, as a "
            f"classification checkpoint does (e.g. {there[0].source}). Set fine_tune_checkpoint_type: "
            "'classification'."
        )
    if not plan.unused:
        return "Likely cause: another kind of file: it holds no weights."
    return _other_scope(wanted, plan.unused, tf2_names) or (
        "Likely cause: another architecture: no name of the model is in it, under any scope."
    )


def _other_scope(wanted: Sequence[Row], source_names: Sequence[str], tf2_names: Mapping[str, str]) -> str | None:
    """Names that end as the model's do (three segments at least, or a whole TF2 name) under another scope."""
    ends: dict[str, list[str]] = {}
    for source_name in source_names:
        segments = source_name.split("/")
        for first in range(len(segments)):
            ends.setdefault("/".join(segments[first:]), []).append(source_name)
    pairs: collections.Counter[tuple[str, str]] = collections.Counter()
    for row in wanted:
        segments = row.name.split("/")
        spellings = ["/".join(segments[first:]) for first in range(max(1, len(segments) - 2))]
        for end in [*spellings, tf2_names.get(row.name, "")]:
            if end and end in ends:
                scope = ends[end][0].removesuffix(end).rstrip("/")
                pairs[(row.name.removesuffix(end).rstrip("/"), scope)] += 1
                break
    (here, there), count = max(pairs.items(), key=lambda item: item[1], default=(("", ""), 0))
    if count < len(wanted) / 2:  # networks of one family share some inner names
        return None
    return (
        f"Likely cause: another scope: {count} variables that the model has under {here or '(none)'} are in the "
        f"checkpoint under {there or '(none)'}."
    )


def _scopes(plan: RestorePlan, wanted: Sequence[Row]) -> str:
    model_scope = names.common_scope([row.name for row in wanted]) or wanted[0].name
    close = names.nearest(model_scope, report.scopes(plan.unused))
    closest = f" Closest to it: {', '.join(close)}." if close else ""
    has = f" The checkpoint has {report.scope_counts(plan.source.names())}." if plan.source.names() else ""
    return f"The model's scope is {model_scope}.{has}{closest}"
