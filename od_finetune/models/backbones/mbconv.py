"""The inverted residual of EfficientNet: with squeeze-and-excitation and stochastic depth."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from od_finetune import randomness
from od_finetune.fields import ObjectTree
from od_finetune.models import tf2_objects
from od_finetune.models.layers import ConvHyperparams, ConvUnit, is_frozen

_SQUEEZE = 0.25  # of a block's input channels, in its squeeze-and-excitation


class Stage(NamedTuple):
    """Inverted residuals of one width; the first of them has the stride."""

    kernel_size: int
    stride: int
    expansion: int
    filters: int
    repeats: int


class SqueezeExcitation(tf.Module):
    """Scales channels by what two 1x1 convolutions make of their means (Hu et al. 2018, arXiv:1709.01507).

    Args:
      scope: the convolutions are `<scope>/se_reduce` and `<scope>/se_expand`.
      hyperparams: of both, with the activation of the first; they have no norm.
      channels: of the input.
      reduced: channels between the two.
    """

    def __init__(self, scope: str, hyperparams: ConvHyperparams, channels: int, reduced: int):
        super().__init__()
        plain = hyperparams._replace(norm=None)
        self._reduce = ConvUnit(f"{scope}/se_reduce", plain, reduced)
        self._expand = ConvUnit(f"{scope}/se_expand", plain._replace(activation="sigmoid"), channels)

    def tf2_objects(self) -> list[ObjectTree]:
        """Its layers in the object graph of the OD API's TF2 checkpoints: mean, reshape, convolutions, product."""
        layer = tf2_objects.layer
        return [{}, {}, layer(self._reduce.conv), {}, layer(self._expand.conv), {}, {}]

    def __call__(self, inputs: tf.Tensor) -> tf.Tensor:
        """`[B, H, W, channels]` -> the same shape."""
        means = tf.reduce_mean(inputs, axis=[1, 2], keepdims=True)
        return inputs * self._expand(self._reduce(means))


class MBConv(tf.Module):
    """Expand (1x1), depthwise, squeeze and excite, project (1x1, linear); the input is added where the shapes agree.

    Args:
      scope: canonical scope.
      hyperparams: of every layer.
      inputs: channels of the input.
      stage: what the block is made by; its filters are those of the output.
      stride: of the depthwise convolution.
      dropped: the share of images for which, in training, only the input is left (stochastic depth, Huang et al. 2016,
        arXiv:1603.09382). Not of a block that is frozen as a whole, which has nothing to learn from it.
    """

    def __init__(
        self, scope: str, hyperparams: ConvHyperparams, inputs: int, stage: Stage, stride: int, dropped: float
    ):
        super().__init__()
        wide = inputs * stage.expansion
        self._expand = ConvUnit(f"{scope}/expand", hyperparams, wide) if stage.expansion > 1 else None
        self._depthwise = ConvUnit(f"{scope}/depthwise", hyperparams, None, stage.kernel_size, stride)
        self._excite = SqueezeExcitation(scope, hyperparams, wide, max(1, int(inputs * _SQUEEZE)))
        self._project = ConvUnit(f"{scope}/project", hyperparams, stage.filters, activate=False)
        self.residual = stride == 1 and inputs == stage.filters
        self._dropped = dropped

    def tf2_objects(self) -> list[ObjectTree]:
        """Its layers in the object graph of the OD API's TF2 checkpoints, an identity, dropout and addition at last."""
        nodes = tf2_objects.unit(self._expand) if self._expand is not None else []
        nodes += tf2_objects.unit(self._depthwise) + self._excite.tf2_objects() + tf2_objects.unit(self._project)
        nodes.append({})
        if self.residual:
            nodes += [{}, {}] if self._dropped > 0 else [{}]
        return nodes

    def __call__(self, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        """`[B, H, W, inputs]` -> `[B, h, w, filters]`."""
        outputs = inputs if self._expand is None else self._expand(inputs, training)
        outputs = self._project(self._excite(self._depthwise(outputs, training)), training)
        if not self.residual:
            return outputs
        if training and self._dropped > 0 and not is_frozen(self):
            each = [tf.shape(outputs)[0], 1, 1, 1]
            outputs = tf.nn.experimental.stateless_dropout(
                outputs, self._dropped, randomness.next_seed(), noise_shape=each
            )
        return inputs + outputs
