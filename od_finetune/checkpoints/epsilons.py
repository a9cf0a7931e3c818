"""Batch norms whose epsilon is another in the checkpoint than in the model.

A batch norm in inference mode is y = gamma * (x - mean) / sqrt(variance + epsilon) + beta. Two of them with
different epsilons are equal, channel by channel, if gamma differs by the ratio of the square roots. A norm without
gamma takes the difference into its variance instead, as far as that stays positive.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from od_finetune.checkpoints.records import Inputs, Row, Status

logger = logging.getLogger(__name__)

_SAME = 1e-6  # relative: a config's epsilon is a float32


@dataclasses.dataclass(frozen=True)
class ScaleGamma:
    """gamma * sqrt((variance + model's epsilon) / (variance + source's)). A `records.Step`."""

    variance: str  # the source's name for the moving variance
    source_epsilon: float
    model_epsilon: float

    def __call__(self, value: np.ndarray, inputs: Inputs) -> np.ndarray:
        """Gamma `[C]` for the model's epsilon."""
        variance = inputs.read(self.variance).astype(np.float64)
        return value * np.sqrt((variance + self.model_epsilon) / (variance + self.source_epsilon))

    def __str__(self) -> str:
        return f"epsilon {self.source_epsilon:g} -> {self.model_epsilon:g}"


@dataclasses.dataclass(frozen=True)
class ShiftVariance:
    """variance + source's epsilon - model's, at least 0. A `records.Step`."""

    name: str  # the model variable, for the warning
    source_epsilon: float
    model_epsilon: float

    def __call__(self, value: np.ndarray, inputs: Inputs) -> np.ndarray:
        """Variance `[C]` for the model's epsilon."""
        shifted = value.astype(np.float64) + self.source_epsilon - self.model_epsilon
        if (shifted < 0).any():
            logger.warning(
                "%s: %d of %d channels vary so little that the model's epsilon %g, which is larger than the "
                "checkpoint's %g, makes them weaker than they were.",
                self.name, int((shifted < 0).sum()), shifted.size, self.model_epsilon, self.source_epsilon,
            )  # fmt: skip
        return np.maximum(shifted, 0.0)

    def __str__(self) -> str:
        return f"epsilon {self.source_epsilon:g} -> {self.model_epsilon:g}"


STEPS = (ScaleGamma, ShiftVariance)


def adjust(
    rows: Sequence[Row], model_epsilons: Mapping[str, float], source_epsilon: Callable[[Row], float | None]
) -> tuple[Row, ...]:
    """The rows with a step more where a restored batch norm has another epsilon in the source.

    Args:
      rows: one source's, for every model variable.
      model_epsilons: by canonical scope of the batch norms.
      source_epsilon: of the batch norm that a row's source entry belongs to; None: the same as the model's.
    """
    restored = {row.name: row for row in rows if row.status is Status.RESTORED}
    changed: dict[str, Row] = {}
    for scope, model_epsilon in model_epsilons.items():
        variance = restored.get(f"{scope}/moving_variance")
        if variance is None or variance.source is None:
            continue
        epsilon = source_epsilon(variance)
        if epsilon is None or math.isclose(epsilon, model_epsilon, rel_tol=_SAME):
            continue
        gamma = restored.get(f"{scope}/gamma")
        step = (
            ShiftVariance(variance.name, epsilon, model_epsilon)
            if gamma is None
            else ScaleGamma(variance.source, epsilon, model_epsilon)
        )
        row = gamma or variance
        changed[row.name] = row._replace(steps=(*row.steps, step))
    return tuple(changed.get(row.name, row) for row in rows)
