"""Convolutions before a batch norm that have a bias in the checkpoint but none in the model.

Keras Applications and Gluon give them one in their ResNets, although the norm takes every constant away again:
(x + bias) - mean = x - (mean - bias). So the model's mean is the checkpoint's less the bias.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from od_finetune.checkpoints import leaves
from od_finetune.checkpoints.records import Inputs, Row, Status

_MEAN = "/BatchNorm/moving_mean"
_KERNELS = ("weights", "depthwise_weights")
_BIASES = ("bias", "biases")


@dataclasses.dataclass(frozen=True)
class SubtractBias:
    """mean - bias. A `records.Step`."""

    bias: str  # the source's name for it

    def __call__(self, value: np.ndarray, inputs: Inputs) -> np.ndarray:
        """Mean `[C]` for a convolution without bias."""
        return value - inputs.read(self.bias).reshape(value.shape)

    def __str__(self) -> str:
        return f"less {self.bias}"


def fold(rows: Sequence[Row], names: Collection[str]) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """The rows with a step more where a convolution's bias goes into its norm's mean.

    Args:
      rows: one source's, for every model variable.
      names: the source's, by which its entries are read.

    Returns:
      The rows, and the biases that are used so.
    """
    by_name = {row.name: row for row in rows}
    changed: dict[str, Row] = {}
    used = []
    for row in rows:
        scope = row.name.removesuffix(_MEAN)
        if scope == row.name or row.status is not Status.RESTORED or f"{scope}/biases" in by_name:
            continue
        bias = _bias([by_name.get(f"{scope}/{kernel}") for kernel in _KERNELS], names)
        if bias is not None:
            changed[row.name] = row._replace(steps=(*row.steps, SubtractBias(bias)))
            used.append(bias)
    return tuple(changed.get(row.name, row) for row in rows), tuple(used)


def _bias(kernels: Sequence[Row | None], names: Collection[str]) -> str | None:
    """The source's bias beside a restored kernel."""
    for kernel in kernels:
        if kernel is None or kernel.status is not Status.RESTORED or kernel.source is None:
            continue
        stem = kernel.source.removesuffix(leaves.split(kernel.source)[1])
        return next((f"{stem}{leaf}" for leaf in _BIASES if f"{stem}{leaf}" in names), None)
    return None
