"""From the layout that a framework keeps a kernel in to the model's.

| | TensorFlow, Keras | PyTorch, MXNet |
|---|---|---|
| convolution | [height, width, in, out] | [out, in, height, width] |
| depthwise convolution | [height, width, in, multiplier] | [in * multiplier, 1, height, width] |
| dense | [in, out] | [out, in] |

A 1x1 convolution and a dense layer are the same thing, so that either restores from the other.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from od_finetune.checkpoints.arrays import OIHW
from od_finetune.checkpoints.records import Inputs, Step

_KERNELS = ("weights", "pointwise_weights")
_DEPTHWISE = "depthwise_weights"

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Relayout:
    """Splits axes, reorders them, joins them; numbers stay as they are. A `records.Step`."""

    text: str
    split: Shape
    axes: tuple[int, ...]
    shape: Shape

    def __call__(self, value: np.ndarray, inputs: Inputs) -> np.ndarray:
        """The value in its new layout."""
        return value.reshape(self.split).transpose(self.axes).reshape(self.shape)

    def __str__(self) -> str:
        return self.text


def convert(name: str, shape: Shape, layout: str, wanted: Shape) -> tuple[Shape, tuple[Step, ...]]:
    """What becomes of a source's entry on its way to a model variable.

    Args:
      name: the variable's canonical name: its leaf says what kind of kernel it is, if it is one.
      shape: the entry's, in the source's layout.
      layout: the source's, `arrays.HWIO` or `arrays.OIHW`.
      wanted: the variable's shape; it decides only where the entry's own shape leaves a choice.

    Returns:
      The entry's shape in the model's layout, which need not be the wanted one, and the steps that bring it there.
    """
    leaf = name.rpartition("/")[2]
    if layout == OIHW:
        step = _depthwise(shape, wanted) if leaf == _DEPTHWISE else _kernel(shape, wanted) if leaf in _KERNELS else None
    else:
        step = _tensorflow(leaf, shape, wanted)
    return (step.shape, (step,)) if step else (shape, ())


def _kernel(shape: Shape, wanted: Shape) -> Relayout | None:
    if len(shape) == 4:
        out, inner, height, width = shape
        if len(wanted) == 2 and height == width == 1:
            return Relayout("OIHW -> dense", shape, (2, 3, 1, 0), (inner, out))
        return Relayout("OIHW -> HWIO", shape, (2, 3, 1, 0), (height, width, inner, out))
    if len(shape) == 2:
        out, inner = shape
        if len(wanted) == 4:
            return Relayout("dense OI -> HWIO", shape, (1, 0), (1, 1, inner, out))
        return Relayout("OI -> IO", shape, (1, 0), (inner, out))
    return None


def _depthwise(shape: Shape, wanted: Shape) -> Relayout | None:
    if len(shape) != 4 or shape[1] != 1:
        return None
    channels, _, height, width = shape
    multiplier = wanted[-1] if wanted and wanted[-1] and channels % wanted[-1] == 0 else 1
    inner = channels // multiplier
    split = (inner, multiplier, height, width)
    return Relayout("depthwise OIHW -> HWIO", split, (2, 3, 0, 1), (height, width, inner, multiplier))


def _tensorflow(leaf: str, shape: Shape, wanted: Shape) -> Relayout | None:
    """Between a dense kernel and a 1x1 convolution; everything else is as the model has it."""
    ranks = {len(shape), len(wanted)}
    if leaf not in _KERNELS or ranks != {2, 4} or math.prod(shape) != math.prod(wanted):
        return None
    four = shape if len(shape) == 4 else wanted
    if four[:2] != (1, 1) or shape[-2:] != wanted[-2:]:
        return None
    return Relayout(f"{list(shape)} -> {list(wanted)}", shape, tuple(range(len(shape))), wanted)
