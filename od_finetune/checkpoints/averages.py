"""Moving averages of weights, in place of the weights themselves: what a checkpoint was evaluated with.

Where checkpoints keep them: TF1 under `<name>/ExponentialMovingAverage`; this project under `moving_average/<name>`;
tf-models-official as a slot `average` of its optimiser (`<object path>/.OPTIMIZER_SLOT/optimizer/average`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from od_finetune import object_keys
from od_finetune.checkpoints.source import Source
from od_finetune.errors import UserError

_TF1 = "/ExponentialMovingAverage"
_OWN = f"{object_keys.MOVING_AVERAGE}/"
_SLOT = re.compile(re.escape(object_keys.SLOT) + r"[^/]+/average$")


class AveragedSource:
    """A Source that reads the moving average of each weight that has one; see `source.Source`."""

    def __init__(self, source: Source, averages: Mapping[str, str]) -> None:
        weights = len(source.names())
        self.path, self.kind = source.path, source.kind
        self.layout, self.epsilons = source.layout, source.epsilons
        note = f"{len(averages)} of {weights} weights are their moving averages; the rest have none."
        self.notes = (*source.notes, note if len(averages) < weights else f"All {weights} weights are moving averages.")
        self._source, self._averages = source, averages

    def names(self) -> Mapping[str, tuple[int, ...]]:
        """Shape by name of the entries that may be a model's weights, sorted by name."""
        return self._source.names()

    def order(self) -> tuple[str, ...] | None:
        """The same names in the order of the file; None where the format keeps none."""
        return self._source.order()

    def other_entries(self) -> Mapping[str, tuple[int, ...]]:
        """Shape by name of the rest, moving averages among them, sorted by name."""
        return self._source.other_entries()

    def aliases(self) -> Mapping[str, str]:
        """Second spelling -> name."""
        return self._source.aliases()

    def read(self, name: str) -> np.ndarray:
        """One entry's moving average, or its values where it has none. Raises UserError where the file is damaged."""
        return self._source.read(self._averages.get(name, name))

    def describe(self) -> str:
        """Format, path and number of entries in one line."""
        return f"{self._source.describe()}, {len(self._averages)} weights by their moving averages"


def with_moving_averages(source: Source) -> AveragedSource:
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
    return AveragedSource(source, averages)


def _averaged(entry: str) -> str | None:
    """The name or object path of the weight that an entry is the moving average of."""
    if entry.endswith(_TF1):
        return entry.removesuffix(_TF1)
    if entry.startswith(_OWN):
        return entry.removeprefix(_OWN)
    match = _SLOT.search(entry)
    return entry[: match.start()] if match else None
