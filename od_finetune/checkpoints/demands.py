"""How much a plan restores, against how much the config demands."""

from __future__ import annotations

import math
from collections.abc import Sequence

from od_finetune.checkpoints import matching
from od_finetune.checkpoints.records import Demand, Row, Status, Target

_LINES = 20


def restored_fraction(rows: Sequence[Row]) -> float:
    """Restored parameters by those that the sources were asked for, moving statistics included.

    Class outputs do not count on either side: with other classes they start anew. 0 where nothing was asked for.
    """
    asked = [row for row in rows if row.status is not Status.LEFT_OUT and not row.class_head]
    total = sum(math.prod(row.shape) for row in asked)
    restored = sum(math.prod(row.shape) for row in asked if row.status is Status.RESTORED)
    return restored / total if total else 0.0


def shortfall(rows: Sequence[Row], demand: Demand, target: Target) -> str | None:
    """What of the demand is not fulfilled; None if nothing.

    Raises:
      UserError: a pattern of `require` matches nothing.
    """
    said = []
    fraction = restored_fraction(rows)
    if fraction < demand.fraction:
        said.append(
            f"train_config.min_restored_fraction: {demand.fraction:g} of the parameters that the sources are asked "
            f"for must be restored (class outputs not counted), but it is {math.floor(fraction * 1e4) / 1e4:g}."
            f"{_nothing_asked(rows)}"
        )
    if demand.require:
        required = matching.matching(target, demand.require, "train_config.require")
        missing = [row for row in rows if row.name in required and not row.restored]
        if missing:
            lines = [f"\n  {row.name}: {row.status.value}" for row in missing[:_LINES]]
            more = f"\n  ... and {len(missing) - _LINES} more" if len(missing) > _LINES else ""
            said.append(
                f"train_config.require: {len(missing)} of the {len(required)} variables that must be restored are "
                f"not:{''.join(lines)}{more}{_nothing_asked(rows)}"
            )
    return "\n".join(said) or None


def _nothing_asked(rows: Sequence[Row]) -> str:
    """What to do where no source was asked for anything."""
    if any(row.status is not Status.LEFT_OUT for row in rows):
        return ""
    return " Nothing is restored at all: set train_config.fine_tune_checkpoint, or leave the demand out."
