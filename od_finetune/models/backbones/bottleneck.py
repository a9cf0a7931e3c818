"""Building blocks of the mobile networks after MobileNet V2: chains of convolutions, squeeze-and-excitation."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from od_finetune.models.layers import ConvHyperparams, ConvUnit


class SqueezeExcite(tf.Module):
    """Weighs channels by what the whole image has in them (Hu et al. 2018, arXiv:1709.01507).

    Args:
      scope: canonical scope; its two convolutions (with biases, without norm) are `Conv` and `Conv_1` in it.
      hyperparams: initialiser and regulariser of the two.
      channels: of the input.
      squeezed: channels between the two.
      activation: after the first.
      gate: after the second.
    """

    def __init__(
        self,
        scope: str,
        hyperparams: ConvHyperparams,
        channels: int,
        squeezed: int,
        activation: str = "relu",
        gate: str = "hard_sigmoid",
    ):
        super().__init__()
        plain = hyperparams._replace(norm=None)
        self._squeeze = ConvUnit(f"{scope}/Conv", plain._replace(activation=activation), squeezed)
        self._excite = ConvUnit(f"{scope}/Conv_1", plain._replace(activation=gate), channels)

    def __call__(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """`[B, H, W, C]` -> the same shape."""
        pooled = tf.reduce_mean(inputs, axis=[1, 2], keepdims=True)
        return inputs * self._excite(self._squeeze(pooled, training), training)


class Bottleneck(tf.Module):
    """Units one after the other; with `residual`, the input is added to what comes out."""

    def __init__(self, units: Sequence[ConvUnit | SqueezeExcite], residual: bool):
        super().__init__()
        self._units = list(units)
        self._residual = residual

    def __call__(self, inputs: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """`[B, H, W, C]` -> the output and what the first unit made of the input (mostly, the expansion)."""
        first = outputs = self._units[0](inputs, training)
        for unit in self._units[1:]:
            outputs = unit(outputs, training)
        return (inputs + outputs if self._residual else outputs), first
