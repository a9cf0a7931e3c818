"""Building blocks of the object graphs that the OD API's TF2 checkpoints have: layers, lists of them, Keras models."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import tf_keras

from od_finetune.errors import UserError
from od_finetune.fields import ObjectTree
from od_finetune.models.layers import ConvUnit, weight_leaves


def layer(keras_layer: tf_keras.layers.Layer) -> ObjectTree:
    """A layer with its variables.

    Raises:
      UserError: it is a group norm, which the OD API's TF2 half does not have.
    """
    if isinstance(keras_layer, tf_keras.layers.GroupNormalization):
        raise UserError(
            f"{keras_layer.name}: conv_hyperparams.group_norm has no counterpart in a TF2 installation of the OD API"
        )
    axis: ObjectTree = {"axis": {}} if isinstance(keras_layer, tf_keras.layers.BatchNormalization) else {}
    return axis | {
        attribute: f"{keras_layer.name}/{leaf}" for attribute, leaf in weight_leaves(keras_layer).items()
    }


def unit(conv_unit: ConvUnit) -> list[ObjectTree]:
    """The layers of a convolution with norm and activation. Padding, activation and a norm that is none are layers,
    too, which hold nothing but are counted."""
    nodes: list[ObjectTree] = [{}] * conv_unit.explicit_padding
    nodes.append(layer(conv_unit.conv))
    nodes.append(layer(conv_unit.norm) if conv_unit.norm is not None else {})
    return nodes + [{}] * conv_unit.activates


def layers_of(part: ConvUnit | tf_keras.layers.Layer) -> list[ObjectTree]:
    """The layers that either is."""
    return unit(part) if isinstance(part, ConvUnit) else [layer(part)]


def listed(nodes: Iterable[ObjectTree]) -> ObjectTree:
    """A list of objects."""
    return {str(index): node for index, node in enumerate(nodes)}


def functional(nodes: Iterable[ObjectTree], inputs: ObjectTree | None = None) -> ObjectTree:
    """A functional Keras model of these layers in order, after its input. A layer with variables is held twice.

    `inputs` is the input's node where that is not one of the model's own, made by `Input` from a list of sizes.
    """
    return _numbered([{"_init_input_shape": {}} if inputs is None else inputs, *nodes])


def sequential(nodes: Iterable[ObjectTree]) -> ObjectTree:
    """A sequential Keras model of these layers."""
    return _numbered(nodes)


def _numbered(nodes: Iterable[ObjectTree]) -> ObjectTree:
    model: ObjectTree = {}
    weighted = 0
    for index, node in enumerate(nodes):
        if has_variables(node):
            model[f"layer_with_weights-{weighted}"] = node
            weighted += 1
        model[f"layer-{index}"] = node
    return model


def has_variables(node: ObjectTree | str) -> bool:
    """Whether a variable hangs below an object."""
    return isinstance(node, str) or any(map(has_variables, node.values()))


@dataclasses.dataclass(eq=False)
class Node:
    """A layer of a functional model that branches, and the layers it takes."""

    tree: ObjectTree
    inputs: tuple[Node, ...] = ()


def chained(nodes: Iterable[ObjectTree], source: Node) -> Node:
    """The last of these layers, one after the other behind `source`."""
    for tree in nodes:
        source = Node(tree, (source,))
    return source


def branching(output: Node) -> ObjectTree:
    """A functional Keras model with this output and one input, which is the node without inputs.

    Keras counts layers by how far they are from the output, the longest way; those as far as each other in the order
    in which a walk from the output back, depth first, meets them.
    """
    met, left = {output: 0}, []
    path = [(output, iter(output.inputs))]
    while path:
        node, rest = path[-1]
        new = next((each for each in rest if each not in met), None)
        if new is None:
            left.append(node)
            path.pop()
        else:
            met[new] = len(met)
            path.append((new, iter(new.inputs)))
    distances = {output: 0}
    for node in reversed(left):
        for each in node.inputs:
            distances[each] = max(distances[node] + 1, distances.get(each, 0))
    order = sorted(met, key=lambda node: (-distances[node], met[node]))
    return functional((node.tree for node in order if node.inputs), inputs={})
