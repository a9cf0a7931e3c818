"""EfficientDet's weighted bidirectional feature pyramid (Tan et al. 2020, arXiv:1911.09070) as the OD API builds it."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf
import tf_keras

from od_finetune.fields import ObjectTree
from od_finetune.models import tf2_objects
from od_finetune.models.layers import ACTIVATIONS, ConvHyperparams, ConvUnit, spatial_shape
from od_finetune.names import Rules

# Level n has stride 2^n. These are the ones that a backbone has.
FINEST_LEVEL, COARSEST_LEVEL = 1, 5

_EPSILON = 1e-4  # of the weights' sum

# Canonical name -> full name in the OD API's TF2 checkpoints, without the extractor's own scope in front.
_BIFPN = r"^FeatureExtractor/\w+/(bifpn/.*)"
TF2_RULES: Rules = [
    (rf"{_BIFPN}/(?:separable_)?conv/BatchNorm/", r"\1/batchnorm/"),
    (_BIFPN, r"\1"),
]


def _plain(weights: tf.Tensor) -> tf.Tensor:
    return weights


def _softmax_of_each(weights: tf.Tensor) -> tf.Tensor:
    """The OD API takes the softmax over an axis of length 1: always 1. What was trained so sums plainly."""
    return tf.nn.softmax(weights, axis=-1)


def _positive_shares(weights: tf.Tensor) -> tf.Tensor:
    positive = tf.nn.relu(weights)
    return positive / (tf.reduce_sum(positive) + _EPSILON)


# combine_method -> what becomes of a node's weights [inputs, 1] before its inputs are summed; None: it has none.
COMBINE_METHODS = {
    "sum": None,
    "weighted_sum": _plain,
    "attention": _softmax_of_each,
    "fast_attention": _positive_shares,
}


class Combine(tf_keras.layers.Layer):
    """The weighted sum of feature maps of one shape.

    Args:
      method: a key of COMBINE_METHODS.
      name: canonical scope.
    """

    def __init__(self, method: str, name: str):
        super().__init__(name=name)
        self._weighting = COMBINE_METHODS[method]
        self.bifpn_combine_weights: tf.Variable | None = None

    def build(self, input_shape: list[tf.TensorShape]) -> None:
        """One weight per input, 1 at first."""
        if self._weighting is not None:
            self.bifpn_combine_weights = self.add_weight(
                "bifpn_combine_weights", (len(input_shape), 1), initializer="ones"
            )
        super().build(input_shape)

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        """A list of `[B, H, W, C]` -> `[B, H, W, C]`."""
        if self._weighting is None:
            return tf.add_n(inputs)
        weights = tf.unstack(self._weighting(self.bifpn_combine_weights)[:, 0], num=len(inputs))
        return tf.add_n([weight * features for weight, features in zip(weights, inputs, strict=True)])


class _Node(NamedTuple):
    """A feature map: which others it is made of, by name."""

    name: str
    level: int
    inputs: tuple[str, ...]


def _nodes(low: int, high: int, coarsest: int, iterations: int) -> list[_Node]:
    """Coarser maps than the backbone has, then each iteration's way down and up again, as wide as a node's number.

    The finest level has no node of its own on the way up, the coarsest none on the way down.
    """
    nodes = [_Node(f"0_up_lvl_{level}", level, (f"0_up_lvl_{level - 1}",)) for level in range(coarsest + 1, high + 1)]
    above = f"0_up_lvl_{high}"
    for i in range(1, iterations + 1):
        for level in range(high - 1, low - 1, -1):
            before = "dn" if level == low and i > 1 else "up"
            nodes.append(_Node(f"{i}_dn_lvl_{level}", level, (f"{i - 1}_{before}_lvl_{level}", above)))
            above = nodes[-1].name
        for level in range(low + 1, high + 1):
            across = (f"{i}_dn_lvl_{level}",) if level < high else ()
            nodes.append(_Node(f"{i}_up_lvl_{level}", level, (f"{i - 1}_up_lvl_{level}", *across, above)))
            above = nodes[-1].name
    return nodes


class _Input(tf.Module):
    """Brings a feature map to a node's width (1x1 convolution) and resolution (max pooling, nearest neighbour)."""

    def __init__(self, convolution: ConvUnit | None, steps: int):
        super().__init__()
        self.convolution = convolution
        self.steps = steps  # levels up (coarser); -1: one down

    def tf2_objects(self) -> ObjectTree:
        """A pair of a number, which is no object, and the layers."""
        nodes = tf2_objects.unit(self.convolution) if self.convolution is not None else []
        return {"1": tf2_objects.listed([*nodes, {}] if self.steps else nodes)}

    def __call__(self, features: tf.Tensor, training: bool) -> tf.Tensor:
        if self.convolution is not None:
            features = self.convolution(features, training)
        if self.steps > 0:
            return tf.nn.max_pool2d(features, 3, 2, "SAME")
        if self.steps < 0:
            height, width = spatial_shape(features)
            return tf.image.resize(features, [2 * height, 2 * width], method="nearest")
        return features


class _Sum(tf.Module):
    """Combines a node's inputs, then activation, separable convolution, norm."""

    def __init__(self, scope: str, hyperparams: ConvHyperparams, filters: int, combine_method: str):
        super().__init__()
        self.combine = Combine(combine_method, f"{scope}/combine")
        self.smooth = ConvUnit(
            f"{scope}/post_combine/separable_conv", hyperparams, filters, 3, activate=False, separable=True
        )
        self._activation = ACTIVATIONS[hyperparams.activation]

    def __call__(self, inputs: list[tf.Tensor], training: bool) -> tf.Tensor:
        outputs = self.combine(_cut(inputs))
        return self.smooth(outputs if self._activation is None else self._activation(outputs), training)


class BidirectionalFeaturePyramid(tf.Module):
    """A way down the levels and up again, several times over. Every node sums what comes from above or below, and from
    the same level before it, with learnt weights, and passes it through an activation and a separable convolution.

    Args:
      scope: canonical scope of the backbone, e.g. `FeatureExtractor/EfficientnetB0`; the layers are in `<scope>/bifpn`.
      hyperparams: of the layers. Convolutions of inputs have no activation, the others have it in front.
      levels: names of the backbone's levels, finest first, each at half the resolution of the one before.
      low, high: the first level and the last, whose stride is 2^level; those the backbone does not have are pooled.
      iterations: how often it goes down and up.
      filters: channels of every map.
      combine_method: a key of COMBINE_METHODS.
    """

    def __init__(
        self,
        scope: str,
        hyperparams: ConvHyperparams,
        levels: tuple[str, ...],
        low: int,
        high: int,
        iterations: int,
        filters: int,
        combine_method: str = "fast_attention",
    ):
        super().__init__()
        self.levels = tuple(levels)
        self._sources = {f"0_up_lvl_{level}": name for level, name in enumerate(levels, start=low)}
        self._nodes = _nodes(low, high, low + len(levels) - 1, iterations)
        self._outputs = [node.name for node in self._nodes[low - high - 1 :]]
        level_of = {name: low + i for i, name in enumerate(self._sources)} | {n.name: n.level for n in self._nodes}
        self._modules: list[tuple[list[_Input], _Sum | None]] = []
        for number, node in enumerate(self._nodes):
            name, inputs = f"{scope}/bifpn/node_{number:02d}/{node.name}", []
            for source in node.inputs:
                convolution = f"{name}/input_{source}/1x1_pre_sample/conv"
                narrow = ConvUnit(convolution, hyperparams, filters, activate=False)
                inputs.append(_Input(narrow if source in self._sources else None, node.level - level_of[source]))
            total = _Sum(name, hyperparams, filters, combine_method) if len(inputs) > 1 else None
            self._modules.append((inputs, total))

    def tf2_objects(self, backbone: ObjectTree) -> ObjectTree:
        """The OD API's TF2 extractor, the backbone's attributes in it, in the object graph of its checkpoints."""
        listed = tf2_objects.listed
        inputs = [listed(each.tf2_objects() for each in inputs) for inputs, _ in self._modules]
        sums = [total for _, total in self._modules]
        return {
            "_bifpn_node_params": {},
            "_output_layer_names": {},
            "_output_layer_alias": {},
            **backbone,
            "_bifpn_stage": {
                "bifpn_node_config": listed({"inputs": {}} for _ in self._nodes),
                "bifpn_output_node_names": {},
                "node_input_blocks": listed(inputs),
                "node_combine_op": {str(i): _combine_object(each.combine) for i, each in enumerate(sums) if each},
                "node_post_combine_block": listed(
                    listed([{}, *tf2_objects.unit(each.smooth)] if each else []) for each in sums
                ),
            },
        }

    def __call__(self, features: dict[str, tf.Tensor], training: bool = False) -> list[tf.Tensor]:
        """Backbone levels by name -> maps `[B, h, w, filters]`, finest first."""
        maps = {name: features[level] for name, level in self._sources.items()}
        for node, (inputs, total) in zip(self._nodes, self._modules, strict=True):
            sampled = [each(maps[name], training) for each, name in zip(inputs, node.inputs, strict=True)]
            maps[node.name] = sampled[0] if total is None else total(sampled, training)
        return [maps[name] for name in self._outputs]


def _cut(maps: list[tf.Tensor]) -> list[tf.Tensor]:
    """Without the row or column that a map twice as large has more than a level whose size is odd: the first one."""
    height, width = spatial_shape(maps[0])
    return [maps[0], *(each[:, :height, :width, :] for each in maps[1:])]


def _combine_object(layer: Combine) -> ObjectTree:
    """A weighted one holds its variable under two names; one without weights holds the layer that adds."""
    held = tf2_objects.layer(layer)
    if not held:
        return {"_combine_op": {}}
    return {**held, "per_input_weights": held["bifpn_combine_weights"]}
