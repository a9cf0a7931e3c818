"""MobileNet V2 (Sandler et al. 2018, arXiv:1801.04381): inverted residuals with linear bottlenecks."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
import tf_keras

from od_finetune.fields import ObjectTree
from od_finetune.models import tf2_objects
from od_finetune.models.backbones import spellings
from od_finetune.models.layers import BatchNorm, ConvHyperparams, ConvUnit
from od_finetune.models.stages import Block

# (filters, stride) of the 17 inverted residuals; the first one does not expand.
_BLOCKS = (
    (16, 1),
    (24, 2),
    (24, 1),
    (32, 2),
    (32, 1),
    (32, 1),
    (64, 2),
    (64, 1),
    (64, 1),
    (64, 1),
    (96, 1),
    (96, 1),
    (96, 1),
    (160, 2),
    (160, 1),
    (160, 1),
    (320, 1),
)
_EXPANSION = 6

# What the OD API builds the backbone with where the config does not override it. TF1's slim scope leaves depthwise
# kernels out of the weight decay, the TF2 extractor does not.
DEFAULTS = ConvHyperparams(
    initializer=lambda: tf_keras.initializers.TruncatedNormal(stddev=0.09),
    regularizer=tf_keras.regularizers.L2(0.5 * 4e-5),
    activation="relu6",
    norm=BatchNorm(decay=0.9997, epsilon=0.001, center=True, scale=True),
)
KERAS_DEFAULTS = DEFAULTS._replace(depthwise_regularizer=DEFAULTS.regularizer)

# Canonical name -> full name in the OD API's TF2 checkpoints, which follow tf_keras.applications.MobileNetV2.
TF2_RULES = [
    (r"^FeatureExtractor/MobilenetV2/Conv/BatchNorm/", "bn_Conv1/"),
    (r"^FeatureExtractor/MobilenetV2/Conv/", "Conv1/"),
    (r"^FeatureExtractor/MobilenetV2/Conv_1/BatchNorm/", "Conv_1_bn/"),
    (r"^FeatureExtractor/MobilenetV2/Conv_1/", "Conv_1/"),
    (r"^FeatureExtractor/MobilenetV2/expanded_conv_(\d+)/(\w+)/BatchNorm/", r"block_\1_\2_BN/"),
    (r"^FeatureExtractor/MobilenetV2/expanded_conv_(\d+)/(\w+)/", r"block_\1_\2/"),
    (r"^FeatureExtractor/MobilenetV2/expanded_conv/(\w+)/BatchNorm/", r"expanded_conv_\1_BN/"),
    (r"^FeatureExtractor/MobilenetV2/expanded_conv/(\w+)/", r"expanded_conv_\1/"),
]


def _layers(
    first: tuple[str, str], last: tuple[str, str], names: Callable[[int, int], tuple[str, str]]
) -> list[spellings.Layer]:
    """Every convolution of the network; `names(block 0 to 16, convolution 0 to 2)` of the block's, expansion first."""
    layers = [spellings.Layer("MobilenetV2/Conv", *first), spellings.Layer("MobilenetV2/Conv_1", *last)]
    for block in range(len(_BLOCKS)):
        scope = "MobilenetV2/expanded_conv" + (f"_{block}" if block else "")
        for index, role in enumerate(("expand", "depthwise", "project")):
            if block or index:
                layers.append(spellings.Layer(f"{scope}/{role}", *names(block, index)))
    return layers


def _torchvision(block: int, index: int) -> tuple[str, str]:
    """A block's last convolution is not in a sequence of its own, as those with an activation are."""
    position = index if block else index - 1
    conv = f"features.{block + 1}.conv.{position}"
    return (conv, f"features.{block + 1}.conv.{position + 1}") if index == 2 else (f"{conv}.0", f"{conv}.1")


def _timm(block: int, index: int) -> tuple[str, str]:
    """Blocks are numbered within the seven stages of the paper's table."""
    starts = (0, 1, 3, 6, 10, 13, 16)
    stage = max(number for number, start in enumerate(starts) if start <= block)
    scope = f"blocks.{stage}.{block - starts[stage]}"
    convs = ("conv_pw", "conv_dw", "conv_pwl") if block else ("", "conv_dw", "conv_pw")
    return f"{scope}.{convs[index]}", f"{scope}.bn{index + 1 if block else index}"


def _gluon(block: int, index: int) -> tuple[str, str]:
    """Convolution, norm and activation follow each other in one sequence."""
    first = 3 * (index if block else index - 1)
    return f"features.{block + 3}.out.{first}", f"features.{block + 3}.out.{first + 1}"


def _mxnet(prefix: str) -> list[spellings.Layer]:
    def names(block: int, index: int) -> tuple[str, str]:
        scope = f"{prefix}features_linearbottleneck{block}"
        position = index if block else index - 1
        return f"{scope}_conv{position}", f"{scope}_batchnorm{position}"

    first, last = ((f"{prefix}features_conv{i}", f"{prefix}features_batchnorm{i}") for i in (0, 1))
    return _layers(first, last, names)


def _tf_vision(root: str) -> list[spellings.Layer]:
    """Blocks are the weighted layers of a Keras model, numbered; a block that does not expand counts as if it did."""
    first, last = ((f"{root}layer_with_weights-{i}/_conv0", f"{root}layer_with_weights-{i}/_norm0") for i in (0, 18))

    def names(block: int, index: int) -> tuple[str, str]:
        scope = f"{root}layer_with_weights-{block + 1}"
        return f"{scope}/_conv{index}", f"{scope}/_norm{index}"

    return _layers(first, last, names)


VOCABULARIES = (
    spellings.vocabulary(
        "torchvision",
        _layers(("features.0.0", "features.0.1"), ("features.18.0", "features.18.1"), _torchvision),
        spellings.TORCH,
        pads_evenly=True,
    ),
    spellings.vocabulary(
        "timm", _layers(("conv_stem", "bn1"), ("conv_head", "bn2"), _timm), spellings.TORCH, pads_evenly=True
    ),
    spellings.vocabulary(
        "GluonCV",
        _layers(("features.0", "features.1"), ("features.20", "features.21"), _gluon),
        spellings.GLUON,
        pads_evenly=True,
    ),
    spellings.vocabulary("GluonCV parameter names", _mxnet("mobilenetv20_"), spellings.MXNET, pads_evenly=True),
    spellings.vocabulary("GluonCV parameter names", _mxnet(""), spellings.MXNET, pads_evenly=True),
    *spellings.tf_vision(_tf_vision),
)


def override(hyperparams: ConvHyperparams, keras: bool) -> ConvHyperparams:
    """What `override_base_feature_extractor_hyperparams` makes of the config's hyperparams for the backbone.

    In TF1 the network's own definition still decides activation, centre and scale; in TF2 the config does.
    """
    hyperparams = hyperparams._replace(depthwise_regularizer=hyperparams.regularizer)
    if keras:
        return hyperparams
    norm = hyperparams.norm if isinstance(hyperparams.norm, BatchNorm) else BatchNorm()
    return hyperparams._replace(activation="relu6", norm=norm._replace(center=True, scale=True))


def divisible(depth: float, divisor: int = 8, minimum: int = 8) -> int:
    """Rounds to a multiple of `divisor`, at least `minimum` and never down by more than a tenth."""
    rounded = max(minimum, int(depth + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * depth else rounded


class InvertedResidual(tf.Module):
    """Expand (1x1), depthwise, project (1x1, linear); the input is added where the shapes agree."""

    def __init__(
        self,
        scope: str,
        hyperparams: ConvHyperparams,
        inputs: int,
        filters: int,
        stride: int,
        expansion: int,
        explicit_padding: bool,
        kernel_size: int = 3,
    ):
        super().__init__()
        wide = divisible(inputs * expansion)
        self.expand = ConvUnit(f"{scope}/expand", hyperparams, wide) if expansion > 1 else None
        self.depthwise = ConvUnit(f"{scope}/depthwise", hyperparams, None, kernel_size, stride, explicit_padding)
        self.project = ConvUnit(f"{scope}/project", hyperparams, filters, activate=False)
        self._residual = stride == 1 and inputs == filters

    def tf2_objects(self) -> list[ObjectTree]:
        """Its layers in the object graph of the OD API's TF2 checkpoints; the last one is the addition."""
        units = [unit for unit in (self.expand, self.depthwise, self.project) if unit is not None]
        return [node for unit in units for node in tf2_objects.unit(unit)] + [{}] * self._residual

    def __call__(self, inputs: tf.Tensor, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """`[B, H, W, C]` -> the output and what the expansion made of the input (a feature level of its own)."""
        expanded = inputs if self.expand is None else self.expand(inputs, training)
        outputs = self.project(self.depthwise(expanded, training), training)
        return (inputs + outputs if self._residual else outputs), expanded


class MobilenetV2(tf.Module):
    """Feature levels `layer_<n>` (1: first convolution, 2 to 18: inverted residuals, 19: last convolution) and
    `layer_<n>/expansion_output`, up to the last one asked for.

    Args:
      scope: canonical scope, e.g. `FeatureExtractor/MobilenetV2`.
      hyperparams: of every layer.
      levels: names of the feature levels that are wanted; layers above the last are not built.
      depth_multiplier, min_depth: every block's filters become `divisible(filters * depth_multiplier, 8, min_depth)`,
        the last convolution's too (unlike tf_keras.applications, which leaves that at 1280).
      explicit_padding: see `layers.fixed_padding`.
      last_filters: of the last convolution, before the depth multiplier.
    """

    def __init__(
        self,
        scope: str,
        hyperparams: ConvHyperparams,
        levels: tuple[str, ...],
        depth_multiplier: float = 1.0,
        min_depth: int = 8,
        explicit_padding: bool = False,
        last_filters: int = 1280,
    ):
        super().__init__()
        self._levels = tuple(levels)
        last = max(int(level.split("/")[0].removeprefix("layer_")) for level in levels)

        def depth(filters: int) -> int:
            return divisible(filters * depth_multiplier, minimum=min_depth)

        channels = depth(32)
        self._first = ConvUnit(f"{scope}/Conv", hyperparams, channels, 3, 2, explicit_padding)
        self._blocks: list[InvertedResidual] = []
        for index, (filters, stride) in enumerate(_BLOCKS[: max(0, last - 1)]):
            block = f"{scope}/expanded_conv" + (f"_{index}" if index else "")
            expansion = _EXPANSION if index else 1
            self._blocks.append(
                InvertedResidual(block, hyperparams, channels, depth(filters), stride, expansion, explicit_padding)
            )
            channels = depth(filters)
        self._last = ConvUnit(f"{scope}/Conv_1", hyperparams, depth(last_filters)) if last == 19 else None

    def blocks(self) -> list[Block]:
        """`layer_<n>`, numbered as the feature levels are."""
        modules = [self._first, *self._blocks, *([self._last] if self._last is not None else [])]
        strides = [2, *(stride for _, stride in _BLOCKS), 1]
        return [
            Block(f"layer_{number}", stride, module)
            for number, (module, stride) in enumerate(zip(modules, strides, strict=False), start=1)
        ]

    def tf2_objects(self) -> ObjectTree:
        """Its node in the object graph of the OD API's TF2 checkpoints: a functional model."""
        nodes = tf2_objects.unit(self._first)
        nodes += [node for block in self._blocks for node in block.tf2_objects()]
        return tf2_objects.functional(nodes + (tf2_objects.unit(self._last) if self._last is not None else []))

    def __call__(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Normalised `[B, H, W, 3]` -> the feature levels `[B, h, w, C]` by name."""
        outputs = self._first(images, training)
        features = {"layer_1": outputs}
        for number, block in enumerate(self._blocks, start=2):
            outputs, features[f"layer_{number}/expansion_output"] = block(outputs, training)
            features[f"layer_{number}"] = outputs
        if self._last is not None:
            features["layer_19"] = self._last(outputs, training)
        return {level: features[level] for level in self._levels}
