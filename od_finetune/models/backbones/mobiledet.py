"""MobileDet (Xiong et al. 2020, arXiv:2004.14525): networks searched for detection on four kinds of mobile hardware."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras

from od_finetune.errors import UserError
from od_finetune.models.backbones.bottleneck import Bottleneck, SqueezeExcite
from od_finetune.models.layers import BatchNorm, ConvHyperparams, ConvUnit
from od_finetune.models.stages import Block


class HeNormalDepthwise(tf_keras.initializers.Initializer):
    """He's initialiser (2015, arXiv:1502.01852) for depthwise kernels `[k, k, C, 1]`: the fan-in is k * k alone."""

    def __call__(self, shape: Any, dtype: Any = None, **kwargs: Any) -> tf.Tensor:
        """A tensor of this shape and type."""
        # 0.8796 is the deviation of a unit normal cut at two deviations.
        stddev = (2.0 / (shape[0] * shape[1])) ** 0.5 / 0.87962566103423978
        return tf_keras.initializers.TruncatedNormal(stddev=stddev)(shape, dtype, **kwargs)


# The OD API builds the backbone with these whatever the config says; the activation is the architecture's.
DEFAULTS = ConvHyperparams(
    initializer=tf_keras.initializers.HeNormal,
    depthwise_initializer=HeNormalDepthwise,
    regularizer=tf_keras.regularizers.L2(0.5 * 4e-5),
    depthwise_regularizer=tf_keras.regularizers.L2(0.5 * 4e-5),
    activation="relu6",
    norm=BatchNorm(decay=0.99, epsilon=0.01, center=True, scale=True),
)

IBN, IBN_NO_EXPANSION, FUSED, TUCKER = "IBN", "IBNNoExpansion", "FusedConv", "TuckerConv"


class BlockSpec(NamedTuple):
    """One block of the search space.

    IBN is an inverted residual: 1x1 expansion, depthwise convolution, 1x1 projection. FUSED has one full convolution
    for the first two. TUCKER squeezes (1x1), convolves and widens (1x1).
    """

    kind: str
    filters: int
    expansion: int = 0  # of IBN and FUSED
    kernel_size: int = 3
    stride: int = 1
    residual: bool = True
    ratios: tuple[float, float] = (0.25, 0.25)  # of TUCKER: inner widths over those of the input and the output


class Architecture(NamedTuple):
    """A network: a 3x3 convolution at stride 2, then five groups of blocks, each at half the resolution or the same."""

    first: int  # filters
    groups: tuple[tuple[BlockSpec, ...], ...]
    activation: str = "relu6"
    squeeze_excite: bool = False  # in every inverted residual


def _start(kind: str, filters: int, expansion: int, kernel_size: int = 3, stride: int = 2) -> BlockSpec:
    """The first block of a group, which has no residual."""
    return BlockSpec(kind, filters, expansion, kernel_size, stride, residual=False)


_FIRST_TUCKER = BlockSpec(TUCKER, 16, residual=False)

CPU = Architecture(
    16,
    (
        (BlockSpec(IBN_NO_EXPANSION, 8, residual=False),),
        (_start(IBN, 16, 4),),
        (_start(IBN, 32, 8), *(BlockSpec(IBN, 32, 4),) * 3),
        (
            _start(IBN, 72, 8, 5),
            BlockSpec(IBN, 72, 8),
            BlockSpec(IBN, 72, 4, 5),
            BlockSpec(IBN, 72, 4),
            _start(IBN, 72, 8, stride=1),
            *(BlockSpec(IBN, 72, 8),) * 3,
        ),
        (
            _start(IBN, 104, 8, 5),
            *(BlockSpec(IBN, 104, 4, 5),) * 2,
            BlockSpec(IBN, 104, 4),
            _start(IBN, 144, 8, stride=1),
        ),
    ),
    "hard_swish",
    squeeze_excite=True,
)
DSP = Architecture(
    32,
    (
        (BlockSpec(IBN_NO_EXPANSION, 24, residual=False),),
        (
            _start(FUSED, 32, 4),
            BlockSpec(FUSED, 32, 4),
            BlockSpec(IBN, 32, 4),
            BlockSpec(TUCKER, 32, ratios=(0.25, 0.75)),
        ),
        (_start(FUSED, 64, 8), BlockSpec(IBN, 64, 4), *(BlockSpec(FUSED, 64, 4),) * 2),
        (
            _start(FUSED, 120, 8),
            BlockSpec(IBN, 120, 4),
            *(BlockSpec(IBN, 120, 8),) * 2,
            _start(FUSED, 144, 8, stride=1),
            *(BlockSpec(IBN, 144, 8),) * 3,
        ),
        (
            _start(IBN, 160, 4),
            BlockSpec(IBN, 160, 4),
            BlockSpec(FUSED, 160, 4),
            BlockSpec(TUCKER, 160, ratios=(0.75, 0.75)),
            _start(IBN, 240, 8, stride=1),
        ),
    ),
)
EDGETPU = Architecture(
    32,
    (
        (_FIRST_TUCKER._replace(ratios=(0.25, 0.75)),),
        (_start(FUSED, 16, 8), BlockSpec(FUSED, 16, 4), BlockSpec(FUSED, 16, 8), BlockSpec(FUSED, 16, 4)),
        (_start(FUSED, 40, 8, 5), *(BlockSpec(FUSED, 40, 4),) * 3),
        (
            _start(IBN, 72, 8),
            BlockSpec(IBN, 72, 8),
            *(BlockSpec(FUSED, 72, 4),) * 2,
            _start(IBN, 96, 8, 5, stride=1),
            BlockSpec(IBN, 96, 8, 5),
            *(BlockSpec(IBN, 96, 8),) * 2,
        ),
        (
            _start(IBN, 120, 8, 5),
            BlockSpec(IBN, 120, 8),
            BlockSpec(IBN, 120, 4, 5),
            BlockSpec(IBN, 120, 8),
            _start(IBN, 384, 8, 5, stride=1),
        ),
    ),
)
GPU = Architecture(
    32,
    (
        (_FIRST_TUCKER,),
        (_start(FUSED, 32, 8), *(BlockSpec(TUCKER, 32),) * 3),
        (_start(FUSED, 64, 8), *(BlockSpec(FUSED, 64, 8),) * 2, BlockSpec(FUSED, 64, 4)),
        (
            _start(FUSED, 128, 8),
            *(BlockSpec(FUSED, 128, 4),) * 3,
            _start(FUSED, 128, 8, stride=1),
            *(BlockSpec(FUSED, 128, 8),) * 3,
        ),
        (_start(FUSED, 128, 4), *(BlockSpec(FUSED, 128, 4),) * 3, _start(IBN, 384, 8, stride=1)),
    ),
)


def override(hyperparams: ConvHyperparams, keras: bool) -> ConvHyperparams:
    """What `override_base_feature_extractor_hyperparams` makes of the config's hyperparams: it has no effect."""
    del hyperparams, keras
    return DEFAULTS


def scaled(filters: float, multiplier: float) -> int:
    """The nearest multiple of 8, at least 8."""
    return max(8, 8 * int(filters * multiplier / 8 + 0.5))


def _block(
    scope: str, hyperparams: ConvHyperparams, spec: BlockSpec, inputs: int, filters: int, squeeze_excite: bool
) -> Bottleneck:
    window = (spec.kernel_size, spec.stride)
    wide = inputs * (spec.expansion or 1)
    units: list[ConvUnit | SqueezeExcite] = []

    def conv(width: int, window: tuple[int, int] = (1, 1), activate: bool = True) -> None:
        count = sum(isinstance(unit, ConvUnit) and "/Conv" in unit.conv.name for unit in units)
        name = f"{scope}/Conv" + (f"_{count}" if count else "")
        units.append(ConvUnit(name, hyperparams, width, *window, activate=activate))

    if spec.kind == TUCKER:
        conv(scaled(inputs, spec.ratios[0]))
        conv(scaled(filters, spec.ratios[1]), window)
    elif spec.kind == FUSED:
        conv(wide, window)
    else:
        if spec.kind == IBN:
            conv(wide)
        units.append(ConvUnit(f"{scope}/SeparableConv2d", hyperparams, None, *window))
        if squeeze_excite:
            squeezed, activation = scaled(wide, 0.25), hyperparams.activation
            units.append(SqueezeExcite(f"{scope}/SqueezeExcite", hyperparams, wide, squeezed, activation, "sigmoid"))
    conv(filters, activate=False)
    return Bottleneck(units, spec.residual)


class MobileDet(tf.Module):
    """Feature levels `C1` to `C5`, the ends of the groups at strides 2 to 32, up to the last one asked for.

    Args:
      scope: canonical scope, e.g. `FeatureExtractor/MobileDetCPU`.
      hyperparams: of every layer, but for the activation.
      levels: names of the feature levels that are wanted; layers above the last are not built.
      depth_multiplier: all filters become the nearest multiple of 8 to filters * depth_multiplier.
      min_depth: has no effect on this backbone, as in the OD API.
      explicit_padding: there is none.
      architecture: e.g. CPU.

    Raises:
      UserError: explicit padding is asked for.
    """

    def __init__(
        self,
        scope: str,
        hyperparams: ConvHyperparams,
        levels: tuple[str, ...],
        depth_multiplier: float = 1.0,
        min_depth: int = 8,
        explicit_padding: bool = False,
        architecture: Architecture = CPU,
    ):
        super().__init__()
        if explicit_padding:
            raise UserError(
                "model.ssd.feature_extractor.use_explicit_padding: found true, expected false: MobileDet has SAME "
                "padding only; remove it"
            )
        del min_depth
        self._levels = tuple(levels)
        hyperparams = hyperparams._replace(activation=architecture.activation)
        channels = scaled(architecture.first, depth_multiplier)
        self._first = ConvUnit(f"{scope}/Conv", hyperparams, channels, 3, 2)
        self._groups: list[list[Bottleneck]] = []
        self._named = [Block("Conv", 2, self._first)]
        counts: Counter[str] = Counter()
        for group in architecture.groups[: max(int(level.removeprefix("C")) for level in levels)]:
            self._groups.append([])
            for spec in group:
                name = spec.kind + (f"_{counts[spec.kind]}" if counts[spec.kind] else "")
                filters = scaled(spec.filters, depth_multiplier)
                use_squeeze_excite = architecture.squeeze_excite
                block = _block(f"{scope}/{name}", hyperparams, spec, channels, filters, use_squeeze_excite)
                self._groups[-1].append(block)
                self._named.append(Block(name, spec.stride, block))
                counts[spec.kind] += 1
                channels = filters

    def blocks(self) -> list[Block]:
        """`Conv`, then the blocks by the ends of their scopes: `IBN`, `IBN_1`, `FusedConv`, ..."""
        return list(self._named)

    def __call__(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Normalised `[B, H, W, 3]` -> the feature levels `[B, h, w, C]` by name."""
        outputs = self._first(images, training)
        features = {}
        for number, group in enumerate(self._groups, start=1):
            for block in group:
                outputs, _ = block(outputs, training)
            features[f"C{number}"] = outputs
        return {level: features[level] for level in self._levels}
