"""ResNet V1 with 50, 101 or 152 layers (He et al. 2016, arXiv:1512.03385): bottleneck units, the norm after each
convolution."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf
import tf_keras

from od_finetune.fields import ObjectTree
from od_finetune.models import tf2_objects
from od_finetune.models.layers import ACTIVATIONS, SLIM_VARIANCE, BatchNorm, ConvHyperparams, ConvUnit
from od_finetune.models.stages import Block

UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # of blocks 1 to 4, by the number of layers
_BASE_FILTERS = (64, 128, 256, 512)  # of a bottleneck's inner convolutions; its output has four times as many
_ROOT_STRIDE = 4  # of the first convolution and the pooling after it

# What the OD API builds the backbone with where the config does not override it. Both halves call their weight decay
# 1e-4, but tf_keras's L2 is twice what slim's is at the same number. Their initialisers differ as well.
DEFAULTS = ConvHyperparams(
    initializer=lambda: tf_keras.initializers.VarianceScaling(2.0 * SLIM_VARIANCE, "fan_in", "truncated_normal"),
    regularizer=tf_keras.regularizers.L2(0.5 * 1e-4),
    activation="relu",
    norm=BatchNorm(decay=0.997, epsilon=1e-5, center=True, scale=True),
)
KERAS_DEFAULTS = DEFAULTS._replace(
    initializer=lambda: tf_keras.initializers.VarianceScaling(1.0, "fan_in", "truncated_normal"),
    regularizer=tf_keras.regularizers.L2(1e-4),
)

_CONVS = {"shortcut": "0", "conv1": "1", "conv2": "2", "conv3": "3"}
# Canonical name -> full name in the OD API's TF2 checkpoints, which follow tf_keras.applications.ResNet50: its blocks
# are counted from 2 on.
TF2_RULES = [
    (r"^.*/resnet_v1_\d+/conv1/BatchNorm/", "conv1_bn/"),
    (r"^.*/resnet_v1_\d+/conv1/", "conv1_conv/"),
    *(
        (rf"^.*/block{block}/unit_(\d+)/bottleneck_v1/{conv}/{kind}", rf"conv{block + 1}_block\1_{index}_{name}/")
        for block in (1, 2, 3, 4)
        for conv, index in _CONVS.items()
        for kind, name in (("BatchNorm/", "bn"), ("", "conv"))
    ),
]


def override(hyperparams: ConvHyperparams, keras: bool) -> ConvHyperparams:
    """What `override_base_feature_extractor_hyperparams` makes of the config's hyperparams for the backbone.

    In TF1 slim's definition of the network still decides the norm's decay, epsilon and scale. See ResnetV1's `keras`
    for the activation of the sums.
    """
    if keras:
        return hyperparams._replace(force_use_bias=False)
    if not isinstance(hyperparams.norm, BatchNorm):
        return hyperparams
    own = {field: getattr(DEFAULTS.norm, field) for field in ("decay", "epsilon", "scale")}
    return hyperparams._replace(norm=hyperparams.norm._replace(**own))


class Bottleneck(tf.Module):
    """1x1, 3x3 and 1x1 convolution to four times as many filters, added to the input or to its 1x1 projection.

    Args:
      scope: canonical scope, e.g. `FeatureExtractor/resnet_v1_50/block1/unit_1/bottleneck_v1`.
      hyperparams: of every convolution; neither the last one nor the projection has an activation of its own.
      inner, filters: channels inside, channels of the output.
      projects: whether the input is projected; otherwise it has as many channels as the output.
      entry_stride: of the first convolution, as in the paper and in Keras.
      exit_stride: of the 3x3 convolution, padded explicitly. In slim a block's last unit has the stride that Keras
        has in the next block's first unit, which gives the next block the same input.
      rate: of the 3x3 convolution's dilation.
      activation: of the sum, a key of ACTIVATIONS.
    """

    def __init__(
        self,
        scope: str,
        hyperparams: ConvHyperparams,
        inner: int,
        filters: int,
        projects: bool,
        entry_stride: int = 1,
        exit_stride: int = 1,
        rate: int = 1,
        activation: str = "relu",
    ):
        super().__init__()
        stride = entry_stride * exit_stride
        self.shortcut = (
            ConvUnit(f"{scope}/shortcut", hyperparams, filters, stride=stride, activate=False) if projects else None
        )
        self.conv1 = ConvUnit(f"{scope}/conv1", hyperparams, inner, stride=entry_stride)
        self.conv2 = ConvUnit(
            f"{scope}/conv2", hyperparams, inner, 3, exit_stride, explicit_padding=exit_stride > 1, rate=rate
        )
        self.conv3 = ConvUnit(f"{scope}/conv3", hyperparams, filters, activate=False)
        self._stride = stride
        self._activation = ACTIVATIONS[activation]

    def tf2_objects(self) -> list[ObjectTree]:
        """Its layers in the object graph of the OD API's TF2 checkpoints, sorted as Keras sorts a model's layers: by
        their distance from the output."""
        conv3, norm3 = tf2_objects.unit(self.conv3)
        # The 3x3 convolution has no stride in Keras, and so no padding layer.
        nodes = tf2_objects.unit(self.conv1) + tf2_objects.unit(self.conv2)[-3:]
        if self.shortcut is None:
            return [*nodes, conv3, norm3, {}, {}]
        shortcut, norm = tf2_objects.unit(self.shortcut)
        return [*nodes, shortcut, conv3, norm, norm3, {}, {}]

    def __call__(self, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        """`[B, H, W, C]` -> `[B, h, w, filters]`."""
        if self.shortcut is not None:
            shortcut = self.shortcut(inputs, training)
        else:
            shortcut = inputs[:, :: self._stride, :: self._stride] if self._stride > 1 else inputs
        outputs = shortcut + self.conv3(self.conv2(self.conv1(inputs, training), training), training)
        return outputs if self._activation is None else self._activation(outputs)


class ResnetV1(tf.Module):
    """Feature levels `block1` to `block4`, at strides 4, 8, 16 and 32, up to the last one asked for.

    TF1's slim and TF2's Keras build the same function of the image: see `Bottleneck`. As in both, a level is what the
    block gives before the stride that leads to the next one.

    Args:
      scope: canonical scope, e.g. `FeatureExtractor/resnet_v1_50`.
      hyperparams: of every layer.
      levels: names of the feature levels that are wanted; blocks above the last are not built.
      depth_multiplier, min_depth: of the filters.
      explicit_padding: where a convolution has a stride, its padding is explicit anyway; there is no other way.
      num_layers: 50, 101 or 152.
      first_block: above 1, the input is that block's, e.g. crops of the level below it, and there is no root.
      entry_stride: of that first block.
      output_stride: where the strides have multiplied to it, further ones become dilations (4, 8, 16 or 32).
      keras: as in the OD API's TF2 half: the depth multiplier is applied to each convolution on its own (in slim to
        the inner ones, of which the outer ones are four times the width), every block begins with a projection, and
        sums have the activation of `hyperparams` (in slim a ReLU).
      pad_pooling: a row and a column of zeros around the input of the root's pooling, as tf_keras.applications has it.
    """

    def __init__(
        self,
        scope: str,
        hyperparams: ConvHyperparams,
        levels: tuple[str, ...],
        depth_multiplier: float = 1.0,
        min_depth: int = 8,
        explicit_padding: bool = False,
        *,
        num_layers: int = 50,
        first_block: int = 1,
        entry_stride: int = 1,
        output_stride: int = 32,
        keras: bool = False,
        pad_pooling: bool = False,
    ):
        super().__init__()
        del explicit_padding
        self._levels = tuple(levels)
        self._pad_pooling = pad_pooling
        self._plans = _plan_blocks(self._levels, first_block, entry_stride, output_stride)

        def depth(filters: int) -> int:
            return max(int(filters * depth_multiplier), min_depth)

        self._root = ConvUnit(f"{scope}/conv1", hyperparams, depth(64), 7, 2, True) if first_block == 1 else None
        self._blocks: list[list[Bottleneck]] = []
        channels = depth(64) if first_block == 1 else 0
        for plan in self._plans:
            inner = depth(_BASE_FILTERS[plan.number - 1])
            filters = depth(4 * _BASE_FILTERS[plan.number - 1]) if keras else 4 * inner
            count = UNITS[num_layers][plan.number - 1]
            self._blocks.append([
                Bottleneck(
                    f"{scope}/block{plan.number}/unit_{unit}/bottleneck_v1",
                    hyperparams,
                    inner,
                    filters,
                    projects=unit == 1 and (keras or filters != channels),
                    entry_stride=plan.entry_stride if unit == 1 else 1,
                    exit_stride=plan.exit_stride if unit == count else 1,
                    rate=plan.rate,
                    activation=hyperparams.activation if keras else "relu",
                )
                for unit in range(1, count + 1)
            ])
            channels = filters

    def blocks(self) -> list[Block]:
        """`conv1` (of the first stage), then `block<n>/unit_<m>`; a block's last unit is `block<n>`, too."""
        found = [Block("conv1", 2, self._root)] if self._root is not None else []
        for plan, units in zip(self._plans, self._blocks, strict=True):
            for number, unit in enumerate(units, start=1):
                aliases = (f"block{plan.number}",) if number == len(units) else ()
                stride = plan.stride if number == 1 else 1
                found.append(Block(f"block{plan.number}/unit_{number}", stride, unit, aliases))
        return found

    def tf2_layers(self) -> list[ObjectTree]:
        """Its layers in the object graph of the OD API's TF2 checkpoints."""
        # The last one is the pooling.
        nodes = [*tf2_objects.unit(self._root), *[{}] * self._pad_pooling, {}] if self._root is not None else []
        return nodes + [node for units in self._blocks for unit in units for node in unit.tf2_objects()]

    def tf2_objects(self) -> ObjectTree:
        """Its node in that graph: a functional model. Keras tells the sizes of images in another way than those of
        crops."""
        return tf2_objects.functional(self.tf2_layers(), None if self._root is not None else {})

    def __call__(self, inputs: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Normalised images `[B, H, W, 3]`, or with `first_block` above 1 features -> the levels `[B, h, w, C]` by
        name."""
        outputs = inputs
        if self._root is not None:
            outputs = pooled(self._root(inputs, training), self._pad_pooling)
        features = {}
        for plan, units in zip(self._plans, self._blocks, strict=True):
            for unit in units:
                outputs = unit(outputs, training)
            features[f"block{plan.number}"] = outputs
        return {level: features[level] for level in self._levels}


def pooled(inputs: tf.Tensor, pad: bool) -> tf.Tensor:
    """The root's 3x3 maximum pooling at stride 2 of `[B, H, W, C]`; see ResnetV1's `pad_pooling` for `pad`."""
    if not pad:
        return tf.nn.max_pool2d(inputs, 3, 2, "SAME")
    return tf.nn.max_pool2d(tf.pad(inputs, [[0, 0], [1, 1], [1, 1], [0, 0]]), 3, 2, "VALID")


class _BlockPlan(NamedTuple):
    number: int
    stride: int  # between the block before and this one, whichever of the two has it
    entry_stride: int
    exit_stride: int
    rate: int


def _plan_blocks(levels: tuple[str, ...], first: int, entry_stride: int, output_stride: int) -> list[_BlockPlan]:
    """Where the strides between the blocks are. One after a level that is wanted is the next block's; any other is
    taken by the last unit before it, so that nothing is computed to be thrown away."""
    wanted = [int(level.removeprefix("block")) for level in levels]
    plans = []
    total, rate, stride, entry = _ROOT_STRIDE << (first - 1), 1, (2 if first == 1 else entry_stride), entry_stride
    for number in range(first, max(wanted) + 1):
        leaving = 2 if number < max(wanted) and total < output_stride else 1
        is_level = number in wanted
        plans.append(_BlockPlan(number, stride, entry, 1 if is_level else leaving, rate))
        entry, stride = leaving if is_level else 1, leaving
        total, rate = total * leaving, rate * (2 if leaving == 1 else 1)
    return plans
