"""Inception-ResNet V2 (Szegedy et al. 2016, arXiv:1602.07261), its padding changed so that feature maps stay aligned
with the image, and cut in two for Faster R-CNN (Huang et al. 2016, arXiv:1611.10012)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras

from od_finetune.models.backbones.inception import Chain, Conv, Fork, Mixed, Parallel, Pool, Step, build_step
from od_finetune.models.layers import ACTIVATIONS, BatchNorm, ConvHyperparams, conv_layer
from od_finetune.models.stages import Block

# What both halves of the OD API build it with: no weight decay. Whether batch norm trains is for the config to say.
DEFAULTS = ConvHyperparams(
    initializer=tf_keras.initializers.GlorotUniform,
    norm=BatchNorm(decay=0.9997, epsilon=0.001, center=True, scale=False, train=False),
)

_STEM: tuple[Step, ...] = (
    Conv("Conv2d_1a_3x3", 32, 3, 2),
    Conv("Conv2d_2a_3x3", 32, 3),
    Conv("Conv2d_2b_3x3", 64, 3),
    Pool("MaxPool_3a_3x3", "MAX", 2),
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, 3),
    Pool("MaxPool_5a_3x3", "MAX", 2),
    Mixed(
        "Mixed_5b",
        (
            (Conv("Conv2d_1x1", 96),),
            (Conv("Conv2d_0a_1x1", 48), Conv("Conv2d_0b_5x5", 64, 5)),
            (Conv("Conv2d_0a_1x1", 64), Conv("Conv2d_0b_3x3", 96, 3), Conv("Conv2d_0c_3x3", 96, 3)),
            (Pool("AvgPool_0a_3x3", "AVG"), Conv("Conv2d_0b_1x1", 64)),
        ),
    ),
)
_BLOCK35 = (
    (Conv("Conv2d_1x1", 32),),
    (Conv("Conv2d_0a_1x1", 32), Conv("Conv2d_0b_3x3", 32, 3)),
    (Conv("Conv2d_0a_1x1", 32), Conv("Conv2d_0b_3x3", 48, 3), Conv("Conv2d_0c_3x3", 64, 3)),
)
_MIXED_7A = Mixed(
    "Mixed_7a",
    (
        (Conv("Conv2d_0a_1x1", 256), Conv("Conv2d_1a_3x3", 384, 3, 2, "valid")),
        (Conv("Conv2d_0a_1x1", 256), Conv("Conv2d_1a_3x3", 288, 3, 2, "valid")),
        (Conv("Conv2d_0a_1x1", 256), Conv("Conv2d_0b_3x3", 288, 3), Conv("Conv2d_1a_3x3", 320, 3, 2, "valid")),
        (Pool("MaxPool_1a_3x3", "MAX", 2, "valid"),),
    ),
    stride=2,
)
_BLOCK8 = (
    (Conv("Conv2d_1x1", 192),),
    (Conv("Conv2d_0a_1x1", 192), Conv("Conv2d_0b_1x3", 224, (1, 3)), Conv("Conv2d_0c_3x1", 256, (3, 1))),
)


def _mixed_6a(stride: int) -> Mixed:
    return Mixed(
        "Mixed_6a",
        (
            (Conv("Conv2d_1a_3x3", 384, 3, stride),),
            (Conv("Conv2d_0a_1x1", 256), Conv("Conv2d_0b_3x3", 256, 3), Conv("Conv2d_1a_3x3", 384, 3, stride)),
            (Pool("MaxPool_1a_3x3", "MAX", stride),),
        ),
        stride=stride,
    )


def _block17(rate: int) -> tuple[tuple[Conv, ...], ...]:
    row = Conv("Conv2d_0b_1x7", 160, (1, 7), rate=rate)
    column = Conv("Conv2d_0c_7x1", 192, (7, 1), rate=rate)
    return (Conv("Conv2d_1x1", 192),), (Conv("Conv2d_0a_1x1", 128), row, column)


class Residual(tf.Module):
    """Branches, joined and brought back to the input's channels by a 1x1 with neither norm nor activation; a part of
    that is added to the input.

    Args:
      scope: canonical scope.
      hyperparams: of every layer.
      branches: see `inception.Mixed`.
      channels: of the input.
      scale: which part.
      activate: False leaves the activation of the sum out.
    """

    def __init__(
        self,
        scope: str,
        hyperparams: ConvHyperparams,
        branches: tuple[tuple[Conv | Pool | Fork, ...], ...],
        channels: int,
        scale: float,
        activate: bool = True,
    ):
        super().__init__()
        self._branches = Parallel(
            [build_step(f"{scope}/Branch_{index}", hyperparams, conv, int) for conv in branch]
            for index, branch in enumerate(branches)
        )
        self._up = conv_layer(f"{scope}/Conv2d_1x1", hyperparams, channels, 1)
        self._scale = scale
        self._activation = ACTIVATIONS[hyperparams.activation] if activate else None

    def __call__(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        outputs = inputs + self._scale * self._up(self._branches(inputs, training))
        return outputs if self._activation is None else self._activation(outputs)


class Stage(tf.Module):
    """The part of the network that one stage of a Faster R-CNN runs: a chain, then residual blocks and more of that.

    Args:
      parts: chains, and residual blocks by their names.
    """

    def __init__(self, parts: list[Chain | dict[str, Residual]]):
        super().__init__()
        self._parts = parts

    def blocks(self) -> list[Block]:
        """Named as their scopes are, without the `Repeat` that some are in; a pooling is part of the block after."""
        blocks: list[Block] = []
        for part in self._parts:
            if isinstance(part, Chain):
                blocks += part.blocks()
            else:
                blocks += [Block(name, 1, residual) for name, residual in part.items()]
        return blocks

    def __call__(self, inputs: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """`[B, H, W, C]` -> the output of the last block by its name, `[B, h, w, c]`."""
        for part in self._parts:
            if isinstance(part, Chain):
                *_, inputs = part(inputs, training).values()
            else:
                for residual in part.values():
                    inputs = residual(inputs, training)
        return {self.blocks()[-1].name: inputs}


def first_stage(scope: str, hyperparams: ConvHyperparams, stride: int = 16) -> Stage:
    """From the normalised image `[B, H, W, 3]` to the proposals' features `[B, h, w, 1088]`.

    Args:
      scope: canonical scope, e.g. `FirstStageFeatureExtractor/InceptionResnetV2`.
      hyperparams: of every layer.
      stride: of the features: 16, or 8, where the last halving is left out and what follows is dilated by 2.
    """
    dilation = 16 // stride

    def repeat(where: str, name: str, count: int, *arguments: Any) -> dict[str, Residual]:
        names = [f"{name}_{number}" for number in range(1, count + 1)]
        return {each: Residual(f"{scope}/{where}/{each}", hyperparams, *arguments) for each in names}

    return Stage(
        [
            Chain(scope, hyperparams, _STEM, int),
            repeat("Repeat", "block35", 10, _BLOCK35, 320, 0.17),
            Chain(scope, hyperparams, [_mixed_6a(2 // dilation)], int),
            repeat("Repeat_1", "block17", 20, _block17(dilation), 1088, 0.1),
        ]
    )


def second_stage(scope: str, hyperparams: ConvHyperparams) -> Stage:
    """From the proposals' crops `[B, h, w, 1088]` to their features `[B, (h - 1) // 2, (w - 1) // 2, 1536]`."""
    names = {f"block8_{number}": f"Repeat/block8_{number}" for number in range(1, 10)}
    residuals = {
        name: Residual(f"{scope}/{where}", hyperparams, _BLOCK8, 2080, 0.2) for name, where in names.items()
    }
    residuals["block8_10"] = Residual(f"{scope}/Block8", hyperparams, _BLOCK8, 2080, 1.0, activate=False)
    last = Chain(scope, hyperparams, [Conv("Conv2d_7b_1x1", 1536)], int)
    return Stage([Chain(scope, hyperparams, [_MIXED_7A], int), residuals, last])
