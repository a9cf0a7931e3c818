"""NASNet-A Large (Zoph et al. 2017, arXiv:1707.07012) in the two parts that a Faster R-CNN runs.

Drop path is left out: its rate, which TF-Slim lets grow from 0 over 250 000 steps, needs to know the step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf
import tf_keras

from od_finetune.models.layers import SLIM_VARIANCE, BatchNorm, ConvHyperparams, conv_layer, norm_layer
from od_finetune.models.stages import Block

FEATURES = "cell_11"  # the first part's level
_FILTERS, _STEM_FILTERS = 168, 96
_STAGE = 6  # cells between two reductions

# TF-Slim's scope for it; whether batch norm trains is for the config to say.
DEFAULTS = ConvHyperparams(
    initializer=lambda: tf_keras.initializers.VarianceScaling(2.0 * SLIM_VARIANCE, "fan_out", "truncated_normal"),
    regularizer=tf_keras.regularizers.L2(0.5 * 5e-5),
    depthwise_regularizer=tf_keras.regularizers.L2(0.5 * 5e-5),
    activation="none",
    norm=BatchNorm(decay=0.9997, epsilon=0.001, center=True, scale=True),
)


class Side(NamedTuple):
    """What one side of a combination does with which state: 0 the input, 1 what came before it, then the sums."""

    operation: str  # `separable`, twice of this window; `MAX` or `AVG` pooling of 3x3; `none`
    state: int
    size: int = 3


class CellKind(NamedTuple):
    """Five sums of two sides each; states `kept` on are the output, side by side."""

    combinations: tuple[tuple[Side, Side], ...]
    kept: int
    stride: int  # of what looks at states 0 and 1


_NORMAL = CellKind(
    (
        (Side("separable", 0, 5), Side("separable", 1)),
        (Side("separable", 1, 5), Side("separable", 1)),
        (Side("AVG", 0), Side("none", 1)),
        (Side("AVG", 1), Side("AVG", 1)),
        (Side("separable", 0), Side("none", 0)),
    ),
    kept=1,
    stride=1,
)
_REDUCTION = CellKind(
    (
        (Side("separable", 0, 5), Side("separable", 1, 7)),
        (Side("MAX", 0), Side("separable", 1, 7)),
        (Side("AVG", 0), Side("separable", 1, 5)),
        (Side("none", 3), Side("AVG", 2)),
        (Side("separable", 2), Side("MAX", 0)),
    ),
    kept=3,
    stride=2,
)


class _Unit(tf.Module):
    """ReLU, convolution without bias, norm. `separable`: depthwise and 1x1."""

    def __init__(
        self,
        conv: str,
        norm: str,
        hyperparams: ConvHyperparams,
        filters: int,
        size: int = 1,
        stride: int = 1,
        separable: bool = False,
    ):
        super().__init__()
        self._conv = conv_layer(conv, hyperparams, filters, size, stride, use_bias=False, separable=separable)
        self._norm = norm_layer("", hyperparams.norm, name=norm)

    def __call__(self, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        return self._norm(self._conv(tf.nn.relu(inputs)), training=training)


class _Halved(tf.Module):
    """ReLU, then every other cell and its diagonal neighbour, each convolved to half the filters; norm."""

    def __init__(self, scope: str, hyperparams: ConvHyperparams, filters: int):
        super().__init__()
        self._convs = [
            conv_layer(f"{scope}/path{number}_conv", hyperparams, filters // 2, 1, use_bias=False) for number in (1, 2)
        ]
        self._norm = norm_layer("", hyperparams.norm, name=f"{scope}/final_path_bn")

    def __call__(self, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        inputs = tf.nn.relu(inputs)
        neighbours = tf.pad(inputs, [[0, 0], [0, 1], [0, 1], [0, 0]])[:, 1:, 1:]
        halves = [conv(each[:, ::2, ::2]) for conv, each in zip(self._convs, (inputs, neighbours), strict=True)]
        return self._norm(tf.concat(halves, axis=-1), training=training)


class _Pool(tf.Module):
    def __init__(self, kind: str, stride: int):
        super().__init__()
        self._kind, self._stride = kind, stride

    def __call__(self, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        del training
        return tf.nn.pool(inputs, [3, 3], self._kind, [self._stride] * 2, "SAME")


class Cell(tf.Module):
    """A cell on the output of the one before and of the one before that.

    Args:
      scope: canonical scope.
      hyperparams: of every layer.
      kind: what it computes.
      filters: of each of its states.
      previous: how the earlier of its inputs is brought to `filters`: `narrow`, `halve` (it is twice as large), or
        `same` where there is none, which stands for the input as it is.
    """

    def __init__(
        self, scope: str, hyperparams: ConvHyperparams, kind: CellKind, filters: int, previous: str = "narrow"
    ):
        super().__init__()
        self._kind, self.stride = kind, kind.stride
        self._previous: Callable[[tf.Tensor, bool], tf.Tensor] | None = None
        if previous == "halve":
            self._previous = _Halved(scope, hyperparams, filters)
        elif previous == "narrow":
            self._previous = _Unit(f"{scope}/prev_1x1", f"{scope}/prev_bn", hyperparams, filters)
        self._input = _Unit(f"{scope}/1x1", f"{scope}/beginning_bn", hyperparams, filters)
        self._sides = [
            [
                _units(f"{scope}/comb_iter_{index}/{where}", hyperparams, side, filters, kind.stride)
                for where, side in zip(("left", "right"), sides, strict=True)
            ]
            for index, sides in enumerate(kind.combinations)
        ]

    def __call__(self, inputs: tf.Tensor, previous: tf.Tensor, training: bool) -> tf.Tensor:
        """`[B, H, W, C]` and the earlier `[B, h, w, c]` -> `[B, H / stride, W / stride, filters * kept states]`."""
        if self._previous is not None:
            previous = self._previous(previous, training)
        states = [self._input(inputs, training), previous]
        for sides, modules in zip(self._kind.combinations, self._sides, strict=True):
            total = 0.0
            for side, units in zip(sides, modules, strict=True):
                value = states[side.state]
                for unit in units:
                    value = unit(value, training)
                total += value
            states.append(total)
        return tf.concat(states[self._kind.kept :], axis=-1)


def _units(scope: str, hyperparams: ConvHyperparams, side: Side, filters: int, stride: int) -> list[tf.Module]:
    """What a side does, one after the other. Sums have the cell's resolution already."""
    stride = stride if side.state < 2 else 1
    if side.operation == "none":
        return []
    if side.operation != "separable":
        return [_Pool(side.operation, stride)]
    names = [f"{side.size}x{side.size}_{number}" for number in (1, 2)]
    return [
        _Unit(f"{scope}/separable_{name}", f"{scope}/bn_sep_{name}", hyperparams, filters, side.size, each, True)
        for name, each in zip(names, (stride, 1), strict=True)
    ]


class FirstStage(tf.Module):
    """From the image to `cell_11`: the outputs of the cells 10 and 11 side by side, at a sixteenth of its size.

    Args:
      scope: canonical scope.
      hyperparams: of every layer.
      levels: `(FEATURES,)`.
      output_stride: 16.
    """

    def __init__(
        self, scope: str, hyperparams: ConvHyperparams, levels: tuple[str, ...] = (FEATURES,), output_stride: int = 16
    ):
        super().__init__()
        assert levels == (FEATURES,) and output_stride == 16, (levels, output_stride)
        self._conv = conv_layer(
            f"{scope}/conv0", hyperparams, _STEM_FILTERS, 3, 2, padding="valid", use_bias=False
        )
        self._norm = norm_layer("", hyperparams.norm, name=f"{scope}/conv0_bn")

        def cell(name: str, kind: CellKind, filters: int, previous: str = "narrow") -> Cell:
            return Cell(f"{scope}/{name}", hyperparams, kind, filters, previous)

        self._cells = {
            "cell_stem_0": cell("cell_stem_0", _REDUCTION, _FILTERS // 4, "same"),
            "cell_stem_1": cell("cell_stem_1", _REDUCTION, _FILTERS // 2, "halve"),
            **_cells(cell, 0, _FILTERS),
            "reduction_cell_0": cell("reduction_cell_0", _REDUCTION, 2 * _FILTERS),
            **_cells(cell, _STAGE, 2 * _FILTERS),
        }

    def blocks(self) -> list[Block]:
        """`conv0` and the cells by their scopes."""
        first = Block("conv0", 2, [self._conv, self._norm])
        return [first, *(Block(name, cell.stride, cell) for name, cell in self._cells.items())]

    def __call__(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Normalised `[B, H, W, 3]` -> the level by its name, `[B, h, w, 4032]`."""
        stem = self._norm(self._conv(images), training=training)
        outputs = _through(self._cells, [stem, stem], training)
        return {FEATURES: tf.concat(outputs[-2:], axis=-1)}


class SecondStage(tf.Module):
    """From crops of `cell_11` to the ReLU of the last cell.

    Args:
      scope: canonical scope.
      hyperparams: of every layer.
    """

    def __init__(self, scope: str, hyperparams: ConvHyperparams):
        super().__init__()

        def cell(name: str, kind: CellKind, filters: int, previous: str = "narrow") -> Cell:
            return Cell(f"{scope}/{name}", hyperparams, kind, filters, previous)

        self._cells = {
            "reduction_cell_1": cell("reduction_cell_1", _REDUCTION, 4 * _FILTERS),
            **_cells(cell, 2 * _STAGE, 4 * _FILTERS),
        }

    def blocks(self) -> list[Block]:
        """The cells by their scopes."""
        return [Block(name, cell.stride, cell) for name, cell in self._cells.items()]

    def __call__(self, crops: tf.Tensor, training: bool = False) -> tf.Tensor:
        """`[N, h, w, 4032]` -> `[N, h', w', 4032]`, half as large."""
        return tf.nn.relu(_through(self._cells, tf.split(crops, 2, axis=-1), training)[-1])


def _cells(cell: Callable[..., Cell], start: int, filters: int) -> dict[str, Cell]:
    """Normal cells after a reduction; the first of them still sees what came before that."""
    names = [f"cell_{number}" for number in range(start, start + _STAGE)]
    return {name: cell(name, _NORMAL, filters, "narrow" if index else "halve") for index, name in enumerate(names)}


def _through(cells: dict[str, Cell], outputs: list[tf.Tensor], training: bool) -> list[tf.Tensor]:
    """All outputs, the two before the first cell included. The cell after a reduction that is not the stem's takes
    what that reduction took, not its input."""
    outputs = list(outputs)
    earlier = None
    for name, cell in cells.items():
        previous = outputs[-2] if earlier is None else earlier
        earlier = outputs[-2] if name.startswith("reduction") else None
        outputs.append(cell(outputs[-1], previous, training))
    return outputs
