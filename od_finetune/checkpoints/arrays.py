"""An open checkpoint as plain arrays: what most readers make of their file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

HWIO = "HWIO"
"""Kernels as TensorFlow has them: [height, width, in, out], depthwise [height, width, in, multiplier], dense
[in, out]."""
OIHW = "OIHW"
"""Kernels as PyTorch and MXNet have them: [out, in, height, width], depthwise [in * multiplier, 1, height, width],
dense [out, in]."""


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Fulfils `od_finetune.checkpoints.source.Source`.

    Attributes:
      shapes: of everything that may be a model's weight, by name, in the order of the file.
      has_order: whether that order is the model's; False where the format, or its usual writer, sorts names.
      load: reads one of them, or one of `others`; raises UnreadableError where the file is damaged.
      others: shapes of optimiser slots, counters and the like, by name.
      second_names: second spelling -> name.
    """

    path: str
    kind: str
    shapes: Mapping[str, tuple[int, ...]]
    load: Callable[[str], np.ndarray]
    layout: str = HWIO
    others: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    second_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    epsilons: Mapping[str, float] = dataclasses.field(default_factory=dict)
    has_order: bool = True

    def names(self) -> dict[str, tuple[int, ...]]:
        """Shape by name of the entries that may be a model's weights, sorted by name."""
        return dict(sorted(self.shapes.items()))

    def order(self) -> tuple[str, ...] | None:
        """Names of the entries that may be a model's weights, in the order of the file; None where it keeps none."""
        return tuple(self.shapes) if self.has_order else None

    def other_entries(self) -> dict[str, tuple[int, ...]]:
        """Shape by name of the rest, sorted by name."""
        return dict(sorted(self.others.items()))

    def aliases(self) -> dict[str, str]:
        """Second spelling -> name."""
        return dict(self.second_names)

    def read(self, name: str) -> np.ndarray:
        """One entry's values. Raises UnreadableError where the file is damaged."""
        return self.load(name)

    def describe(self) -> str:
        """Format, path and number of entries in one line."""
        return f"{self.kind} {self.path} ({len(self.shapes)} weights, {len(self.others)} other entries)"


def derived(source: Any, **changes: Any) -> ArraySource:
    """The entries of another source, with some of ArraySource's fields changed.

    Args:
      source: fulfils `od_finetune.checkpoints.source.Source`.
    """
    shapes, order = source.names(), source.order()
    same = dict(
        path=source.path,
        kind=source.kind,
        shapes=shapes if order is None else {name: shapes[name] for name in order},
        load=source.read,
        layout=source.layout,
        others=source.other_entries(),
        second_names=source.aliases(),
        notes=source.notes,
        epsilons=source.epsilons,
        has_order=order is not None,
    )
    return ArraySource(**{**same, **changes})
