"""A FreezePlan as text: one line per scope, opened where its variables are not treated alike."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from od_finetune import text_table
from od_finetune.training.freeze_records import Row, is_statistic

if TYPE_CHECKING:
    from od_finetune.training.freeze import FreezePlan

# How far a scope is opened in which some variables are trained and some are not.
_DEEPEST_SCOPE = 3
_HEADER = ("scope", "trained", "parameters", "frozen", "parameters", "rate x")


def text(plan: FreezePlan) -> str:
    """The table, the number of norms in inference mode, and what later phases add."""
    decays = any(row.weight_decay is not None for row in plan.rows)
    header = (*_HEADER, *(("weight decay",) if decays else ()), "decided by")
    table = [header, *(_line(scope, rows, decays) for scope, rows in _scopes(plan.rows))]
    table.append(_line("total", plan.rows, decays))
    from_step = f" from step {plan.from_step} on" if plan.from_step else ""
    norms = f"{len(plan.frozen_norms)} batch norm layers run in inference mode."
    later = [_later(phase) for phase in plan.phases if phase.from_step > plan.from_step]
    return "\n".join([f"Freeze plan{from_step}:", *text_table.lines(table, numbers=range(1, 5)), norms, *later])


def unfrozen(phase: FreezePlan) -> list[Row]:
    """The variables that a phase trains and the one before it did not."""
    before = [other for other in phase.phases if other.from_step < phase.from_step]
    known = set(before[-1].trainable if before else phase.trainable)
    return [row for row in phase.rows if row.trainable and row.name not in known]


def _later(phase: FreezePlan) -> str:
    rows = unfrozen(phase)
    parameters = sum(row.parameters for row in rows)
    reasons = "; ".join(dict.fromkeys(row.pattern for row in rows))
    return f"From step {phase.from_step} on {len(rows)} more variables train ({parameters:,} parameters): {reasons}."


def _scopes(rows: Sequence[Row], depth: int = 1) -> list[tuple[str, list[Row]]]:
    """Rows by their scope's first `depth` segments, deeper where the scope is not treated alike throughout."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault("/".join(row.name.split("/")[:-1][:depth]), []).append(row)
    scopes: list[tuple[str, list[Row]]] = []
    run: tuple[str, set[tuple[object, ...]]] | None = None  # first scope and treatment of the line before
    for scope, members in groups.items():
        treatments = {_treatment(row) for row in members if not is_statistic(row.name)}
        if len(treatments) > 1 and depth < _DEEPEST_SCOPE:
            scopes += _scopes(members, depth + 1)
            run = None
        elif run is not None and run[1] == treatments and _family(run[0]) == _family(scope):
            scopes[-1] = (f"{run[0]} .. {scope.rpartition('/')[2]}", scopes[-1][1] + members)
        else:
            scopes.append((scope, members))
            run = scope, treatments
    return scopes


def _treatment(row: Row) -> tuple[object, ...]:
    return row.trainable, row.multiplier, row.pattern, row.weight_decay


def _family(scope: str) -> str:
    """What numbered siblings share: `a/Conv2d_1_depthwise` -> `a/Conv`."""
    parent, _, own = scope.rpartition("/")
    return f"{parent}/{re.match('[A-Za-z]*', own)[0]}"


def _line(scope: str, rows: Sequence[Row], decays: bool) -> tuple[str, ...]:
    trained = [row for row in rows if row.trainable]
    frozen = [row for row in rows if row.frozen]
    multipliers = sorted({row.multiplier for row in trained})
    patterns = list(dict.fromkeys(row.pattern for row in rows if row.pattern)) if scope != "total" else []
    return (
        scope,
        str(len(trained)),
        f"{sum(row.parameters for row in trained):,}",
        str(len(frozen)),
        f"{sum(row.parameters for row in frozen):,}",
        _span(multipliers) or "-",
        *((_weights(trained),) if decays else ()),
        "; ".join(patterns),
    )


def _span(values: Sequence[float]) -> str:
    """A few numbers one by one, many as their range."""
    shown = list(dict.fromkeys(f"{value:.3g}" for value in values))
    return ",".join(shown) if len(shown) <= 3 else f"{shown[0]}..{shown[-1]}"


def _weights(trained: Sequence[Row]) -> str:
    """L2 weights that a pattern gave; `own` where the layer's regulariser, if it has one, stays."""
    given = _span(sorted({row.weight_decay for row in trained if row.weight_decay is not None}))
    own = ["own"] if any(row.weight_decay is None for row in trained) else []
    return ",".join([given] * bool(given) + own) or "-"
