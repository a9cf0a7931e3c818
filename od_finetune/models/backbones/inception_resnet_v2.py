"""Inception-ResNet V2 (Szegedy et al. 2016, arXiv:1602.07261), its padding changed so that feature maps stay aligned
with the image, and cut in two for Faster R-CNN (Huang et al. 2016, arXiv:1611.10012)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras

from od_finetune.fields import ObjectTree
from od_finetune.models import tf2_objects
from od_finetune.models.backbones import spellings
from od_finetune.models.backbones.inception import (
    Chain,
    Conv,
    Fork,
    LastLevel,
    Mixed,
    Parallel,
    Pool,
    Step,
    build_step,
    conv_names,
    tf2_node,
)
from od_finetune.models.layers import ACTIVATIONS, BatchNorm, ConvHyperparams, conv_layer
from od_finetune.models.stages import Block
from od_finetune.names import Rules, Vocabulary

FEATURES = "block17_20"  # the first stage's level

# What both halves of the OD API build it with: no weight decay. Whether batch norm trains is for the config to say.
DEFAULTS = ConvHyperparams(
    initializer=tf_keras.initializers.GlorotUniform,
    norm=BatchNorm(decay=0.9997, epsilon=0.001, center=True, scale=False),
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
_LAST = Conv("Conv2d_7b_1x1", 1536)
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


def _mixed_7a(padding: str) -> Mixed:
    reduce = Conv("Conv2d_0a_1x1", 256)
    return Mixed(
        "Mixed_7a",
        (
            (reduce, Conv("Conv2d_1a_3x3", 384, 3, 2, padding)),
            (reduce, Conv("Conv2d_1a_3x3", 288, 3, 2, padding)),
            (reduce, Conv("Conv2d_0b_3x3", 288, 3), Conv("Conv2d_1a_3x3", 320, 3, 2, padding)),
            (Pool("MaxPool_1a_3x3", "MAX", 2, padding),),
        ),
        stride=2,
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

    def tf2_node(self, source: tf2_objects.Node) -> tf2_objects.Node:
        """See `inception.tf2_node`."""
        joined = tf2_node(self._branches, source)
        scaled = tf2_objects.Node(tf2_objects.layer(self._up), (joined,))
        output = tf2_objects.Node({}, (source, scaled))
        return output if self._activation is None else tf2_objects.Node({}, (output,))

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

    def tf2_objects(self) -> ObjectTree:
        """Its node in the object graph of the OD API's TF2 checkpoints: a functional model."""
        node = tf2_objects.Node({})
        for part in self._parts:
            for module in [part] if isinstance(part, Chain) else part.values():
                node = module.tf2_node(node)
        return tf2_objects.branching(node)

    def __call__(self, inputs: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """`[B, H, W, C]` -> the output of the last block by its name, `[B, h, w, c]`."""
        for part in self._parts:
            if isinstance(part, Chain):
                *_, inputs = part(inputs, training).values()
            else:
                for residual in part.values():
                    inputs = residual(inputs, training)
        return {self.blocks()[-1].name: inputs}


def _residuals(
    scope: str, hyperparams: ConvHyperparams, name: str, count: int, where: str, *arguments: Any
) -> dict[str, Residual]:
    """`count` of the same, within the scope `where`."""
    names = [f"{name}_{number}" for number in range(1, count + 1)]
    return {each: Residual(f"{scope}/{where}/{each}", hyperparams, *arguments) for each in names}


def first_stage(
    scope: str, hyperparams: ConvHyperparams, levels: tuple[str, ...] = (FEATURES,), output_stride: int = 16
) -> Stage:
    """From the normalised image `[B, H, W, 3]` to the level to propose on and to crop from, `[B, h, w, 1088]`.

    Args:
      scope: canonical scope, e.g. `FirstStageFeatureExtractor/InceptionResnetV2`.
      hyperparams: of every layer.
      levels: the only one there is.
      output_stride: of that level: 16, or 8, where the last halving is left out and what follows is dilated by 2.
    """
    assert levels == (FEATURES,), levels
    rate = 16 // output_stride
    return Stage(
        [
            Chain(scope, hyperparams, _STEM, int),
            _residuals(scope, hyperparams, "block35", 10, "Repeat", _BLOCK35, 320, 0.17),
            Chain(scope, hyperparams, [_mixed_6a(2 // rate)], int),
            _residuals(scope, hyperparams, "block17", 20, "Repeat_1", _block17(rate), 1088, 0.1),
        ]
    )


def second_stage(scope: str, hyperparams: ConvHyperparams, padding: str = "valid") -> LastLevel:
    """From the proposals' crops `[N, h, w, 1088]` to their features `[N, h', w', 1536]`, half as large.

    Args:
      scope: canonical scope, e.g. `SecondStageFeatureExtractor/InceptionResnetV2`.
      hyperparams: of every layer.
      padding: of the halving: `valid` in TF1; in TF2 `same`.
    """
    residuals = _residuals(scope, hyperparams, "block8", 9, "Repeat", _BLOCK8, 2080, 0.2)
    residuals["block8_10"] = Residual(f"{scope}/Block8", hyperparams, _BLOCK8, 2080, 1.0, activate=False)
    last = Chain(scope, hyperparams, [_LAST], int)
    return LastLevel(Stage([Chain(scope, hyperparams, [_mixed_7a(padding)], int), residuals, last]))


def _tf2_rules() -> Rules:
    """tf_keras.applications.InceptionResNetV2 numbers its convolutions, those that end a residual block left out."""
    first, second = "^FirstStageFeatureExtractor/InceptionResnetV2", "^SecondStageFeatureExtractor/InceptionResnetV2"
    convs = [conv for step in _STEM for conv in conv_names(first, step)]
    for number in range(1, 11):
        convs += conv_names(f"{first}/Repeat", Mixed(f"block35_{number}", _BLOCK35))
    convs += conv_names(first, _mixed_6a(2))
    for number in range(1, 21):
        convs += conv_names(f"{first}/Repeat_1", Mixed(f"block17_{number}", _block17(1)))
    convs += conv_names(second, _mixed_7a("same"))
    for number in range(1, 10):
        convs += conv_names(f"{second}/Repeat", Mixed(f"block8_{number}", _BLOCK8))
    convs += conv_names(second, Mixed("Block8", _BLOCK8))
    rules: Rules = [
        (rf"{second}/Conv2d_7b_1x1/BatchNorm/", "conv_7b_bn/"),
        (rf"{second}/Conv2d_7b_1x1/", "conv_7b/"),
        (rf"{second}/Block8/Conv2d_1x1/", "block8_10_conv/"),
        (r"^\w+/InceptionResnetV2/Repeat(?:_1)?/(block\w+)/Conv2d_1x1/", r"\1_conv/"),
    ]
    for index, conv in enumerate(convs):
        number = f"_{index}" if index else ""
        rules += [(f"{conv}/BatchNorm/", f"freezable_batch_norm{number}/"), (f"{conv}/", f"conv2d{number}/")]
    return rules


# Canonical name -> full name in the OD API's TF2 checkpoints.
TF2_RULES = _tf2_rules()


def _timm_layers() -> list[spellings.Layer]:
    """A branch of one convolution is that convolution, others are sequences of which poolings are a part."""
    root = "InceptionResnetV2"
    layers = [_timm_layer(f"{root}/{conv.name}", conv.name[: -len("_1x1")].lower()) for conv in (*_STEM, _LAST)
              if isinstance(conv, Conv)]  # fmt: skip
    mixed = [(f"{root}/{step.name}", step.name.lower(), step.branches) for step in (
        _STEM[-1], _mixed_6a(2), _mixed_7a("same"))]  # fmt: skip
    for where, there, name, count, branches in (
        ("Repeat", "repeat", "block35", 10, _BLOCK35),
        ("Repeat_1", "repeat_1", "block17", 20, _block17(1)),
        ("Repeat", "repeat_2", "block8", 9, _BLOCK8),
    ):
        mixed += [(f"{root}/{where}/{name}_{n + 1}", f"{there}.{n}", branches) for n in range(count)]
    mixed.append((f"{root}/Block8", "block8", _BLOCK8))
    for scope, name, branches in mixed:
        layers.append(spellings.Layer(f"{scope}/Conv2d_1x1", f"{name}.conv2d", ""))
        for index, branch in enumerate(branches):
            for position, part in enumerate(branch):
                if isinstance(part, Conv):
                    place = f".{position}" if len(branch) > 1 else ""
                    layers.append(_timm_layer(f"{scope}/Branch_{index}/{part.name}", f"{name}.branch{index}{place}"))
    return layers


def _timm_layer(scope: str, name: str) -> spellings.Layer:
    return spellings.Layer(scope, f"{name}.conv", f"{name}.bn")


VOCABULARIES = (
    # Its classification net counts its repetitions on where the second stage begins anew.
    Vocabulary(
        "TF-Slim", [(r"^SecondStageFeatureExtractor/InceptionResnetV2/Repeat/", "InceptionResnetV2/Repeat_2/")]
    ),
    spellings.vocabulary("timm", _timm_layers(), spellings.TORCH, epsilon=1e-3),
)
