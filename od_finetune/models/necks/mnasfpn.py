"""MnasFPN (Chen et al. 2020, arXiv:1912.01106): a feature pyramid of searched cells for mobile devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf
import tf_keras

from od_finetune.models.layers import BatchNorm, ConvHyperparams, ConvUnit, fixed_padding, spatial_shape

# Level n has stride 2^n.
FINEST_LEVEL, COARSEST_LEVEL = 3, 6
DEPTH = 48
_CELLS = 4


class _BlockSpec(NamedTuple):
    """One block of a cell: two maps, brought to one width and resolution and added, then a separable convolution."""

    inputs: tuple[int, int]  # the cell's maps from 0 (finest) to 3, then the blocks before this one
    level: int
    kernel_size: int
    width: int


# The last four blocks make the cell's maps.
_CELL = (
    _BlockSpec((1, 2), 4, 3, 256),
    _BlockSpec((0, 4), 3, 3, 128),
    _BlockSpec((5, 4), 4, 3, 128),
    _BlockSpec((4, 3), 5, 5, 128),
    _BlockSpec((4, 3), 6, 3, 96),
)

# The OD API builds a MobileNet V2 below MnasFPN with these, and the cells with another weight decay, whatever the
# config says. The depthwise initialiser is He's for a 3x3 kernel.
DEFAULTS = ConvHyperparams(
    initializer=tf_keras.initializers.HeNormal,
    depthwise_initializer=lambda: tf_keras.initializers.TruncatedNormal(stddev=0.536),
    regularizer=tf_keras.regularizers.L2(0.5 * 4e-5),
    depthwise_regularizer=tf_keras.regularizers.L2(0.5 * 4e-5),
    activation="relu6",
    norm=BatchNorm(decay=0.99, epsilon=0.01, center=True, scale=True),
)
_DECAY = tf_keras.regularizers.L2(0.5 * 1e-4)


class _Input(tf.Module):
    """A map brought to another resolution and width: pooled before its 1x1 convolution, or enlarged after it."""

    def __init__(self, scope: str, hyperparams: ConvHyperparams, width: int, halvings: int, explicit_padding: bool):
        super().__init__()
        self._halvings = halvings  # negative: doublings
        self._explicit_padding = explicit_padding
        self._conv = ConvUnit(f"{scope}/Conv1x1", hyperparams, width, activate=False)

    def __call__(self, features: tf.Tensor, training: bool) -> tf.Tensor:
        if self._halvings > 0:
            features = _pooled(features, 2**self._halvings, self._explicit_padding)
        outputs = self._conv(features, training)
        if self._halvings >= 0:
            return outputs
        height, width = spatial_shape(outputs)
        scale = 2**-self._halvings
        return tf.image.resize(outputs, [scale * height, scale * width], method="nearest")


class _Block(tf.Module):
    """See `_BlockSpec`."""

    def __init__(
        self,
        scope: str,
        hyperparams: ConvHyperparams,
        spec: _BlockSpec,
        levels: list[int],
        widths: tuple[int, int],
        explicit_padding: bool,
    ):
        super().__init__()
        inner, depth = widths
        self._sources = spec.inputs
        self._inputs = [
            _Input(f"{scope}/input_{i}", hyperparams, inner, spec.level - levels[source], explicit_padding)
            for i, source in enumerate(spec.inputs)
        ]
        # Its 1x1 half is initialised as the depthwise one.
        separable = hyperparams._replace(initializer=hyperparams.depthwise_initializer or hyperparams.initializer)
        self._conv = ConvUnit(
            f"{scope}/SepConv",
            separable,
            depth,
            spec.kernel_size,
            1,
            explicit_padding,
            activate=False,
            separable=True,
        )

    def __call__(self, maps: list[tf.Tensor], like: tf.Tensor, training: bool) -> tf.Tensor:
        """`like`: a map of the output's resolution; what an odd size makes too large is cut off."""
        height, width = spatial_shape(like)
        first, second = (
            unit(maps[source], training)[:, :height, :width]
            for unit, source in zip(self._inputs, self._sources, strict=True)
        )
        return self._conv(tf.nn.relu6(first + second), training)


class MnasFpn(tf.Module):
    """A coarsest map pooled from the backbone's last level, then four equal cells; where the shapes agree, a cell's
    maps are added to what it makes of them.

    Args:
      scope: canonical scope, e.g. `FeatureExtractor/MnasFPN`.
      hyperparams: of every layer, but for the weight decay, which is 1e-4.
      levels: names of the backbone's levels, strides 8, 16 and 32.
      depth: channels of every map, before `scaled`.
      scaled: applies the depth multiplier to a width.
      explicit_padding: see `layers.fixed_padding`.
    """

    def __init__(
        self,
        scope: str,
        hyperparams: ConvHyperparams,
        levels: tuple[str, ...],
        depth: int,
        scaled: Callable[[int], int],
        explicit_padding: bool = False,
    ):
        super().__init__()
        self._levels = tuple(levels)
        self._explicit_padding = explicit_padding
        depth = scaled(depth)
        self._coarsest = ConvUnit(
            f"{scope}/C6_Conv1x1", hyperparams._replace(regularizer=None), depth, activate=False
        )
        hyperparams = hyperparams._replace(regularizer=_DECAY, depthwise_regularizer=_DECAY)
        input_levels = list(range(FINEST_LEVEL, COARSEST_LEVEL + 1))
        known = input_levels + [spec.level for spec in _CELL]
        self._cells = [
            [
                _Block(
                    f"{scope}/cell_{cell}/block_{index}",
                    hyperparams,
                    spec,
                    known,
                    (scaled(spec.width), depth),
                    explicit_padding,
                )
                for index, spec in enumerate(_CELL)
            ]
            for cell in range(_CELLS)
        ]

    def __call__(self, features: dict[str, tf.Tensor], training: bool = False) -> list[tf.Tensor]:
        """Backbone levels by name -> maps `[B, h, w, depth]`, finest first."""
        maps = [features[level] for level in self._levels]
        maps.append(self._coarsest(_pooled(maps[-1], 2, self._explicit_padding), training))
        for cell in self._cells:
            known = list(maps)
            for spec, block in zip(_CELL, cell, strict=True):
                known.append(block(known, maps[spec.level - FINEST_LEVEL], training))
            made = known[-len(maps) :]
            maps = [new + old if new.shape[-1] == old.shape[-1] else new for new, old in zip(made, maps, strict=True)]
        return maps


def _pooled(features: tf.Tensor, stride: int, explicit_padding: bool) -> tf.Tensor:
    """The maximum over 3x3."""
    if explicit_padding:
        return tf.nn.max_pool2d(fixed_padding(features, 3), 3, stride, "VALID")
    return tf.nn.max_pool2d(features, 3, stride, "SAME")
