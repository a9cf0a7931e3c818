"""Region proposal network (Ren et al. 2015, arXiv:1506.01497): a convolution over the feature maps, and on it whether
there is an object at each anchor, and where."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf
import tf_keras

from od_finetune.fields import BOX_ENCODINGS, CLASS_PREDICTIONS, ObjectTree
from od_finetune.models import tf2_objects
from od_finetune.models.heads.dense import flatten_predictions
from od_finetune.models.layers import ConvHyperparams, conv_layer, norm_layer
from od_finetune.names import Rules

CONV_SCOPE, SCOPE = "Conv", "FirstStageBoxPredictor"
_OBJECTNESS = 2  # background and object

# Canonical name -> full name in the OD API's TF2 checkpoints.
TF2_RULES: Rules = [
    (rf"^{CONV_SCOPE}/BatchNorm/", "RPNBatchNorm/"),
    (rf"^{CONV_SCOPE}/", "RPNConv/"),
    (rf"^{SCOPE}/BoxPredictor_(\d+)/BoxEncodingPredictor/", rf"{SCOPE}/ConvolutionalBoxHead_\1/BoxEncodingPredictor/"),
    (rf"^{SCOPE}/BoxPredictor_(\d+)/ClassPredictor/", rf"{SCOPE}/ConvolutionalClassHead_\1/ClassPredictor/"),
    (rf"^{SCOPE}/BoxEncodingPredictor/", rf"{SCOPE}/ConvolutionalBoxHead_0/BoxEncodingPredictor/"),
    (rf"^{SCOPE}/ClassPredictor/", rf"{SCOPE}/ConvolutionalClassHead_0/ClassPredictor/"),
]


class RpnOptions(NamedTuple):
    """The fields `first_stage_box_predictor_...` of FasterRcnn."""

    hyperparams: ConvHyperparams  # the activation is ReLU6, whatever they say, as in the OD API
    depth: int = 512
    kernel_size: int = 3
    atrous_rate: int = 1


class RpnOutputs(NamedTuple):
    """What it says of each anchor, feature maps one after the other."""

    features: list[tf.Tensor]  # of each feature map, float32 [B, h, w, depth]
    box_encodings: tf.Tensor  # float32 [B, A, 4]
    objectness: tf.Tensor  # logits, float32 [B, A, 2], background first


class RegionProposalNetwork(tf.Module):
    """One convolution for all feature maps, two predictors for each.

    Args:
      options: see `RpnOptions`.
      anchors_per_location: of each feature map.
    """

    def __init__(self, options: RpnOptions, anchors_per_location: list[int]):
        super().__init__()
        hyperparams = options.hyperparams
        self.conv = conv_layer(
            CONV_SCOPE,
            hyperparams,
            options.depth,
            options.kernel_size,
            use_bias=hyperparams.norm is None or hyperparams.force_use_bias,
            rate=options.atrous_rate,
        )
        self.norm = norm_layer(CONV_SCOPE, hyperparams.norm)
        several = len(anchors_per_location) > 1
        scopes = [f"{SCOPE}/BoxPredictor_{i}" if several else SCOPE for i in range(len(anchors_per_location))]
        pairs = list(zip(scopes, anchors_per_location, strict=True))
        self.boxes = [self._predictor(f"{scope}/BoxEncodingPredictor", hyperparams, 4 * n) for scope, n in pairs]
        self.classes = [self._predictor(f"{scope}/ClassPredictor", hyperparams, _OBJECTNESS * n) for scope, n in pairs]

    @staticmethod
    def _predictor(scope: str, hyperparams: ConvHyperparams, filters: int) -> tf_keras.layers.Layer:
        return conv_layer(scope, hyperparams, filters, kernel_size=1)

    def tf2_objects(self) -> tuple[ObjectTree, ObjectTree]:
        """The convolution and the predictors in the object graph of the OD API's TF2 checkpoints."""
        layer, listed = tf2_objects.layer, tf2_objects.listed
        norm = {} if self.norm is None else layer(self.norm)
        boxes = listed({"_box_encoder_layers": listed([layer(each)])} for each in self.boxes)
        classes = listed({"_class_predictor_layers": listed([layer(each)])} for each in self.classes)
        predictors: ObjectTree = {
            "_prediction_heads": {BOX_ENCODINGS: boxes, CLASS_PREDICTIONS: classes},
            "_sorted_head_names": {},
            "_shared_nets": listed({} for _ in self.boxes),
        }
        return tf2_objects.sequential([layer(self.conv), norm, {}]), predictors

    def _hidden(self, features: tf.Tensor, training: bool) -> tf.Tensor:
        outputs = self.conv(features)
        if self.norm is not None:
            outputs = self.norm(outputs, training=training)
        return tf.nn.relu6(outputs)

    def __call__(self, feature_maps: list[tf.Tensor], training: bool = False) -> RpnOutputs:
        """Feature maps `[B, h, w, C]`, finest first -> see `RpnOutputs`."""
        hidden = [self._hidden(features, training) for features in feature_maps]
        batch = tf.shape(feature_maps[0])[0]

        def of_all_maps(predictors: list[tf_keras.layers.Layer], size: int) -> tf.Tensor:
            pairs = zip(predictors, hidden, strict=True)
            return tf.concat([flatten_predictions(layer(h), batch, size) for layer, h in pairs], axis=1)

        return RpnOutputs(hidden, of_all_maps(self.boxes, 4), of_all_maps(self.classes, _OBJECTNESS))
