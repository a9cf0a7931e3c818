"""What the Inception networks are made of: convolutions and poolings side by side, joined by their channels.

A network is a table of steps (`Conv`, `Separable`, `Pool`, `Mixed`); `Chain` builds and runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import tensorflow as tf
import tf_keras

from od_finetune.errors import UserError
from od_finetune.fields import ObjectTree
from od_finetune.models import tf2_objects
from od_finetune.models.layers import ConvHyperparams, ConvUnit, KernelSize
from od_finetune.models.stages import Block


class Conv(NamedTuple):
    """A convolution with norm and activation."""

    name: str
    filters: int  # before the depth multiplier
    kernel_size: KernelSize = 1
    stride: int = 1
    padding: str = "same"
    rate: int = 1
    stddev: float | None = None  # of the truncated normal it starts from, where the network has a say in that


class Separable(NamedTuple):
    """A depthwise convolution to at most `multiplier` times the channels, then a 1x1; norm and activation at the end
    only."""

    name: str
    filters: int
    kernel_size: int
    stride: int
    multiplier: int
    stddev: float | None = None


class Pool(NamedTuple):
    """A pooling by 3x3 windows; an average is that of the part of the window within the image."""

    name: str
    kind: str  # `MAX` or `AVG`
    stride: int = 1
    padding: str = "same"


class Fork(NamedTuple):
    """Convolutions of the same input, joined."""

    convs: tuple[Conv, ...]


class Mixed(NamedTuple):
    """Branches `Branch_<i>` of the same input, joined."""

    name: str
    branches: tuple[tuple[Conv | Pool | Fork, ...], ...]
    stride: int = 1


Step = Conv | Separable | Pool | Mixed | Fork
Width = Callable[[int], int]  # filters of a table -> filters


def scaled_width(depth_multiplier: float, min_depth: int) -> Width:
    """Slim's scaling of the Inception networks."""
    return lambda filters: max(int(filters * depth_multiplier), min_depth)


class Pooling(tf.Module):
    """See `Pool`."""

    def __init__(self, pool: Pool):
        super().__init__()
        self.pool = pool

    def __call__(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        del training
        _, kind, stride, padding = self.pool
        return tf.nn.pool(inputs, [3, 3], kind, [stride, stride], padding.upper())


class Parallel(tf.Module):
    """Branches of modules, all from the same input, joined by their channels."""

    def __init__(self, branches: Iterable[Sequence[tf.Module]]):
        super().__init__()
        self.branches = [list(branch) for branch in branches]

    def __call__(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        outputs = []
        for branch in self.branches:
            value = inputs
            for module in branch:
                value = module(value, training)
            outputs.append(value)
        return tf.concat(outputs, axis=-1)


def build_step(scope: str, hyperparams: ConvHyperparams, step: Step, width: Width) -> tf.Module:
    """The module of a step, its convolutions within `scope`."""
    if isinstance(step, Pool):
        return Pooling(step)
    if isinstance(step, Fork):
        return Parallel([build_step(scope, hyperparams, conv, width)] for conv in step.convs)
    if isinstance(step, Mixed):
        return Parallel(
            [build_step(f"{scope}/{step.name}/Branch_{index}", hyperparams, part, width) for part in branch]
            for index, branch in enumerate(step.branches)
        )
    if step.stddev is not None:
        hyperparams = hyperparams._replace(initializer=_truncated_normal(step.stddev))
    filters, name = width(step.filters), f"{scope}/{step.name}"
    if isinstance(step, Separable):
        multiplier = min(filters // 3, step.multiplier)
        return ConvUnit(
            name, hyperparams, filters, step.kernel_size, step.stride, separable=True, depth_multiplier=multiplier
        )
    return ConvUnit(
        name,
        hyperparams,
        filters,
        step.kernel_size,
        step.stride,
        padding=step.padding,
        rate=step.rate,
    )


def tf2_node(module: tf.Module, source: tf2_objects.Node) -> tf2_objects.Node:
    """The last layer of a step's module behind `source`, in the object graph of the OD API's TF2 checkpoints."""
    if isinstance(module, ConvUnit):
        return tf2_objects.chained(tf2_objects.unit(module), source)
    if isinstance(module, Pooling):
        return tf2_objects.Node({}, (source,))
    ends = []
    for branch in module.branches:
        end = source
        for part in branch:
            end = tf2_node(part, end)
        ends.append(end)
    return tf2_objects.Node({}, tuple(ends))


def conv_names(scope: str, step: Step) -> list[str]:
    """The scopes of a step's convolutions, branch by branch."""
    if isinstance(step, Pool):
        return []
    if isinstance(step, Mixed):
        branches = enumerate(step.branches)
        return [
            name
            for index, branch in branches
            for part in branch
            for name in conv_names(f"{scope}/{step.name}/Branch_{index}", part)
        ]
    parts = step.convs if isinstance(step, Fork) else (step,)
    return [f"{scope}/{part.name}" for part in parts]


def _truncated_normal(stddev: float) -> Callable[[], tf_keras.initializers.Initializer]:
    return lambda: tf_keras.initializers.TruncatedNormal(stddev=stddev)


class Chain(tf.Module):
    """Steps one after the other; the feature levels are their names.

    Args:
      scope: canonical scope, e.g. `FeatureExtractor/InceptionV2`.
      hyperparams: of every convolution.
      steps: each with a name of its own.
      width: from the filters of the table to those of the network.
    """

    def __init__(
        self, scope: str, hyperparams: ConvHyperparams, steps: Iterable[Conv | Separable | Pool | Mixed], width: Width
    ):
        super().__init__()
        self._steps = tuple((step.name, step.stride) for step in steps)
        self._modules = [build_step(scope, hyperparams, step, width) for step in steps]

    def blocks(self) -> list[Block]:
        """A block per step; a pooling is part of the step after it."""
        blocks, stride = [], 1
        for (name, own), module in zip(self._steps, self._modules, strict=True):
            stride *= own
            if not isinstance(module, Pooling):
                blocks.append(Block(name, stride, module))
                stride = 1
        return blocks

    def tf2_node(self, source: tf2_objects.Node) -> tf2_objects.Node:
        """See `tf2_node`."""
        for module in self._modules:
            source = tf2_node(module, source)
        return source

    def __call__(self, inputs: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """`[B, H, W, C]` -> the output of every step by name."""
        outputs = {}
        for (name, _), module in zip(self._steps, self._modules, strict=True):
            inputs = outputs[name] = module(inputs, training)
        return outputs


class Inception(tf.Module):
    """A backbone of such steps. Feature levels: the names of the steps, e.g. `Mixed_4c`.

    Args:
      scope: canonical scope, e.g. `FeatureExtractor/InceptionV2`.
      hyperparams: of every layer.
      levels: names of the feature levels that are wanted; steps after the last are not built.
      steps: of the whole network.
      depth_multiplier, min_depth: filters become max(int(filters * depth_multiplier), min_depth).
      explicit_padding: changes nothing here, as in the OD API: the maps on top of the backbone heed it.
    """

    def __init__(
        self,
        scope: str,
        hyperparams: ConvHyperparams,
        levels: tuple[str, ...],
        steps: Sequence[Step],
        depth_multiplier: float = 1.0,
        min_depth: int = 16,
        explicit_padding: bool = False,
    ):
        del explicit_padding
        super().__init__()
        self.levels = tuple(levels)
        names = [step.name for step in steps]
        count = 1 + max(names.index(level) for level in levels)
        self._chain = Chain(scope, hyperparams, steps[:count], scaled_width(depth_multiplier, min_depth))

    def blocks(self) -> list[Block]:
        """Named as the feature levels are; a pooling is part of the block after it."""
        return self._chain.blocks()

    def tf2_objects(self) -> ObjectTree:
        """Raises UserError: the OD API's TF2 half has no detector with it."""
        raise UserError(
            "the OD API's TF2 half has no Inception V2 or V3, so there is no TF2 checkpoint to write; export a "
            "tf1_checkpoint"
        )

    def __call__(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Normalised `[B, H, W, 3]` -> the feature levels `[B, h, w, C]` by name."""
        outputs = self._chain(images, training)
        return {level: outputs[level] for level in self.levels}


class LastLevel(tf.Module):
    """The last feature level of a network by itself: what a Faster R-CNN runs on every region."""

    def __init__(self, network: tf.Module):
        super().__init__()
        self._network = network

    def blocks(self) -> list[Block]:
        """The network's."""
        return self._network.blocks()

    def tf2_objects(self) -> ObjectTree:
        """The network's."""
        return self._network.tf2_objects()

    def __call__(self, features: tf.Tensor, training: bool = False) -> tf.Tensor:
        """`[N, h, w, C]` -> `[N, h', w', D]`."""
        *_, last = self._network(features, training).values()
        return last
