"""Building blocks of the object graphs that the OD API's TF2 checkpoints have: layers, lists of them, Keras models."""

from __future__ import annotations

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


def functional(nodes: Iterable[ObjectTree]) -> ObjectTree:
    """A functional Keras model of these layers in order, after its input. A layer with variables is held twice."""
    model: ObjectTree = {"layer-0": {"_init_input_shape": {}}}
    weighted = 0
    for index, node in enumerate(nodes, start=1):
        if node:
            model[f"layer_with_weights-{weighted}"] = node
            weighted += 1
        model[f"layer-{index}"] = node
    return model
