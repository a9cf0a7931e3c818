"""EfficientNet B0 to B7 (Tan & Le 2019, arXiv:1905.11946) as the OD API's EfficientDets have it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras

from od_finetune.fields import ObjectTree
from od_finetune.models import tf2_objects
from od_finetune.models.backbones.mbconv import MBConv, Stage
from od_finetune.models.backbones.mobilenet_v2 import divisible
from od_finetune.models.layers import BatchNorm, ConvHyperparams, ConvUnit
from od_finetune.models.stages import Block
from od_finetune.names import Rules

# Of B0. The checkpoints of TF2 call a stage a stack.
STAGES = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 2, 6, 80, 3),
    Stage(5, 1, 6, 112, 3),
    Stage(5, 2, 6, 192, 4),
    Stage(3, 1, 6, 320, 1),
)
STEM, TOP = 32, 1280
_CLASSES = 1000  # of ImageNet
_DROPPED = 0.2  # share of the images for which a block at the far end of the network is left out in training


class Version(NamedTuple):
    """What the filters and the repeats of B0 are multiplied by."""

    width: float
    depth: float


VERSIONS = {
    "b0": Version(1.0, 1.0),
    "b1": Version(1.0, 1.1),
    "b2": Version(1.1, 1.2),
    "b3": Version(1.2, 1.4),
    "b4": Version(1.4, 1.8),
    "b5": Version(1.6, 2.2),
    "b6": Version(1.8, 2.6),
    "b7": Version(2.0, 3.1),
}
# Stride 2 to 32. In B1 to B7 they are not the last blocks of their resolution; EfficientDets take them all the same.
LEVELS = ("stack_0/block_0", "stack_1/block_1", "stack_2/block_1", "stack_4/block_2", "stack_6/block_0")

DEFAULTS = ConvHyperparams(
    initializer=lambda: tf_keras.initializers.VarianceScaling(2.0, "fan_out", "truncated_normal"),
    regularizer=tf_keras.regularizers.L2(5e-6),
    activation="swish",
    norm=BatchNorm(decay=0.99, epsilon=0.001, center=True, scale=True),
)

# Canonical name -> full name in the OD API's TF2 checkpoints.
_NETWORK, _LAYER = r"^FeatureExtractor/EfficientnetB\d", r"((?:stack_\d+/block_\d+/)?\w+)"
TF2_RULES: Rules = [
    (rf"{_NETWORK}/logits/", "logits/"),
    (rf"{_NETWORK}/{_LAYER}/BatchNorm/", r"\1_bn/"),
    (rf"{_NETWORK}/{_LAYER}/", r"\1_conv2d/"),
]


def repeats(version: str) -> list[int]:
    """How many blocks each stage of a version has."""
    return [math.ceil(VERSIONS[version].depth * stage.repeats) for stage in STAGES]


class EfficientNet(tf.Module):
    """Feature levels `stack_<s>/block_<b>`, both from 0.

    The whole classification net is made, as checkpoints have it. What comes after the last level that is asked for
    takes no part in anything: its variables can be restored and written, and are not trainable.

    Args:
      scope: canonical scope, e.g. `FeatureExtractor/EfficientnetB0`.
      hyperparams: of every layer.
      levels: names of the feature levels that are wanted.
      version: a key of VERSIONS.
      depth_multiplier: multiplies the filters further (to a multiple of 8); published weights have 1.
      min_depth, explicit_padding: not of this backbone, which ignores them; the neck's builder says what may be set.
    """

    def __init__(
        self,
        scope: str,
        hyperparams: ConvHyperparams,
        levels: tuple[str, ...],
        version: str,
        depth_multiplier: float = 1.0,
        min_depth: int = 8,
        explicit_padding: bool = False,
    ):
        super().__init__()
        del min_depth, explicit_padding
        width = VERSIONS[version].width

        def depth(filters: int) -> int:
            return divisible(filters * width * depth_multiplier)

        counts = repeats(version)
        stages = [s._replace(filters=depth(s.filters), repeats=n) for s, n in zip(STAGES, counts, strict=True)]
        self._levels = tuple(levels)
        self._stem = ConvUnit(f"{scope}/stem", hyperparams, depth(STEM), 3, 2)
        self._blocks = _blocks(scope, hyperparams, depth(STEM), stages)
        self._top = ConvUnit(f"{scope}/top", hyperparams, depth(TOP))
        self._logits = tf_keras.layers.Dense(
            _CLASSES,
            kernel_initializer=tf_keras.initializers.VarianceScaling(1.0 / 3.0, "fan_out", "uniform"),
            kernel_regularizer=hyperparams.regularizer,
            name=f"{scope}/logits",
        )
        names = list(self._blocks)
        self._used = 1 + max(names.index(level) for level in levels)  # of the blocks
        self._strides = [stage.stride if i == 0 else 1 for stage in stages for i in range(stage.repeats)]

    def blocks(self) -> list[Block]:
        """`stem`, `stack_<s>/block_<b>`, `top`."""
        named = [Block("stem", 2, self._stem)]
        named += [Block(name, s, block) for (name, block), s in zip(self._blocks.items(), self._strides, strict=True)]
        return [*named, Block("top", 1, [self._top, self._logits])]

    def tf2_objects(self) -> ObjectTree:
        """The extractor's attributes in the object graph of the OD API's TF2 checkpoints: two functional models that
        share their layers, one of what is used, one of the whole net."""
        unit, blocks = tf2_objects.unit, list(self._blocks.values())
        used = unit(self._stem) + [node for block in blocks[: self._used] for node in block.tf2_objects()]
        rest = [node for block in blocks[self._used :] for node in block.tf2_objects()]
        # top; mean, dropout, logits, softmax, cast
        rest += [*unit(self._top), {}, {}, tf2_objects.layer(self._logits), {}, {}]
        images: ObjectTree = {}
        end = len(used) - (not blocks[self._used - 1].residual)  # the identity at the end does nothing for the level
        return {
            "_efficientnet": {**tf2_objects.functional(used[:end]), "layer-0": images},
            "classification_backbone": {**tf2_objects.functional(used + rest), "layer-0": images},
        }

    def __call__(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Normalised `[B, H, W, 3]` -> the feature levels `[B, h, w, C]` by name."""
        outputs = self._stem(images, training)
        features = {}
        for name, block in list(self._blocks.items())[: self._used]:
            outputs = features[name] = block(outputs, training)
        if not self._logits.built:
            self._create_rest(outputs.shape[-1])
        return {level: features[level] for level in self._levels}

    def _create_rest(self, channels: int) -> None:
        """The variables of what follows the last level."""
        with tf.init_scope(), tf.variable_creator_scope(_not_trainable):
            outputs = tf.zeros([1, 1, 1, channels])
            for block in list(self._blocks.values())[self._used :]:
                outputs = block(outputs, training=False)
            self._logits(tf.reduce_mean(self._top(outputs), axis=[1, 2]))


def _blocks(scope: str, hyperparams: ConvHyperparams, channels: int, stages: list[Stage]) -> dict[str, MBConv]:
    """Every block by name. The further from the input, the more often it is dropped."""
    count = sum(stage.repeats for stage in stages)
    blocks: dict[str, MBConv] = {}
    for number, stage in enumerate(stages):
        for position in range(stage.repeats):
            name = f"stack_{number}/block_{position}"
            stride = 1 if position else stage.stride
            dropped = _DROPPED * len(blocks) / count
            blocks[name] = MBConv(f"{scope}/{name}", hyperparams, channels, stage, stride, dropped)
            channels = stage.filters
    return blocks


def _not_trainable(create: Any, **options: Any) -> tf.Variable:
    return create(**{**options, "trainable": False})
