"""Heads that predict at every position of every feature map: SSD's convolutional box predictor."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from od_finetune import randomness
from od_finetune.fields import BOX_ENCODINGS, CLASS_PREDICTIONS, ClassLayout, ObjectTree
from od_finetune.models import tf2_objects
from od_finetune.models.layers import ConvHyperparams, ConvUnit, conv_layer

# Canonical name -> full name in the OD API's TF2 checkpoints.
TF2_RULES = [
    (r"^BoxPredictor_(\d+)/(BoxEncoding|Class)Predictor_depthwise/BatchNorm/",
     r"BoxPredictor_\1/\2Predictor_depthwise_batchnorm/"),
    (r"^BoxPredictor_(\d+)/(Conv2d_\d+_1x1_\d+)/BatchNorm/", r"BoxPredictor/SharedConvolutions_\1/\2_norm/"),
    (r"^BoxPredictor_(\d+)/(Conv2d_\d+_1x1_\d+)/", r"BoxPredictor/SharedConvolutions_\1/\2/"),
    (r"^BoxPredictor_(\d+)/BoxEncoding", r"BoxPredictor/ConvolutionalBoxHead_\1/BoxEncoding"),
    (r"^BoxPredictor_(\d+)/Class", r"BoxPredictor/ConvolutionalClassHead_\1/Class"),
]

CLASS_SCOPE = "ClassPredictor"
BOX_SCOPE = "BoxEncodingPredictor"


class ConvolutionalHeadOptions(NamedTuple):
    """The fields of ConvolutionalBoxPredictor, under the names they have there."""

    hyperparams: ConvHyperparams
    kernel_size: int = 1
    box_code_size: int = 4
    num_layers_before_predictor: int = 0
    min_depth: int = 0
    max_depth: int = 0
    dropout_keep_probability: float = 1.0  # before the class predictor, while training; 1 = no dropout
    use_dropout: bool = False  # the layer counts in TF2 checkpoints, whatever it keeps
    apply_sigmoid_to_scores: bool = False
    class_prediction_bias_init: float = 0.0
    use_depthwise: bool = False
    box_encodings_clip_range: tuple[float, float] | None = None


class _MapHead(tf.Module):
    """The predictor of one feature map: shared 1x1 convolutions, then one branch for boxes and one for classes."""

    def __init__(self, scope: str, options: ConvolutionalHeadOptions, anchors: int, class_slots: int):
        super().__init__()
        self._scope = scope
        self._options = options
        self.shared: list[ConvUnit] | None = None  # their width depends on the feature map's, known at the first call
        self.box = self._branch(BOX_SCOPE, anchors * options.box_code_size, 0.0)
        self.classes = self._branch(CLASS_SCOPE, anchors * class_slots, options.class_prediction_bias_init)

    def _branch(self, name: str, filters: int, bias_init: float) -> list:
        options, scope = self._options, f"{self._scope}/{name}"
        if not options.use_depthwise:
            return [conv_layer(scope, options.hyperparams, filters, options.kernel_size, bias_init=bias_init)]
        return [
            ConvUnit(f"{scope}_depthwise", options.hyperparams, None, options.kernel_size),
            conv_layer(scope, options.hyperparams, filters, 1, bias_init=bias_init),
        ]

    def _shared_units(self, channels: int) -> list[ConvUnit]:
        options = self._options
        depth = max(min(channels, options.max_depth), options.min_depth)
        count = options.num_layers_before_predictor if depth > 0 else 0
        names = (f"{self._scope}/Conv2d_{i}_1x1_{depth}" for i in range(count))
        return [ConvUnit(name, options.hyperparams, depth) for name in names]

    def tf2_objects(self) -> tuple[ObjectTree, ObjectTree, ObjectTree]:
        """Shared convolutions, box head and class head in the object graph of the OD API's TF2 checkpoints."""
        shared, boxes, classes = (
            [node for layer in layers for node in tf2_objects.layers_of(layer)]
            for layers in (self.shared or [], self.box, self.classes)
        )
        dropout: list[ObjectTree] = [{}] * self._options.use_dropout
        return (
            tf2_objects.listed(shared),
            {"_box_encoder_layers": tf2_objects.listed(boxes)},
            {"_class_predictor_layers": tf2_objects.listed(dropout + classes)},
        )

    def __call__(self, features: tf.Tensor, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        if self.shared is None:
            self.shared = self._shared_units(features.shape[-1])
        for unit in self.shared:
            features = unit(features, training)
        dropout = 1.0 - self._options.dropout_keep_probability
        outputs = []
        for branch, rate in ((self.box, 0.0), (self.classes, dropout if training else 0.0)):
            hidden = features
            if rate > 0:
                hidden = tf.nn.experimental.stateless_dropout(features, rate, randomness.next_seed())
            if len(branch) == 2:
                hidden = branch[0](hidden, training)
            outputs.append(branch[-1](hidden))
        return outputs[0], outputs[1]


class ConvolutionalHead(tf.Module):
    """The OD API's convolutional box predictor: one `BoxPredictor_<i>` per feature map, nothing shared.

    Args:
      options: see `ConvolutionalHeadOptions`.
      anchors_per_location: of each feature map.
      class_slots: classes predicted per anchor, the background included where the detector has one.
      scope: of the predictors, without their number.
    """

    def __init__(
        self,
        options: ConvolutionalHeadOptions,
        anchors_per_location: list[int],
        class_slots: int,
        scope: str = "BoxPredictor",
    ):
        super().__init__()
        self._options = options
        self._class_slots = class_slots
        self._maps = [
            _MapHead(f"{scope}_{i}", options, anchors, class_slots) for i, anchors in enumerate(anchors_per_location)
        ]
        self._anchors = {f"{scope}_{i}/{CLASS_SCOPE}": anchors for i, anchors in enumerate(anchors_per_location)}

    def __call__(self, feature_maps: list[tf.Tensor], training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """Feature maps -> box encodings `[B, A, box_code_size]` and class predictions `[B, A, class_slots]`."""
        boxes, classes = [], []
        batch = tf.shape(feature_maps[0])[0]
        for head, features in zip(self._maps, feature_maps, strict=True):
            box, scores = head(features, training)
            boxes.append(flatten_predictions(box, batch, self._options.box_code_size))
            classes.append(flatten_predictions(scores, batch, self._class_slots))
        box_encodings, scores = tf.concat(boxes, axis=1), tf.concat(classes, axis=1)
        if self._options.box_encodings_clip_range is not None:
            box_encodings = tf.clip_by_value(box_encodings, *self._options.box_encodings_clip_range)
        return box_encodings, tf.sigmoid(scores) if self._options.apply_sigmoid_to_scores else scores

    def tf2_objects(self) -> ObjectTree:
        """Its node in the object graph of the OD API's TF2 checkpoints."""
        shared, boxes, classes = map(tf2_objects.listed, zip(*(head.tf2_objects() for head in self._maps), strict=True))
        return {
            "_prediction_heads": {BOX_ENCODINGS: boxes, CLASS_PREDICTIONS: classes},
            "_sorted_head_names": {},
            "_shared_nets": shared,
        }

    def is_class_head(self, name: str) -> bool:
        """Whether a canonical name is a variable whose shape depends on the number of classes."""
        return f"/{CLASS_SCOPE}/" in name

    def class_layout(self, name: str) -> ClassLayout | None:
        """Where each class has its outputs in a variable of the class predictors; None for other variables.

        Which slot is the background's, if any, is for the detector to say.
        """
        anchors = self._anchors.get(name.rpartition("/")[0])
        return None if anchors is None else ClassLayout(anchors, self._class_slots)


def flatten_predictions(predictions: tf.Tensor, batch: tf.Tensor, width: int) -> tf.Tensor:
    """`[B, h, w, anchors * width]` -> `[B, h * w * anchors, width]`, static where h and w are."""
    batch_size = predictions.shape[0] if predictions.shape[0] is not None else batch
    _, height, width_, channels = predictions.shape
    count = -1 if height is None or width_ is None else height * width_ * channels // width
    return tf.reshape(predictions, [batch_size, count, width])
