"""The second stage of a Faster R-CNN with a feature pyramid (Lin et al. 2017, arXiv:1612.03144): fully connected layers
on each region's crop."""

from __future__ import annotations

import tensorflow as tf
import tf_keras

from od_finetune.fields import ObjectTree
from od_finetune.models import tf2_objects
from od_finetune.models.layers import ConvHyperparams, dense_layer, norm_layer
from od_finetune.models.stages import Block
from od_finetune.names import Rules

_UNITS = (1024, 1024)
_DENSE = ConvHyperparams(initializer=tf_keras.initializers.GlorotUniform)  # Keras's defaults

# Canonical name -> full name in the OD API's TF2 checkpoints.
TF2_RULES: Rules = [
    (r"^SecondStageFeatureExtractor/\w+/fc_0/BatchNorm/", "freezable_batch_norm/"),
    (r"^SecondStageFeatureExtractor/\w+/fc_0/", "dense/"),
    (r"^SecondStageFeatureExtractor/\w+/fc_(\d+)/", r"dense_\1/"),
]


class FullyConnected(tf.Module):
    """Two fully connected layers with ReLU, `<scope>/fc_0` and `<scope>/fc_1`, and a norm between them.

    Of `hyperparams`, those of the pyramid, they take the norm only: the rest is Keras's defaults (Glorot, no weight
    decay), as the config has no field for it.
    """

    def __init__(self, scope: str, hyperparams: ConvHyperparams):
        super().__init__()
        self._first, self._last = (dense_layer(f"{scope}/fc_{i}", _DENSE, units) for i, units in enumerate(_UNITS))
        self._norm = norm_layer(f"{scope}/fc_0", hyperparams.norm)

    def blocks(self) -> list[Block]:
        """`fc_0` and `fc_1`."""
        norms = [] if self._norm is None else [self._norm]
        return [Block("fc_0", 1, [self._first, *norms]), Block("fc_1", 1, self._last)]

    def tf2_objects(self) -> ObjectTree:
        """Its node in the object graph of the OD API's TF2 checkpoints: a sequential model that flattens first and
        reshapes last."""
        layers = [layer for layer in (self._first, self._norm, self._last) if layer is not None]
        return tf2_objects.sequential([{}, *map(tf2_objects.layer, layers), {}])

    def __call__(self, crops: tf.Tensor, training: bool = False) -> tf.Tensor:
        """`[N, h, w, C]` -> `[N, 1, 1, D]`."""
        features = tf.nn.relu(self._first(tf.reshape(crops, [-1, crops.shape[1] * crops.shape[2] * crops.shape[3]])))
        if self._norm is not None:
            features = self._norm(features, training=training)
        return tf.nn.relu(self._last(features))[:, tf.newaxis, tf.newaxis, :]
