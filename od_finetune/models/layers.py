"""Convolution + norm + activation as a config's hyperparams describe them, and a walk over a model's layers.

Every weighted layer is a tf_keras layer whose `name` is its full canonical scope (`FeatureExtractor/.../Conv2d_0`,
its batch norm `FeatureExtractor/.../Conv2d_0/BatchNorm`), so that a variable's canonical name never depends on
what the framework makes of name scopes: it is `layer.name + "/" + leaf`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import tensorflow as tf
import tf_keras

from od_finetune.errors import UserError

Regularizer = Callable[[tf.Tensor], tf.Tensor]
KernelSize = int | tuple[int, int]  # of a square window, or height and width

# Keras's name of a weight -> the leaf of its canonical (TF1) name; what is not here keeps its name.
_LEAVES = {
    "kernel": "weights",
    "depthwise_kernel": "depthwise_weights",
    "pointwise_kernel": "pointwise_weights",
    "bias": "biases",
}
_WEIGHT_ATTRIBUTES = (
    "kernel",
    "depthwise_kernel",
    "pointwise_kernel",
    "bias",
    "gamma",
    "beta",
    "moving_mean",
    "moving_variance",
    "bifpn_combine_weights",
)


class BatchNorm(NamedTuple):
    """Batch normalisation (Ioffe & Szegedy 2015). `decay` weighs the old moving statistics at each update."""

    decay: float = 0.999
    epsilon: float = 0.001
    center: bool = True
    scale: bool = False
    train: bool = True  # False: the moving statistics normalise even while training, and stay as they are
    synchronized: bool = False  # statistics over all replicas


class GroupNorm(NamedTuple):
    """Group normalisation (Wu & He 2018) with the defaults of TF1's contrib layer."""

    groups: int = 32
    epsilon: float = 1e-6


class ConvHyperparams(NamedTuple):
    """What a config's Hyperparams message says about convolutions."""

    initializer: Callable[[], tf_keras.initializers.Initializer]  # called once per layer: see `_conv_arguments`
    depthwise_initializer: Callable[[], tf_keras.initializers.Initializer] | None = None  # None: as the others
    regularizer: Regularizer | None = None
    depthwise_regularizer: Regularizer | None = None
    activation: str = "relu"  # a key of ACTIVATIONS
    norm: BatchNorm | GroupNorm | None = None
    force_use_bias: bool = False
    plain_pointwise: bool = False  # the 1x1 half of separable convolutions: Glorot's initialiser, no regulariser

    def frozen_batchnorm(self) -> ConvHyperparams:
        """The same with batch norm that always uses its moving statistics."""
        return self._replace(norm=self.norm._replace(train=False)) if isinstance(self.norm, BatchNorm) else self


# tf_keras divides the deviation of its truncated normal by that of a normal cut at two deviations; slim's initialiser
# multiplied the variance by 1.3 instead. A scale times this factor makes the former equal the latter.
SLIM_VARIANCE = 1.3 * 0.87962566103423978**2


ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor] | None] = {
    "none": None,
    "relu": tf.nn.relu,
    "relu6": tf.nn.relu6,
    "swish": tf.nn.silu,
    "sigmoid": tf.nn.sigmoid,
    # Piecewise linear (Howard et al. 2019, arXiv:1905.02244); the gate's sixth has the digits of the published nets.
    "hard_swish": lambda x: x * tf.nn.relu6(x + 3.0) * (1.0 / 6.0),
    "hard_sigmoid": lambda x: tf.nn.relu6(x + 3.0) * 0.16667,
}


def fixed_padding(inputs: tf.Tensor, kernel_size: int) -> tf.Tensor:
    """Pads `[B, H, W, C]` by kernel_size - 1 in all, whatever the size of the image.

    With VALID convolution after it, the result has the size that SAME gives, but the window's position does not
    depend on whether the input's size is even, as it does with SAME at stride 2.
    """
    before = (kernel_size - 1) // 2
    after = kernel_size - 1 - before
    return tf.pad(inputs, [[0, 0], [before, after], [before, after], [0, 0]])


def pad_to_multiple(images: tf.Tensor, multiple: int) -> tf.Tensor:
    """Zero-pads `[..., H, W, C]` at the bottom and the right so that H and W are multiples of `multiple`."""
    if multiple <= 1:
        return images
    height, width = spatial_shape(images)
    rows, columns = -height % multiple, -width % multiple
    if isinstance(rows, int) and isinstance(columns, int) and rows == columns == 0:
        return images
    return tf.pad(images, [[0, 0]] * (images.shape.rank - 3) + [[0, rows], [0, columns], [0, 0]])


def spatial_shape(images: tf.Tensor) -> tuple[int | tf.Tensor, int | tf.Tensor]:
    """Height and width of `[..., H, W, C]`: ints where known while tracing, else scalar int32 tensors."""
    static = images.shape[-3:-1]
    dynamic = None if static.is_fully_defined() else tf.shape(images)
    height, width = (
        size if size is not None else dynamic[index] for size, index in zip(static, (-3, -2), strict=True)
    )
    return height, width


class ConvUnit(tf.Module):
    """Convolution (full or depthwise), then norm and activation.

    Args:
      scope: canonical scope of the convolution; the norm is `<scope>/BatchNorm` or `<scope>/GroupNorm`.
      hyperparams: initialiser, regulariser, norm and activation.
      filters: output channels; None makes it depthwise.
      kernel_size, stride: of the window.
      explicit_padding: pad by the kernel's size first, whatever the size of the input; see `fixed_padding`.
      activate: False leaves the activation out (a linear bottleneck).
      separable: depthwise, then 1x1 to `filters`, as one layer with nothing in between.
      padding: `same`, or `valid` for none; not with `explicit_padding`.
      rate: of the dilation (atrous convolution); only at stride 1.
      depth_multiplier: of a separable convolution, channels that its depthwise half makes of one.
    """

    def __init__(
        self,
        scope: str,
        hyperparams: ConvHyperparams,
        filters: int | None,
        kernel_size: KernelSize = 1,
        stride: int = 1,
        explicit_padding: bool = False,
        activate: bool = True,
        separable: bool = False,
        padding: str = "same",
        rate: int = 1,
        depth_multiplier: int = 1,
    ):
        super().__init__()
        self._padding = rate * (kernel_size - 1) + 1 if explicit_padding and kernel_size > 1 else 0
        self.conv = conv_layer(
            scope,
            hyperparams,
            filters,
            kernel_size,
            stride,
            padding="valid" if self._padding else padding,
            use_bias=hyperparams.norm is None or hyperparams.force_use_bias,
            separable=separable,
            rate=rate,
            depth_multiplier=depth_multiplier,
        )
        self.norm = norm_layer(scope, hyperparams.norm)
        self._activation = ACTIVATIONS[hyperparams.activation] if activate else None
        self.explicit_padding, self.activates = self._padding > 0, activate

    def __call__(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """`[B, H, W, C]` -> `[B, h, w, filters]`. In training, batch norm updates its moving statistics here."""
        outputs = self.conv(fixed_padding(inputs, self._padding) if self._padding else inputs)
        if self.norm is not None:
            outputs = self.norm(outputs, training=training)
        return outputs if self._activation is None else self._activation(outputs)


def conv_layer(
    scope: str,
    hyperparams: ConvHyperparams,
    filters: int | None,
    kernel_size: KernelSize,
    stride: int = 1,
    padding: str = "same",
    use_bias: bool = True,
    bias_init: float = 0.0,
    separable: bool = False,
    rate: int = 1,
    depth_multiplier: int = 1,
) -> tf_keras.layers.Layer:
    """A bare convolution named `scope`; depthwise where `filters` is None, depthwise and 1x1 where `separable`."""
    shared = dict(
        strides=stride,
        dilation_rate=rate,
        padding=padding,
        use_bias=use_bias,
        bias_initializer=tf_keras.initializers.Constant(bias_init),
        name=scope,
    )
    # A fresh initialiser per layer: tf_keras's draw the same numbers at every call of one instance.
    depthwise_initializer = hyperparams.depthwise_initializer or hyperparams.initializer
    if filters is None:
        return tf_keras.layers.DepthwiseConv2D(
            kernel_size,
            depthwise_initializer=depthwise_initializer(),
            depthwise_regularizer=hyperparams.depthwise_regularizer,
            **shared,
        )
    if separable:
        plain = hyperparams.plain_pointwise
        return tf_keras.layers.SeparableConv2D(
            filters,
            kernel_size,
            depth_multiplier=depth_multiplier,
            depthwise_initializer=depthwise_initializer(),
            depthwise_regularizer=hyperparams.depthwise_regularizer,
            pointwise_initializer=tf_keras.initializers.GlorotUniform() if plain else hyperparams.initializer(),
            pointwise_regularizer=None if plain else hyperparams.regularizer,
            **shared,
        )
    return tf_keras.layers.Conv2D(
        filters,
        kernel_size,
        kernel_initializer=hyperparams.initializer(),
        kernel_regularizer=hyperparams.regularizer,
        **shared,
    )


def dense_layer(scope: str, hyperparams: ConvHyperparams, units: int) -> tf_keras.layers.Dense:
    """A bare fully connected layer named `scope`."""
    return tf_keras.layers.Dense(
        units, kernel_initializer=hyperparams.initializer(), kernel_regularizer=hyperparams.regularizer, name=scope
    )


def norm_layer(
    scope: str, norm: BatchNorm | GroupNorm | None, variant: str = "", name: str = ""
) -> tf_keras.layers.Layer | None:
    """The norm that follows the convolution `scope`. Batch norm is the fused kernel where tf_keras can use it.

    `variant` is the end of its name where a convolution has several, e.g. `/feature_0`; `name` all of it, where it does
    not follow from the convolution's.

    A batch norm layer whose `trainable` is False runs in inference mode, whatever `training` says; whether its gamma
    and beta train is for the gradient tape to say. One that the config has in inference mode (`train` is False) starts
    so, and says so in the attribute `keeps_statistics`.
    """
    if isinstance(norm, BatchNorm):
        layer = tf_keras.layers.BatchNormalization(
            momentum=norm.decay,
            epsilon=norm.epsilon,
            center=norm.center,
            scale=norm.scale,
            synchronized=norm.synchronized,
            name=name or f"{scope}/BatchNorm{variant}",
        )
        layer.trainable = norm.train
        layer.keeps_statistics = not norm.train
        return layer
    if isinstance(norm, GroupNorm):
        return _GroupNormalization(norm.groups, epsilon=norm.epsilon, name=name or f"{scope}/GroupNorm{variant}")
    return None


class _GroupNormalization(tf_keras.layers.GroupNormalization):
    """tf_keras's, which tells the user neither which layer nor what to do."""

    def build(self, input_shape: tf.TensorShape) -> None:
        channels = input_shape[-1]
        if channels % self.groups:
            raise UserError(
                f"conv_hyperparams.group_norm: {self.name} has {channels} channels, which do not divide into "
                f"{self.groups} groups; use batch_norm, or make the layer wider (depth_multiplier, min_depth)"
            )
        super().build(input_shape)


def _layers(value: object) -> Iterator[tf_keras.layers.Layer]:
    """Layers in the order in which modules were given them, which is that of the data's way through them."""
    if isinstance(value, tf_keras.layers.Layer):
        yield value
    elif isinstance(value, tf.Module):
        for name, attribute in vars(value).items():
            if not name.startswith("_self_"):  # TensorFlow's own book-keeping
                yield from _layers(attribute)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _layers(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _layers(item)


def weighted_layers(module: tf.Module) -> dict[str, tf_keras.layers.Layer]:
    """Every layer of a built module that owns variables, by canonical scope."""
    layers: dict[str, tf_keras.layers.Layer] = {}
    for layer in _layers(module):
        if layer.weights and layers.setdefault(layer.name, layer) is not layer:
            raise UserError(f"two layers of the model are named {layer.name}; a canonical scope must be unique")
    return layers


def is_frozen(module: tf.Module) -> bool:
    """Whether training changes nothing in any layer of a built module; see `fields.Detector.weighted_layers`."""
    return all(getattr(layer, "frozen", False) for layer in weighted_layers(module).values())


def weight_leaves(layer: tf_keras.layers.Layer) -> dict[str, str]:
    """tf_keras's name -> leaf of the canonical name, of every variable of one layer."""
    there = (attribute for attribute in _WEIGHT_ATTRIBUTES if getattr(layer, attribute, None) is not None)
    return {attribute: _LEAVES.get(attribute, attribute) for attribute in there}


def layer_variables(layer: tf_keras.layers.Layer) -> dict[str, tf.Variable]:
    """The variables of one layer by the leaf of their canonical name."""
    return {leaf: getattr(layer, attribute) for attribute, leaf in weight_leaves(layer).items()}


def named_variables(module: tf.Module) -> dict[str, tf.Variable]:
    """Every variable of a built module by canonical name, moving statistics included."""
    return {
        f"{scope}/{leaf}": variable
        for scope, layer in weighted_layers(module).items()
        for leaf, variable in layer_variables(layer).items()
    }


def regularizers(module: tf.Module) -> dict[str, Regularizer]:
    """Regulariser by canonical variable name, for the variables that have one."""
    found = {}
    for scope, layer in weighted_layers(module).items():
        for attribute in ("kernel", "depthwise_kernel", "pointwise_kernel"):
            name = attribute.replace("_kernel", "_regularizer") if "_" in attribute else "kernel_regularizer"
            regularizer = getattr(layer, name, None)
            if regularizer is not None and getattr(layer, attribute, None) is not None:
                found[f"{scope}/{_LEAVES[attribute]}"] = regularizer
    return found
