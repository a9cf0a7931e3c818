"""EfficientNet-Lite0: EfficientNet-B0 (Tan & Le 2019, arXiv:1905.11946) without squeeze-and-excitation, with ReLU6.

It wants its images as (x - 127) / 128 and SAME padding. Networks of this family were trained with stochastic depth,
which a fine-tuning does without.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
import tf_keras

from od_finetune.models.backbones import spellings
from od_finetune.models.backbones.efficientnet import STAGES, STEM, TOP
from od_finetune.models.backbones.mobilenet_v2 import InvertedResidual, divisible
from od_finetune.models.layers import BatchNorm, ConvHyperparams, ConvUnit
from od_finetune.models.stages import Block
from od_finetune.names import Rules, Vocabulary

# (stage, position in it) of every block, in order
_PLACES = tuple((stage, i) for stage, entry in enumerate(STAGES) for i in range(entry.repeats))
NUM_BLOCKS = len(_PLACES)

SCOPE = "EfficientnetLite0"  # the end of the canonical scope

DEFAULTS = ConvHyperparams(
    # Normal with variance 2 / fan-out, as the family was trained from.
    initializer=lambda: tf_keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
    regularizer=tf_keras.regularizers.L2(0.5 * 4e-5),
    depthwise_regularizer=tf_keras.regularizers.L2(0.5 * 4e-5),
    activation="relu6",
    norm=BatchNorm(decay=0.99, epsilon=0.001, center=True, scale=True),
)


def _layers(
    stem: tuple[str, str], top: tuple[str, str], names: Callable[[int, str], tuple[str, str]]
) -> list[spellings.Layer]:
    """Every convolution of the network; `names(block 0 to 15, role)` of a block's convolution and its norm."""
    layers = [spellings.Layer(f"{SCOPE}/stem", *stem), spellings.Layer(f"{SCOPE}/top", *top)]
    for block, (stage, _) in enumerate(_PLACES):
        for role in ("expand", "depthwise", "project")[STAGES[stage].expansion == 1 :]:
            layers.append(spellings.Layer(f"{SCOPE}/block_{block}/{role}", *names(block, role)))
    return layers


def _efficientdet(block: int, role: str) -> tuple[str, str]:
    """As the OD API's TF2 checkpoints name the EfficientNets of EfficientDet: there is no Lite among them."""
    stage, position = _PLACES[block]
    scope = f"stack_{stage}/block_{position}/{role}"
    return f"{scope}_conv2d", f"{scope}_bn"


def _tpu(block: int, role: str) -> tuple[str, str]:
    """As TensorFlow's published checkpoints of the family do: layers of one kind in a block count up."""
    scope, expands = f"efficientnet-lite0/blocks_{block}", STAGES[_PLACES[block][0]].expansion > 1
    position = ("expand", "depthwise", "project").index(role) - (not expands)
    conv = {"expand": "conv2d", "depthwise": "depthwise_conv2d", "project": "conv2d_1" if expands else "conv2d"}[role]
    return f"{scope}/{conv}", f"{scope}/tpu_batch_normalization" + (f"_{position}" if position else "")


def _efficientnet_pytorch(block: int, role: str) -> tuple[str, str]:
    """As the `efficientnet_lite_pytorch` package: norms are numbered 0 to 2 whether or not the block expands."""
    return f"_blocks.{block}._{role}_conv", f"_blocks.{block}._bn{('expand', 'depthwise', 'project').index(role)}"


def _timm(block: int, role: str) -> tuple[str, str]:
    stage, position = _PLACES[block]
    expands = STAGES[stage].expansion > 1
    convs = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl" if expands else "conv_pw"}
    number = ("expand", "depthwise", "project").index(role) + expands
    return f"blocks.{stage}.{position}.{convs[role]}", f"blocks.{stage}.{position}.bn{number}"


# Canonical name -> full name in a TF2 checkpoint.
TF2_RULES: Rules = spellings.vocabulary(
    "", _layers(("stem_conv2d", "stem_bn"), ("top_conv2d", "top_bn"), _efficientdet), []
).rules
VOCABULARIES: tuple[Vocabulary, ...] = (
    spellings.vocabulary(
        "efficientnet_lite_pytorch",
        _layers(("_conv_stem", "_bn0"), ("_conv_head", "_bn1"), _efficientnet_pytorch),
        spellings.TORCH,
        DEFAULTS.norm.epsilon,
    ),
    spellings.vocabulary(
        "timm", _layers(("conv_stem", "bn1"), ("conv_head", "bn2"), _timm), spellings.TORCH, DEFAULTS.norm.epsilon
    ),
    spellings.vocabulary(
        "TPU checkpoint",
        _layers(
            *(
                (f"efficientnet-lite0/{part}/conv2d", f"efficientnet-lite0/{part}/tpu_batch_normalization")
                for part in ("stem", "head")
            ),
            _tpu,
        ),
        [(r"/depthwise_weights$", "/depthwise_kernel"), (r"/weights$", "/kernel")],
        None,
    ),
)


def override(hyperparams: ConvHyperparams, keras: bool) -> ConvHyperparams:
    """What `override_base_feature_extractor_hyperparams` makes of the config's hyperparams for the backbone: the
    activation, centre and scale that the pretrained network has stay."""
    del keras  # the OD API has no such type
    norm = hyperparams.norm if isinstance(hyperparams.norm, BatchNorm) else BatchNorm()
    return hyperparams._replace(
        depthwise_regularizer=hyperparams.regularizer,
        activation="relu6",
        norm=norm._replace(center=True, scale=True),
    )


class EfficientNetLite0(tf.Module):
    """Feature levels `stem`, `block_<n>` (0 to 15), `block_<n>/expand` and `top` (the last convolution), up to the last
    one asked for.

    Args:
      scope: canonical scope, e.g. `FeatureExtractor/EfficientnetLite0`.
      hyperparams: of every layer.
      levels: names of the feature levels that are wanted; layers above the last are not built.
      depth_multiplier, min_depth: the filters of all layers become `divisible(filters * depth_multiplier, 8,
        min_depth)`. Published weights have 1.
      explicit_padding: see `layers.fixed_padding`.
    """

    def __init__(
        self,
        scope: str,
        hyperparams: ConvHyperparams,
        levels: tuple[str, ...],
        depth_multiplier: float = 1.0,
        min_depth: int = 8,
        explicit_padding: bool = False,
    ):
        super().__init__()
        self._levels = tuple(levels)

        def depth(filters: int) -> int:
            return divisible(filters * depth_multiplier, minimum=min_depth)

        channels = depth(STEM)
        self._stem = ConvUnit(f"{scope}/stem", hyperparams, channels, 3, 2, explicit_padding)
        self._blocks: list[InvertedResidual] = []
        for block, (stage, _) in enumerate(_PLACES[: _blocks_needed(levels)]):
            entry, filters = STAGES[stage], depth(STAGES[stage].filters)
            self._blocks.append(
                InvertedResidual(
                    f"{scope}/block_{block}",
                    hyperparams,
                    channels,
                    filters,
                    _stride(block),
                    entry.expansion,
                    explicit_padding,
                    entry.kernel_size,
                )
            )
            channels = filters
        self._top = ConvUnit(f"{scope}/top", hyperparams, depth(TOP)) if "top" in levels else None

    def blocks(self) -> list[Block]:
        """`stem`, `block_<n>`, `top`."""
        named = [Block("stem", 2, self._stem)]
        named += [Block(f"block_{n}", _stride(n), module) for n, module in enumerate(self._blocks)]
        return named + ([Block("top", 1, self._top)] if self._top is not None else [])

    def __call__(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Normalised `[B, H, W, 3]` -> the feature levels `[B, h, w, C]` by name."""
        outputs = self._stem(images, training)
        features = {"stem": outputs}
        for number, block in enumerate(self._blocks):
            outputs, features[f"block_{number}/expand"] = block(outputs, training)
            features[f"block_{number}"] = outputs
        if self._top is not None:
            features["top"] = self._top(outputs, training)
        return {level: features[level] for level in self._levels}


def _stride(block: int) -> int:
    stage, position = _PLACES[block]
    return 1 if position else STAGES[stage].stride


def _blocks_needed(levels: tuple[str, ...]) -> int:
    """How many of the blocks come before the last of the levels, that block included."""
    if "top" in levels:
        return NUM_BLOCKS
    return max(0 if level == "stem" else 1 + int(level.split("/")[0].removeprefix("block_")) for level in levels)
