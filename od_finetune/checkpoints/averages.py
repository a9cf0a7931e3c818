"""Moving averages of weights, in place of the weights themselves: what a checkpoint was evaluated with.

Where checkpoints keep them: TF1 under `<name>/ExponentialMovingAverage`; this project under `moving_average/<name>`;
tf-models-official as a slot `average` of its optimiser (`<object path>/.OPTIMIZER_SLOT/optimizer/average`).
"""

from __future__ import annotations

import re

from od_finetune import object_keys
from od_finetune.checkpoints.arrays import ArraySource, derived
from od_finetune.checkpoints.source import Source
from od_finetune.errors import UserError

_TF1 = "/ExponentialMovingAverage"
_OWN = f"{object_keys.MOVING_AVERAGE}/"
_SLOT = re.compile(re.escape(object_keys.SLOT) + r"[^/]+/average$")


def with_moving_averages(source: Source) -> ArraySource:
    """The same source with moving averages in place of the weights that have one.

    Raises:
      UserError: it has none, or one whose shape is not that of its weight.
    """
    shapes, others, aliases = source.names(), source.other_entries(), source.aliases()
    averages = {}
    for entry, shape in others.items():
        spelled = _averaged(entry)
        name = spelled if spelled in shapes else aliases.get(spelled or "")
        if name not in shapes:
            continue
        if shapes[name] != shape:
            raise UserError(
                f"{source.path}: the moving average {entry} has shape {list(shape)}, its weight {list(shapes[name])}"
            )
        averages[name] = entry
    if not averages:
        raise UserError(
            f"{source.path} ({source.kind}): moving averages are asked for, but it has none: no entry "
            f"'<name>{_TF1}', '{_OWN}<name>' or optimiser slot 'average'. Leave moving_averages out."
        )
    some = f"{len(averages)} of {len(shapes)} weights are their moving averages; the rest have none."
    note = some if len(averages) < len(shapes) else f"All {len(shapes)} weights are moving averages."
    return derived(
        source, load=lambda name: source.read(averages.get(name, name)), notes=(*source.notes, note)
    )


def _averaged(entry: str) -> str | None:
    """The name or object path of the weight that an entry is the moving average of."""
    if entry.endswith(_TF1):
        return entry.removesuffix(_TF1)
    if entry.startswith(_OWN):
        return entry.removeprefix(_OWN)
    match = _SLOT.search(entry)
    return entry[: match.start()] if match else None
