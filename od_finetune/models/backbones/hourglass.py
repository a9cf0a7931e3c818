"""Stacked hourglass networks (Newell et al. 2016, arXiv:1603.06937) in the form of CornerNet (Law & Deng 2018,
arXiv:1808.01244), whose weights CenterNet starts from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import tensorflow as tf
import tf_keras

from od_finetune.fields import ObjectTree
from od_finetune.models import tf2_objects
from od_finetune.models.keras_names import Numbering
from od_finetune.models.layers import BatchNorm, ConvHyperparams, ConvUnit
from od_finetune.models.stages import Block
from od_finetune.models.upsampling import doubled

# The momentum is PyTorch's number (the share of the new statistics) taken over as Keras's (the share of the old ones).
HYPERPARAMS = ConvHyperparams(
    initializer=tf_keras.initializers.GlorotUniform,
    norm=BatchNorm(decay=0.1, epsilon=1e-5, center=True, scale=True),
)

# Above the names that Keras gives in the OD API's TF2 checkpoints.
_TF2_EXTRACTOR = "center_net_hourglass_feature_extractor/"


class Architecture(NamedTuple):
    """Sizes of a network."""

    first: int  # filters of the first convolution
    filters: tuple[int, ...]  # of each level of an hourglass, finest first
    blocks: tuple[int, ...]  # residual blocks in a row at each level; the last number is for the innermost part
    hourglasses: int = 1


def _single(width: int, factors: tuple[int, ...], blocks: tuple[int, ...]) -> Architecture:
    return Architecture(width, tuple(width * factor for factor in factors), blocks)


ARCHITECTURES = {
    10: _single(32, (2, 2), (1, 1)),
    20: _single(48, (2, 2, 3), (1, 2, 2)),
    32: _single(48, (2, 2, 3, 3), (2, 2, 2, 2)),
    52: _single(64, (2, 2, 3, 3, 3, 4), (2, 2, 2, 2, 2, 4)),
    104: Architecture(128, (256, 256, 384, 384, 384, 512), (2, 2, 2, 2, 2, 4), hourglasses=2),
}

Names = dict[str, str]  # canonical scope of a layer -> its full name in TF2 checkpoints


class _Convolution(tf.Module):
    """Convolution, norm and maybe ReLU, padded alike on all sides."""

    def __init__(
        self, scope: str, hyperparams: ConvHyperparams, filters: int, kernel_size: int, stride: int = 1,
        activate: bool = True, kind: str = "convolutional_block",
    ):  # fmt: skip
        super().__init__()
        self.unit = ConvUnit(scope, hyperparams, filters, kernel_size, stride, explicit_padding=True, activate=activate)
        self._kind = kind

    def __call__(self, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        return self.unit(inputs, training)

    def tf2_names(self, numbering: Numbering, outer: str) -> Names:
        own = f"{outer}/{numbering.next(self._kind)}"
        return _unit_names(self.unit, numbering, own)

    def tf2_objects(self) -> ObjectTree:
        return {"pad": {}, **_unit_objects(self.unit), "relu": {}}


class _Residual(tf.Module):
    """Two 3x3 convolutions, added to the input or to its 1x1 projection; a ReLU after the sum."""

    def __init__(self, scope: str, hyperparams: ConvHyperparams, filters: int, stride: int = 1, project: bool = False):
        super().__init__()
        self.first = _Convolution(f"{scope}/conv_block", hyperparams, filters, 3, stride)
        self.second = ConvUnit(f"{scope}/conv", hyperparams, filters, 3, activate=False)
        self.skip = None
        if project:
            self.skip = _Convolution(f"{scope}/skip", hyperparams, filters, 1, stride, False, "skip_convolution")

    def __call__(self, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        outputs = self.second(self.first(inputs, training), training)
        return tf.nn.relu(outputs + (inputs if self.skip is None else self.skip(inputs, training)))

    def tf2_names(self, numbering: Numbering, outer: str) -> Names:
        own = f"{outer}/{numbering.next('residual_block')}"
        names = self.first.tf2_names(numbering, own) | _unit_names(self.second, numbering, own)
        return names if self.skip is None else names | self.skip.tf2_names(numbering, own)

    def tf2_objects(self) -> ObjectTree:
        skip = {} if self.skip is None else self.skip.tf2_objects()
        return {"conv_block": self.first.tf2_objects(), **_unit_objects(self.second), "skip": skip, "relu": {}}


class _Residuals(tf.Module):
    """Residual blocks in a row."""

    def __init__(self, scope: str, hyperparams: ConvHyperparams, blocks: list[tuple[int, int, bool]]):
        super().__init__()
        self.blocks = [
            _Residual(f"{scope}_{index}", hyperparams, filters, stride, project)
            for index, (filters, stride, project) in enumerate(blocks)
        ]

    def __call__(self, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        for block in self.blocks:
            inputs = block(inputs, training)
        return inputs

    def tf2_names(self, numbering: Numbering, outer: str) -> Names:
        return _merged(block.tf2_names(numbering, outer) for block in self.blocks)

    def tf2_objects(self) -> ObjectTree:
        return tf2_objects.listed(block.tf2_objects() for block in self.blocks)


class _Hourglass(tf.Module):
    """One level: a way past it at full resolution, and one down, through the next level and up again, added."""

    def __init__(self, scope: str, hyperparams: ConvHyperparams, filters: tuple[int, ...], blocks: tuple[int, ...]):
        super().__init__()
        outer, inner, count = filters[0], filters[1], blocks[0]
        self.around = _Residuals(f"{scope}/encoder_block1", hyperparams, [(outer, 1, False)] * count)
        down = [(inner, 2, True)] + [(inner, 1, False)] * (count - 1)
        self.down = _Residuals(f"{scope}/encoder_block2", hyperparams, down)
        self.inner: _Hourglass | _Residuals
        if len(filters) > 2:
            self.inner = _Hourglass(f"{scope}/inner_block", hyperparams, filters[1:], blocks[1:])
        else:
            self.inner = _Residuals(f"{scope}/inner_block", hyperparams, [(inner, 1, False)] * blocks[1])
        up = [(inner, 1, False)] * (count - 1) + [(outer, 1, inner != outer)]
        self.up = _Residuals(f"{scope}/decoder_block", hyperparams, up)

    def __call__(self, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        around = self.around(inputs, training)
        low = self.up(self.inner(self.down(inputs, training), training), training)
        return around + doubled(low)

    def tf2_names(self, numbering: Numbering, outer: str) -> Names:
        own = f"{outer}/{numbering.next('encoder_decoder_block')}"
        return _merged(part.tf2_names(numbering, own) for part in (self.around, self.down, self.inner, self.up))

    def tf2_objects(self) -> ObjectTree:
        inner = self.inner.tf2_objects()
        return {
            "merge_features": {},
            "encoder_block1": self.around.tf2_objects(),
            "encoder_block2": self.down.tf2_objects(),
            "inner_block": tf2_objects.listed([inner]) if isinstance(self.inner, _Hourglass) else inner,
            "decoder_block": self.up.tf2_objects(),
            "upsample": {},
        }


class _Intermediate(tf.Module):
    """From one hourglass's input and output to the next one's input."""

    def __init__(self, scope: str, hyperparams: ConvHyperparams, index: int, filters: int):
        super().__init__()
        self.of_input = _Convolution(f"{scope}/intermediate_conv1_{index}", hyperparams, filters, 1, activate=False)
        self.of_output = _Convolution(f"{scope}/intermediate_conv2_{index}", hyperparams, filters, 1, activate=False)
        self.residual = _Residual(f"{scope}/intermediate_residual_{index}", hyperparams, filters)

    def __call__(self, inputs: tf.Tensor, outputs: tf.Tensor, training: bool) -> tf.Tensor:
        return self.residual(
            tf.nn.relu(self.of_input(inputs, training) + self.of_output(outputs, training)), training
        )

    def tf2_names(self, numbering: Numbering, outer: str) -> Names:
        parts = (self.of_input, self.of_output, self.residual)
        return _merged(part.tf2_names(numbering, outer) for part in parts)


class Hourglass(tf.Module):
    """Feature levels `hourglass_0`, `hourglass_1`, ..., all at stride 4: the outputs of hourglasses one after another.

    The input's height and width have to be multiples of `multiple`.

    Args:
      scope: canonical scope, e.g. `FeatureExtractor/Hourglass`.
      architecture: sizes of the network.
      hyperparams: of every layer.
      downsample: False leaves the input's resolution as it is, for small inputs.
    """

    def __init__(
        self, scope: str, architecture: Architecture, hyperparams: ConvHyperparams = HYPERPARAMS,
        downsample: bool = True,
    ):  # fmt: skip
        super().__init__()
        filters = architecture.filters
        kernel_size, self._stride = (7, 2) if downsample else (3, 1)
        self._entry = "downsample" if downsample else "conv"
        self.multiple = self._stride**2 * 2 ** (len(filters) - 1)
        entry = f"{scope}/{self._entry}"
        self._first = _Convolution(f"{entry}/conv_block", hyperparams, architecture.first, kernel_size, self._stride)
        self._second = _Residual(f"{entry}/residual_block", hyperparams, filters[0], self._stride, project=True)
        count = range(architecture.hourglasses)
        self.levels = tuple(f"hourglass_{index}" for index in count)
        self._hourglasses = [
            _Hourglass(f"{scope}/hourglass_{index}", hyperparams, filters, architecture.blocks) for index in count
        ]
        self._outputs = [_Convolution(f"{scope}/output_conv_{index}", hyperparams, filters[0], 3) for index in count]
        self._between = [_Intermediate(scope, hyperparams, index, filters[0]) for index in count[:-1]]

    def blocks(self) -> list[Block]:
        """`conv` and `residual`, each halving the image, then `hourglass_<n>`, `output_<n>` and, before the next
        hourglass, `intermediate_<n>`."""
        found = [Block("conv", self._stride, self._first), Block("residual", self._stride, self._second)]
        for index, hourglass in enumerate(self._hourglasses):
            found.append(Block(f"hourglass_{index}", 1, hourglass))
            found.append(Block(f"output_{index}", 1, self._outputs[index]))
            if index < len(self._between):
                found.append(Block(f"intermediate_{index}", 1, self._between[index]))
        return found

    def tf2_names(self, numbering: Numbering, outer: str = _TF2_EXTRACTOR) -> Names:
        """Canonical scope of each layer -> full name of the layer in the OD API's TF2 checkpoints."""
        network = f"{outer}{numbering.next('hourglass_network')}"
        entry = f"{network}/{numbering.next(f'input_{self._entry}_block')}"
        names = self._first.tf2_names(numbering, entry) | self._second.tf2_names(numbering, entry)
        for hourglass, output in zip(self._hourglasses, self._outputs, strict=True):
            names |= hourglass.tf2_names(numbering, network) | output.tf2_names(numbering, network)
        return names | _merged(between.tf2_names(numbering, network) for between in self._between)

    def tf2_objects(self) -> ObjectTree:
        """What the extractor holds in the object graph of the OD API's TF2 checkpoints."""
        return {"_network": self.tf2_network()}

    def tf2_network(self) -> ObjectTree:
        """The network's own node there."""
        listed, between = tf2_objects.listed, self._between
        return {
            f"{self._entry}_input": {
                "conv_block": self._first.tf2_objects(), "residual_block": self._second.tf2_objects(),
            },
            "hourglass_network": listed(hourglass.tf2_objects() for hourglass in self._hourglasses),
            "output_conv": listed(output.tf2_objects() for output in self._outputs),
            "intermediate_conv1": listed(part.of_input.tf2_objects() for part in between),
            "intermediate_conv2": listed(part.of_output.tf2_objects() for part in between),
            "intermediate_residual": listed(part.residual.tf2_objects() for part in between),
            "intermediate_relu": {},
        }  # fmt: skip

    def __call__(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Normalised `[B, H, W, 3]` -> the feature levels `[B, H / 4, W / 4, C]` by name."""
        inputs = self._second(self._first(images, training), training)
        features = {}
        for index, hourglass in enumerate(self._hourglasses):
            outputs = self._outputs[index](hourglass(inputs, training), training)
            features[f"hourglass_{index}"] = outputs
            if index < len(self._between):
                inputs = self._between[index](inputs, outputs, training)
        return features


def _unit_names(unit: ConvUnit, numbering: Numbering, outer: str) -> Names:
    return {unit.conv.name: f"{outer}/{numbering.next('conv2d')}", unit.norm.name: f"{outer}/batchnorm"}


def _unit_objects(unit: ConvUnit) -> ObjectTree:
    return {"conv": tf2_objects.layer(unit.conv), "norm": tf2_objects.layer(unit.norm)}


def _merged(parts: Iterable[Names]) -> Names:
    merged: Names = {}
    for part in parts:
        merged |= part
    return merged
