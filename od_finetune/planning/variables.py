"""Every variable of a config's detector, or every entry of a checkpoint, as rows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from od_finetune import names
from od_finetune.checkpoints.source import Source
from od_finetune.config import pipeline
from od_finetune.planning.plans import Plans

_LOOKED_AT = 1 << 16  # bytes of a file, to tell what it is


class Variable(NamedTuple):
    """One variable of a detector."""

    name: str
    shape: tuple[int, ...]
    parameters: int
    part: str
    stage: str
    state: str  # of the freeze plan: trained, frozen, statistics, ...
    decided_by: str
    multiplier: float
    source: str  # its name in the checkpoint; "" if it was not looked for or not found
    restored: str  # what the restore plan says, "" without one
    aliases: tuple[str, ...]  # snake_case, then its TF2 name


class Entry(NamedTuple):
    """One entry of a checkpoint."""

    name: str
    shape: tuple[int, ...]
    parameters: int
    weight: bool  # False: an optimiser's slot, a counter and the like
    dtype: str  # "" where telling it would take reading the values
    aliases: tuple[str, ...]


def looks_like_config(path: str) -> bool:
    """Whether a file is the text of a pipeline.config, sound or not: a line begins with one of its sections."""
    try:
        with Path(path).open("rb") as file:
            start = file.read(_LOOKED_AT)
    except OSError:
        return False
    sections = "|".join(field.name for field in pipeline.TrainEvalPipelineConfig.DESCRIPTOR.fields)
    return b"\0" not in start and re.search(rf"^\s*(?:{sections})\s*:?\s*[{{<]".encode(), start, re.M) is not None


def of_detector(plans: Plans) -> list[Variable]:
    """In the order of the forward pass."""
    detector = plans.detector
    tf2_names = detector.tf2_names()
    stages = {name: stage.names[0] for stage in detector.stages() for name in stage.variables}
    plan = plans.restore.plan
    restored = {row.name: row for row in plan.rows} if plan else {}
    several = plan is not None and len(plan.sources) > 1
    frozen = {row.name: row for row in plans.freeze.rows}
    found = []
    for name, variable in detector.named_variables().items():
        freeze, restore = frozen[name], restored.get(name)
        found.append(
            Variable(
                name=name,
                shape=tuple(variable.shape),
                parameters=freeze.parameters,
                part=detector.part(name),
                stage=stages.get(name, ""),
                state=freeze.state,
                decided_by=freeze.pattern,
                multiplier=freeze.multiplier,
                source=_source(restore, several),
                restored=_restored(restore),
                aliases=_aliases(name, tf2_names),
            )
        )
    return found


def _restored(row: Any) -> str:
    if row is None:
        return ""
    said = ", ".join(filter(None, [row.rule, row.transform]))
    return row.status.value + (f" ({said})" if said else "")


def _source(row: Any, several: bool) -> str:
    """The name in the checkpoint, with the number of the checkpoint if there are several."""
    if row is None or not row.source:
        return ""
    return f"[{row.origin}] {row.source}" if several else row.source


def _aliases(name: str, tf2_names: Mapping[str, str]) -> tuple[str, ...]:
    spellings = [names.snake_name(name)] + ([tf2_names[name]] if name in tf2_names else [])
    return tuple(dict.fromkeys(spelling for spelling in spellings if spelling != name))


def of_source(source: Source) -> list[Entry]:
    """Weights, then the other entries, each sorted by name."""
    aliases: dict[str, list[str]] = {}
    for alias, name in source.aliases().items():
        aliases.setdefault(name, []).append(alias)
    dtypes: Mapping[str, str] = getattr(source, "dtypes", dict)()
    return [
        Entry(
            name,
            tuple(shape),
            math.prod(shape),
            weight,
            dtypes.get(name, ""),
            tuple(dict.fromkeys([names.snake_name(name), *aliases.get(name, [])])),
        )
        for weight, entries in ((True, source.names()), (False, source.other_entries()))
        for name, shape in entries.items()
    ]


def matching(rows: Sequence[Any], pattern: str) -> list[Any]:
    """Rows whose name, or another spelling of it, the pattern matches as one of freeze_variables would."""
    return [row for row in rows if names.pattern_matches(pattern, row.name, row.aliases)]


def spellings(rows: Iterable[Any]) -> list[str]:
    """Every name by which rows can be found."""
    return [spelling for row in rows for spelling in (row.name, *row.aliases)]
