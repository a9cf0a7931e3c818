"""CenterNet's ways from a backbone's coarse levels to the one map, at stride 4, that its heads look at."""

from __future__ import annotations

import tensorflow as tf
import tf_keras

from od_finetune.fields import ObjectTree
from od_finetune.models import tf2_objects
from od_finetune.models.keras_names import Numbering
from od_finetune.models.layers import BatchNorm, ConvHyperparams, ConvUnit, conv_layer, norm_layer
from od_finetune.models.upsampling import doubled

# What tf_keras builds layers with that are told nothing.
HYPERPARAMS = ConvHyperparams(
    initializer=tf_keras.initializers.GlorotUniform,
    norm=BatchNorm(decay=0.99, epsilon=1e-3, center=True, scale=True),
    force_use_bias=True,
    plain_pointwise=True,
)


class _Transposed(tf.Module):
    """A 3x3 convolution, transposed: twice the resolution. With bias, norm and ReLU."""

    def __init__(self, scope: str, hyperparams: ConvHyperparams, filters: int):
        super().__init__()
        self.conv = tf_keras.layers.Conv2DTranspose(
            filters, 3, strides=2, padding="same", kernel_initializer=hyperparams.initializer(), name=scope
        )
        self.norm = norm_layer(scope, hyperparams.norm)

    def __call__(self, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        return tf.nn.relu(self.norm(self.conv(inputs), training=training))


class Deconvolutions(tf.Module):
    """For each number of filters a convolution and, at twice the resolution, a transposed one (Xiao et al. 2018,
    arXiv:1804.06208).

    Args:
      scope: canonical scope of the backbone; the layers are in `<scope>/deconv`.
      hyperparams: of all layers.
      filters: coarsest first.
      kernel_size: of the plain convolutions.
    """

    def __init__(
        self, scope: str, hyperparams: ConvHyperparams = HYPERPARAMS, filters: tuple[int, ...] = (256, 128, 64),
        kernel_size: int = 3,
    ):  # fmt: skip
        super().__init__()
        self._steps = [
            (
                ConvUnit(f"{scope}/deconv/conv_{number}", hyperparams, width, kernel_size),
                _Transposed(f"{scope}/deconv/transposed_{number}", hyperparams, width),
            )
            for number, width in enumerate(filters, start=1)
        ]

    def __call__(self, features: dict[str, tf.Tensor], training: bool = False) -> list[tf.Tensor]:
        """The backbone's levels by name, of which the last counts -> one map `[B, h, w, C]`."""
        outputs = list(features.values())[-1]
        for plain, transposed in self._steps:
            outputs = transposed(plain(outputs, training), training)
        return [outputs]

    def tf2_names(self, numbering: Numbering) -> dict[str, str]:
        """Canonical scope of each layer -> full name in the OD API's TF2 checkpoints."""
        names = {}
        for step in self._steps:
            for part, kind in zip(step, ("conv2d", "conv2d_transpose"), strict=True):
                names[part.conv.name] = numbering.next(kind)
                names[part.norm.name] = numbering.next("batch_normalization")
        return names

    def tf2_layers(self) -> list[ObjectTree]:
        """The layers after the backbone in the object graph of those checkpoints; each norm is followed by a ReLU."""
        units = [part for step in self._steps for part in step]
        return [node for part in units for node in (*map(tf2_objects.layer, (part.conv, part.norm)), {})]


class TopDown(tf.Module):
    """A feature pyramid of which only the finest level is kept, so that the levels need not be equally wide.

    From the coarsest level's 1x1 projection down: twice the size, plus the next finer level's 1x1 projection, then a
    3x3 convolution to the width of the level that comes next.

    Args:
      scope: canonical scope of the backbone; the layers are in `<scope>/fpn`.
      levels: the backbone's levels, finest first.
      filters: of the sums, coarsest first; one fewer than levels.
      hyperparams: of all layers; projections have no norm.
      separable: 3x3 convolutions are depthwise and 1x1.
      interpolation: how maps are enlarged, see `upsampling.METHODS`.
    """

    def __init__(
        self, scope: str, levels: tuple[str, ...], filters: tuple[int, ...] = (256, 128, 64),
        hyperparams: ConvHyperparams = HYPERPARAMS, separable: bool = False, interpolation: str = "nearest",
    ):  # fmt: skip
        super().__init__()
        self._levels, self._separable, self._interpolation = tuple(levels), separable, interpolation

        def projection(number: int, width: int) -> tf_keras.layers.Layer:
            return conv_layer(f"{scope}/fpn/projection_{number}", hyperparams, width, 1)

        self._top = projection(len(levels), filters[0])
        numbers = range(len(levels) - 1, 0, -1)
        self._down = [
            (
                projection(number, width),
                ConvUnit(f"{scope}/fpn/smoothing_{number}", hyperparams, after, 3, separable=separable),
            )
            for number, width, after in zip(numbers, filters, (*filters[1:], filters[-1]), strict=True)
        ]

    def __call__(self, features: dict[str, tf.Tensor], training: bool = False) -> list[tf.Tensor]:
        """The backbone's levels by name -> one map `[B, h, w, C]`."""
        outputs = self._top(features[self._levels[-1]])
        for (project, smooth), level in zip(self._down, reversed(self._levels[:-1]), strict=True):
            outputs = smooth(doubled(outputs, self._interpolation) + project(features[level]), training)
        return [outputs]

    def tf2_names(self, numbering: Numbering) -> dict[str, str]:
        """Canonical scope of each layer -> full name in the OD API's TF2 checkpoints."""
        names = {self._top.name: numbering.next("conv2d")}
        for project, smooth in self._down:
            names[project.name] = numbering.next("conv2d")
            names[smooth.conv.name] = numbering.next("separable_conv2d" if self._separable else "conv2d")
            names[smooth.norm.name] = numbering.next("batch_normalization")
        return names

    def tf2_layers(self) -> list[ObjectTree]:
        """The layers after the backbone in the object graph of those checkpoints; enlarging, the sum and ReLU are
        layers, too."""
        layer = tf2_objects.layer
        nodes = [layer(self._top)]
        for project, smooth in self._down:
            nodes += [{}, layer(project), {}, layer(smooth.conv), layer(smooth.norm), {}]
        return nodes
