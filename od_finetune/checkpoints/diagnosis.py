"""Why a source's plan must not be applied, and what the user most likely meant."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence

from od_finetune import names
from od_finetune.checkpoints import report, vocabularies
from od_finetune.checkpoints import view as views
from od_finetune.checkpoints.matching import SourcePlan
from od_finetune.checkpoints.records import CLASSIFICATION, FULL, Row, Status, Target


def problem(plan: SourcePlan, target: Target) -> str | None:
    """The error message for a source that restores nothing (of the backbone) or, under `full`, not all; else None."""
    selected = plan.selected
    if not selected:
        scope = f" and scope {list(plan.request.scope)}" if plan.request.scope else ""
        return (
            f"{plan.request.field}: fine_tune_checkpoint_type {plan.request.type!r}{scope} select no variable of this "
            "model; use another type or scope."
        )
    # A foreign checkpoint may share a name and shape by accident (a bias of the head, a layer of a wider network), so
    # that the backbone must be in it, and must not be mostly of other shapes.
    backbone = [row for row in selected if row.part == "backbone"] or selected
    restored = sum(row.status is Status.RESTORED for row in backbone)
    different = sum(row.status is Status.SHAPE_DIFFERS for row in backbone)
    if restored == 0 or different > len(backbone) / 2:
        what = "variables" if backbone is selected else "variables of the backbone"
        return (
            f"{plan.source.path} ({plan.source.kind}): fine_tune_checkpoint_type {plan.request.type!r} would restore "
            f"{restored or 'none'} of {len(backbone)} {what}. {_cause(plan, backbone, target)} "
            f"{_scopes(plan, backbone)}"
        )
    misfits = [row for row in selected if not row.restored]
    return _mismatches(plan, misfits) if plan.request.type == FULL and misfits else None


def _mismatches(plan: SourcePlan, misfits: Sequence[Row]) -> str:
    lines = [
        report.shape_difference(row) if row.source else f"{row.name}: not in the checkpoint" for row in misfits
    ]
    heads = sum(row.class_head for row in misfits)
    hint = " Other classes? Type 'detection' starts the class head anew." if heads else ""
    return (
        f"{plan.source.path}: fine_tune_checkpoint_type 'full' wants every variable, but {len(misfits)} of "
        f"{len(plan.selected)} do not match.{hint}\n  " + "\n  ".join(lines)
    )


def _cause(plan: SourcePlan, wanted: Sequence[Row], target: Target) -> str:
    different = [row for row in wanted if row.status is Status.SHAPE_DIFFERS]
    if different:
        return (
            f"Likely cause: another architecture: {len(different)} of the names are in the checkpoint with another "
            f"shape, e.g. {report.shape_difference(different[0])}. Check depth_multiplier and the extractor's type."
        )
    view = views.view(plan.source, plan.request)
    namings = vocabularies.of_type(CLASSIFICATION, target.vocabularies)
    finder = vocabularies.Finder(view, plan.source.layout, namings)
    found = [finder.find(row.name, target.tf2_names.get(row.name, ""), row.shape) for row in wanted]
    there = [matches[0] for matches in found if matches]
    if there:
        return (
            f"Likely cause: another kind of file: it has {len(there)} of them without the detector's scope, as a "
            f"classification checkpoint does (e.g. {view.own[there[0].name]}). Set fine_tune_checkpoint_type: "
            "'classification'."
        )
    if not plan.unused:
        return "Likely cause: another kind of file: it holds no weights."
    return _other_scope(wanted, plan.unused, target.tf2_names) or (
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


def _scopes(plan: SourcePlan, wanted: Sequence[Row]) -> str:
    model_scope = names.common_scope([row.name for row in wanted]) or wanted[0].name
    close = names.nearest(model_scope, report.scopes(plan.unused))
    closest = f" Closest to it: {', '.join(close)}." if close else ""
    has = f" The checkpoint has {report.scope_counts(plan.source.names())}." if plan.source.names() else ""
    return f"The model's scope is {model_scope}.{has}{closest}"
