"""ResNet V2 with 50 or 101 layers (He et al. 2016, arXiv:1603.05027): bottleneck units, norm and ReLU before the
convolutions; as tf_keras.applications builds it, under the names of TF1's slim."""

from __future__ import annotations

import tensorflow as tf
import tf_keras

from od_finetune.fields import ObjectTree
from od_finetune.models import tf2_objects
from od_finetune.models.backbones.resnet_v1 import UNITS, pooled
from od_finetune.models.layers import BatchNorm, ConvHyperparams, ConvUnit, conv_layer
from od_finetune.models.stages import Block
from od_finetune.names import Vocabulary

_BASE_FILTERS = (64, 128, 256, 512)  # of a bottleneck's inner convolutions; its output has four times as many

HYPERPARAMS = ConvHyperparams(
    initializer=tf_keras.initializers.GlorotUniform,
    norm=BatchNorm(decay=0.99, epsilon=1.001e-5, center=True, scale=True),
)

_LAYERS = {
    "preact/": "preact_bn",
    "shortcut/": "0_conv",
    "conv1/BatchNorm/": "1_bn",
    "conv1/": "1_conv",
    "conv2/BatchNorm/": "2_bn",
    "conv2/": "2_conv",
    "conv3/": "3_conv",
}
# Canonical name -> full name in the OD API's TF2 checkpoints, which follow tf_keras.applications.ResNet50V2: its blocks
# are counted from 2 on.
TF2_RULES = [
    (r"^FeatureExtractor/resnet_v2_\d+/conv1/", "conv1_conv/"),
    (r"^FeatureExtractor/resnet_v2_\d+/postnorm/", "post_bn/"),
    *(
        (rf"^.*/resnet_v2_\d+/block{block}/unit_(\d+)/bottleneck_v2/{own}", rf"conv{block + 1}_block\1_{keras}/")
        for block in (1, 2, 3, 4)
        for own, keras in _LAYERS.items()
    ),
]
VOCABULARIES: tuple[Vocabulary, ...] = ()


def _norm(scope: str, norm: BatchNorm) -> tf_keras.layers.Layer:
    """A norm that belongs to no convolution; see `layers.norm_layer` for its attributes."""
    layer = tf_keras.layers.BatchNormalization(
        momentum=norm.decay, epsilon=norm.epsilon, center=norm.center, scale=norm.scale, name=scope
    )
    layer.trainable, layer.keeps_statistics = norm.train, not norm.train
    return layer


class _Bottleneck(tf.Module):
    """1x1, 3x3 and 1x1 convolution to four times as many filters, of the normalised input, added to the input or, in
    a block's first unit, to its 1x1 projection. The last two convolutions outside have biases and no norm."""

    def __init__(self, scope: str, hyperparams: ConvHyperparams, inner: int, project: bool, stride: int):
        super().__init__()
        self.preact = _norm(f"{scope}/preact", hyperparams.norm)
        self.shortcut = conv_layer(f"{scope}/shortcut", hyperparams, 4 * inner, 1) if project else None
        self.conv1 = ConvUnit(f"{scope}/conv1", hyperparams, inner)
        self.conv2 = ConvUnit(f"{scope}/conv2", hyperparams, inner, 3, stride, explicit_padding=True)
        self.conv3 = conv_layer(f"{scope}/conv3", hyperparams, 4 * inner, 1)
        self._stride = stride

    def __call__(self, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        hidden = tf.nn.relu(self.preact(inputs, training=training))
        shortcut = inputs if self.shortcut is None else self.shortcut(hidden)
        if self._stride > 1:
            shortcut = shortcut[:, :: self._stride, :: self._stride]
        return shortcut + self.conv3(self.conv2(self.conv1(hidden, training), training))

    def tf2_objects(self) -> list[ObjectTree]:
        """Its layers in the object graph of the OD API's TF2 checkpoints, sorted by their distance from the output.
        The input of a strided unit without projection is pooled there."""
        layer = tf2_objects.layer
        nodes = [layer(self.preact), {}, *tf2_objects.unit(self.conv1), *tf2_objects.unit(self.conv2)]
        if self.shortcut is not None:
            nodes.append(layer(self.shortcut))
        elif self._stride > 1:
            nodes.append({})
        return [*nodes, layer(self.conv3), {}]


class ResnetV2(tf.Module):
    """Feature level `block4`, at stride 32: the sum of the last unit, before the norm that would follow.

    That norm is there nevertheless, as in TF2 checkpoints; nothing reaches it, so nothing changes it.

    Args:
      scope: canonical scope, e.g. `FeatureExtractor/resnet_v2_50`.
      hyperparams: of every layer.
      num_layers: 50 or 101.
      width: of the first convolution; all others are wider in proportion.
    """

    def __init__(self, scope: str, hyperparams: ConvHyperparams = HYPERPARAMS, num_layers: int = 50, width: int = 64):
        super().__init__()
        bare = hyperparams._replace(norm=None)
        self._root = ConvUnit(f"{scope}/conv1", bare, width, 7, 2, explicit_padding=True, activate=False)
        self._blocks = []
        for block, (count, filters) in enumerate(zip(UNITS[num_layers], _BASE_FILTERS, strict=True), start=1):
            self._blocks.append([
                _Bottleneck(
                    f"{scope}/block{block}/unit_{unit}/bottleneck_v2",
                    hyperparams,
                    filters * width // _BASE_FILTERS[0],
                    project=unit == 1,
                    stride=2 if unit == count and block < len(_BASE_FILTERS) else 1,
                )
                for unit in range(1, count + 1)
            ])
        self._postnorm = _norm(f"{scope}/postnorm", hyperparams.norm)

    def blocks(self) -> list[Block]:
        """`conv1` (of the first stage), then `block<n>/unit_<m>`; a block's last unit is `block<n>`, too."""
        found = [Block("conv1", 2, self._root)]
        for number, units in enumerate(self._blocks, start=1):
            for index, unit in enumerate(units, start=1):
                last = index == len(units)
                modules = [unit, self._postnorm] if last and number == len(self._blocks) else unit
                # The pooling after the root, then the stride of the last unit of the block before.
                found.append(Block(f"block{number}/unit_{index}", 2 if index == 1 else 1, modules,
                                   (f"block{number}",) if last else ()))
        return found

    def tf2_layers(self) -> list[ObjectTree]:
        """Its layers in the object graph of the OD API's TF2 checkpoints, up to its output."""
        nodes = [*tf2_objects.unit(self._root)[:2], {}, {}]  # the last ones pad and pool
        return nodes + [node for units in self._blocks for unit in units for node in unit.tf2_objects()]

    def tf2_unused(self) -> list[ObjectTree]:
        """The layers that follow there."""
        return [tf2_objects.layer(self._postnorm), {}]

    def __call__(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Normalised `[B, H, W, 3]` -> the feature level `[B, h, w, C]` by name."""
        outputs = pooled(self._root(images, training), pad=True)
        for units in self._blocks:
            for unit in units:
                outputs = unit(outputs, training)
        if not self._postnorm.built:
            self._postnorm.build(outputs.shape)
        return {"block4": outputs}
