"""What CenterNet's feature extractors are in the object graph of the OD API's TF2 checkpoints: `(backbone, neck) -> the
extractor's attributes`."""

from __future__ import annotations

import tensorflow as tf

from od_finetune.fields import ObjectTree
from od_finetune.models import tf2_objects


def hourglass(backbone: tf.Module, neck: tf.Module) -> ObjectTree:
    """A model of its own kind."""
    del neck
    return backbone.tf2_objects()


def resnet(backbone: tf.Module, neck: tf.Module) -> ObjectTree:
    """The classification net without its classifier, the part of it up to the output, and all of the extractor; three
    models that share layers."""
    inputs: ObjectTree = {}
    nodes = backbone.tf2_layers()
    unused = backbone.tf2_unused() if hasattr(backbone, "tf2_unused") else []
    part = tf2_objects.functional(nodes, inputs)
    return {
        "_base_model": tf2_objects.functional([*nodes, *unused], inputs),
        "_resnet_model": part,
        "_feature_extractor_model": tf2_objects.functional([part, *neck.tf2_layers()], inputs),
    }


def mobilenet_fpn(backbone: tf.Module, neck: tf.Module) -> ObjectTree:
    """As of a ResNet."""
    base = backbone.tf2_objects()
    part = dict(base)
    whole = tf2_objects.functional([part, *neck.tf2_layers()], base["layer-0"])
    return {"_base_model": base, "_fpn_model": part, "_feature_extractor_model": whole}


def mobilenet(backbone: tf.Module, neck: tf.Module) -> ObjectTree:
    """One model, of which the classification net is a layer."""
    base = backbone.tf2_objects()
    return {"_network": tf2_objects.functional([base, *neck.tf2_layers()], base["layer-0"])}
