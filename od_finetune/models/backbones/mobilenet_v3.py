"""MobileNet V3 (Howard et al. 2019, arXiv:1905.02244) and MobileNet EdgeTPU (arXiv:2003.02838), for detection.

In the networks that detect, the last stage of V3 is half as wide as in those that classify.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from od_finetune.models.backbones import mobilenet_v2
from od_finetune.models.backbones.bottleneck import Bottleneck, SqueezeExcite
from od_finetune.models.backbones.mobilenet_v2 import divisible
from od_finetune.models.layers import ConvHyperparams, ConvUnit
from od_finetune.models.stages import Block

# Both are as for V2; the activations here are the architecture's.
DEFAULTS = mobilenet_v2.DEFAULTS
override = mobilenet_v2.override

# Canonical name -> that of tf_keras.applications.MobileNetV3Large and Small. (The OD API's TF2 half has no V3.)
KERAS_RULES = [(r"^FeatureExtractor/MobilenetV3/", "")]


class BlockSpec(NamedTuple):
    """One inverted residual."""

    expansion: float  # the inner width is this times the input's, rounded to a multiple of 8
    filters: int
    kernel_size: int = 3
    stride: int = 1
    activation: str = "relu"
    squeeze_excite: bool = False
    fused: bool = False  # the expansion has the kernel size and the stride; there is no depthwise convolution
    residual: bool = True  # where the shapes agree


class Architecture(NamedTuple):
    """A network: 3x3 convolution at stride 2, inverted residuals, 1x1 convolution."""

    first: int  # filters
    blocks: tuple[BlockSpec, ...]
    last: int  # filters
    activation: str  # of the first and the last convolution

    @property
    def last_layer(self) -> int:
        """Number of the last convolution; the first is 1."""
        return len(self.blocks) + 2

    def narrowed(self, start: int) -> Architecture:
        """With half the filters from the block `start` on, 0-based, to the end."""
        narrow = (block._replace(filters=block.filters // 2) for block in self.blocks[start:])
        return self._replace(blocks=(*self.blocks[:start], *narrow), last=self.last // 2)

    def minimalistic(self) -> Architecture:
        """Without squeeze-and-excitation, hard swish and 5x5 kernels."""
        plain = (block._replace(kernel_size=3, activation="relu", squeeze_excite=False) for block in self.blocks)
        return self._replace(blocks=tuple(plain), activation="relu")


_SWISH = "hard_swish"
LARGE = Architecture(
    16,
    (
        BlockSpec(1, 16),
        BlockSpec(4, 24, stride=2),
        BlockSpec(3, 24),
        BlockSpec(3, 40, 5, 2, squeeze_excite=True),
        BlockSpec(3, 40, 5, squeeze_excite=True),
        BlockSpec(3, 40, 5, squeeze_excite=True),
        BlockSpec(6, 80, 3, 2, _SWISH),
        BlockSpec(2.5, 80, 3, 1, _SWISH),
        BlockSpec(184 / 80, 80, 3, 1, _SWISH),
        BlockSpec(184 / 80, 80, 3, 1, _SWISH),
        BlockSpec(6, 112, 3, 1, _SWISH, squeeze_excite=True),
        BlockSpec(6, 112, 3, 1, _SWISH, squeeze_excite=True),
        BlockSpec(6, 160, 5, 2, _SWISH, squeeze_excite=True),
        BlockSpec(6, 160, 5, 1, _SWISH, squeeze_excite=True),
        BlockSpec(6, 160, 5, 1, _SWISH, squeeze_excite=True),
    ),
    960,
    _SWISH,
).narrowed(12)
SMALL = Architecture(
    16,
    (
        BlockSpec(1, 16, 3, 2, squeeze_excite=True),
        BlockSpec(72 / 16, 24, 3, 2),
        BlockSpec(88 / 24, 24),
        BlockSpec(4, 40, 5, 2, _SWISH, squeeze_excite=True),
        BlockSpec(6, 40, 5, 1, _SWISH, squeeze_excite=True),
        BlockSpec(6, 40, 5, 1, _SWISH, squeeze_excite=True),
        BlockSpec(3, 48, 5, 1, _SWISH, squeeze_excite=True),
        BlockSpec(3, 48, 5, 1, _SWISH, squeeze_excite=True),
        BlockSpec(6, 96, 5, 2, _SWISH, squeeze_excite=True),
        BlockSpec(6, 96, 5, 1, _SWISH, squeeze_excite=True),
        BlockSpec(6, 96, 5, 1, _SWISH, squeeze_excite=True),
    ),
    576,
    _SWISH,
).narrowed(8)
LARGE_MINIMALISTIC, SMALL_MINIMALISTIC = LARGE.minimalistic(), SMALL.minimalistic()
EDGETPU = Architecture(
    32,
    (
        BlockSpec(1, 16, fused=True),
        BlockSpec(8, 32, stride=2, fused=True),
        *(BlockSpec(4, 32, fused=True),) * 3,
        BlockSpec(8, 48, stride=2, fused=True),
        *(BlockSpec(4, 48, fused=True),) * 3,
        BlockSpec(8, 96, stride=2),
        *(BlockSpec(4, 96),) * 3,
        BlockSpec(8, 96, residual=False),
        *(BlockSpec(4, 96),) * 3,
        BlockSpec(8, 160, 5, 2),
        *(BlockSpec(4, 160, 5),) * 3,
        BlockSpec(8, 192),
    ),
    1280,
    "relu",
)


def _block(
    scope: str, hyperparams: ConvHyperparams, spec: BlockSpec, inputs: int, filters: int, explicit_padding: bool
) -> tuple[Bottleneck, bool]:
    """The inverted residual, and whether its first unit is an expansion: only where that would widen the input."""
    hyperparams = hyperparams._replace(activation=spec.activation)
    window = (spec.kernel_size, spec.stride, explicit_padding)
    wide = max(divisible(inputs * spec.expansion), inputs)
    units: list[ConvUnit | SqueezeExcite] = []
    if wide > inputs:
        units.append(ConvUnit(f"{scope}/expand", hyperparams, wide, *(window if spec.fused else ())))
    if not spec.fused:
        units.append(ConvUnit(f"{scope}/depthwise", hyperparams, None, *window))
    if spec.squeeze_excite:
        units.append(SqueezeExcite(f"{scope}/squeeze_excite", hyperparams, wide, divisible(wide / 4)))
    units.append(ConvUnit(f"{scope}/project", hyperparams, filters, activate=False))
    return Bottleneck(units, spec.residual and spec.stride == 1 and inputs == filters), wide > inputs


class MobilenetV3(tf.Module):
    """Feature levels `layer_<n>` (1: first convolution, then the inverted residuals, then the last convolution) and,
    of blocks that expand, `layer_<n>/expansion_output`, up to the last one asked for.

    Args:
      scope: canonical scope, e.g. `FeatureExtractor/MobilenetV3`.
      hyperparams: of every layer, but for the activation.
      levels: names of the feature levels that are wanted; layers above the last are not built.
      depth_multiplier, min_depth: all filters become `divisible(filters * depth_multiplier, 8, min_depth)`.
      explicit_padding: see `layers.fixed_padding`. (The OD API's TF1 network pads a block's input instead, and once
        more within, so that maps grow; no published model has it.)
      architecture: e.g. LARGE.
    """

    def __init__(
        self,
        scope: str,
        hyperparams: ConvHyperparams,
        levels: tuple[str, ...],
        depth_multiplier: float = 1.0,
        min_depth: int = 8,
        explicit_padding: bool = False,
        architecture: Architecture = LARGE,
    ):
        super().__init__()
        self._levels = tuple(levels)
        last = max(int(level.split("/")[0].removeprefix("layer_")) for level in levels)

        def depth(filters: int) -> int:
            return divisible(filters * depth_multiplier, minimum=min_depth)

        outer = hyperparams._replace(activation=architecture.activation)
        channels = depth(architecture.first)
        self._first = ConvUnit(f"{scope}/Conv", outer, channels, 3, 2, explicit_padding)
        self._blocks: list[Bottleneck] = []
        self._expands: list[bool] = []
        specs = architecture.blocks[: max(0, last - 1)]
        for index, spec in enumerate(specs):
            name, filters = f"{scope}/expanded_conv" + (f"_{index}" if index else ""), depth(spec.filters)
            block, expands = _block(name, hyperparams, spec, channels, filters, explicit_padding)
            self._blocks.append(block)
            self._expands.append(expands)
            channels = filters
        at_end = last == architecture.last_layer
        self._last = ConvUnit(f"{scope}/Conv_1", outer, depth(architecture.last)) if at_end else None
        self._strides = [2, *(spec.stride for spec in specs), 1]

    def blocks(self) -> list[Block]:
        """`layer_<n>`, numbered as the feature levels are."""
        modules = [self._first, *self._blocks, *([self._last] if self._last is not None else [])]
        return [
            Block(f"layer_{number}", stride, module)
            for number, (module, stride) in enumerate(zip(modules, self._strides, strict=False), start=1)
        ]

    def __call__(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Normalised `[B, H, W, 3]` -> the feature levels `[B, h, w, C]` by name."""
        outputs = self._first(images, training)
        features = {"layer_1": outputs}
        for number, (block, expands) in enumerate(zip(self._blocks, self._expands, strict=True), start=2):
            outputs, first = block(outputs, training)
            features[f"layer_{number}"] = outputs
            if expands:
                features[f"layer_{number}/expansion_output"] = first
        if self._last is not None:
            features[f"layer_{len(self._blocks) + 2}"] = self._last(outputs, training)
        return {level: features[level] for level in self._levels}
