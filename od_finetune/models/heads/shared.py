"""RetinaNet's head (Lin et al. 2017, arXiv:1708.02002): the same convolutions for every feature map."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import tensorflow as tf
import tf_keras

from od_finetune import randomness
from od_finetune.errors import UserError
from od_finetune.fields import BOX_ENCODINGS, CLASS_PREDICTIONS, ClassLayout, ObjectTree
from od_finetune.models import tf2_objects
from od_finetune.models.heads.dense import CLASS_SCOPE, flatten_predictions
from od_finetune.models.layers import ACTIVATIONS, ConvHyperparams, ConvUnit, conv_layer, norm_layer

SCOPE = "WeightSharedConvolutionalBoxPredictor"

# Canonical name -> full name in the OD API's TF2 checkpoints.
TF2_RULES = [(rf"^{SCOPE}/(Box|Class)Predictor/", rf"{SCOPE}/WeightSharedConvolutional\1Head/\1Predictor/")]


class SharedHeadOptions(NamedTuple):
    """The fields of WeightSharedConvolutionalBoxPredictor, under the names they have there."""

    hyperparams: ConvHyperparams  # of the towers
    head_hyperparams: ConvHyperparams  # of the two last convolutions, which have neither norm nor activation
    depth: int
    num_layers_before_predictor: int = 0
    kernel_size: int = 3
    box_code_size: int = 4
    class_prediction_bias_init: float = 0.0
    dropout_keep_probability: float = 1.0  # before the class predictor, while training; 1 = no dropout
    use_dropout: bool = False  # the layer counts in TF2 checkpoints, whatever it keeps
    share_prediction_tower: bool = False
    use_depthwise: bool = False
    box_encodings_clip_range: tuple[float, float] | None = None


class _TowerLayer(tf.Module):
    """A convolution that all feature maps share, with a norm for each of them: their statistics differ."""

    def __init__(self, scope: str, options: SharedHeadOptions, num_maps: int):
        super().__init__()
        hyperparams = options.hyperparams
        self.conv = conv_layer(
            scope,
            hyperparams,
            options.depth,
            options.kernel_size,
            use_bias=hyperparams.norm is None or hyperparams.force_use_bias,
            separable=options.use_depthwise,
        )
        self.norms = [norm_layer(scope, hyperparams.norm, f"/feature_{i}") for i in range(num_maps)]
        self._activation = ACTIVATIONS[hyperparams.activation]

    def __call__(self, features: tf.Tensor, index: int, training: bool) -> tf.Tensor:
        outputs = self.conv(features)
        if self.norms[index] is not None:
            outputs = self.norms[index](outputs, training=training)
        return outputs if self._activation is None else self._activation(outputs)


class SharedHead(tf.Module):
    """The OD API's weight-shared convolutional box predictor: towers of convolutions and one predictor each for boxes
    and classes.

    The class predictor is one convolution to anchors * class_slots channels, the slots of one anchor side by side,
    the background first where the detector has one. Feature maps of different widths are first brought to the most
    frequent width by a 1x1 convolution each.

    Args:
      options: see `SharedHeadOptions`.
      anchors_per_location: of each feature map; the same for all.
      class_slots: classes predicted per anchor, the background included where the detector has one.

    Raises:
      UserError: the feature maps have different numbers of anchors.
    """

    def __init__(self, options: SharedHeadOptions, anchors_per_location: list[int], class_slots: int):
        super().__init__()
        if len(set(anchors_per_location)) != 1:
            raise UserError(
                "model.ssd.box_predictor.weight_shared_convolutional_box_predictor: found "
                f"{', '.join(map(str, anchors_per_location))} anchors per location of the feature maps, expected the "
                "same number for all, as they share their weights (with ssd_anchor_generator: "
                "reduce_boxes_in_lowest_layer: false)"
            )
        self._options = options
        self._class_slots = class_slots
        self._anchors = anchors_per_location[0]
        num_maps = len(anchors_per_location)
        self._num_maps = num_maps
        self._projections: list[ConvUnit] | None = None  # whether there are any is known at the first call
        shared = options.share_prediction_tower
        self._box_tower = self._tower("PredictionTower" if shared else "BoxPredictionTower", num_maps)
        self._box = self._predictor("BoxPredictor", self._anchors * options.box_code_size, 0.0)
        self._class_tower = self._box_tower if shared else self._tower("ClassPredictionTower", num_maps)
        self._classes = self._predictor(CLASS_SCOPE, self._anchors * class_slots, options.class_prediction_bias_init)

    def _tower(self, name: str, num_maps: int) -> list[_TowerLayer]:
        count = self._options.num_layers_before_predictor
        return [_TowerLayer(f"{SCOPE}/{name}/conv2d_{i}", self._options, num_maps) for i in range(count)]

    def _predictor(self, name: str, filters: int, bias_init: float) -> tf_keras.layers.Layer:
        options = self._options
        return conv_layer(
            f"{SCOPE}/{name}",
            options.head_hyperparams,
            filters,
            options.kernel_size,
            bias_init=bias_init,
            separable=options.use_depthwise,
        )

    def _projected(self, feature_maps: list[tf.Tensor], training: bool) -> list[tf.Tensor]:
        if self._projections is None:
            widths = [features.shape[-1] for features in feature_maps]
            width = Counter(widths).most_common(1)[0][0]
            count = len(widths) if len(set(widths)) > 1 else 0
            names = [f"{SCOPE}/ProjectionLayer/conv2d_{i}" for i in range(count)]
            self._projections = [ConvUnit(name, self._options.hyperparams, width, activate=False) for name in names]
        if not self._projections:
            return feature_maps
        return [unit(features, training) for unit, features in zip(self._projections, feature_maps, strict=True)]

    def _class_features(self, features: tf.Tensor, training: bool) -> tf.Tensor:
        rate = 1.0 - self._options.dropout_keep_probability
        if not training or rate <= 0:
            return features
        return tf.nn.experimental.stateless_dropout(features, rate, randomness.next_seed())

    def __call__(self, feature_maps: list[tf.Tensor], training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """Feature maps -> box encodings `[B, A, box_code_size]` and class predictions `[B, A, class_slots]`."""
        boxes, classes = [], []
        batch = tf.shape(feature_maps[0])[0]
        for index, features in enumerate(self._projected(feature_maps, training)):
            hidden = _through(self._box_tower, features, index, training)
            boxes.append(flatten_predictions(self._box(hidden), batch, self._options.box_code_size))
            if self._class_tower is not self._box_tower:
                hidden = _through(self._class_tower, features, index, training)
            scores = self._classes(self._class_features(hidden, training))
            classes.append(flatten_predictions(scores, batch, self._class_slots))
        box_encodings = tf.concat(boxes, axis=1)
        if self._options.box_encodings_clip_range is not None:
            box_encodings = tf.clip_by_value(box_encodings, *self._options.box_encodings_clip_range)
        return box_encodings, tf.concat(classes, axis=1)

    def tf2_objects(self) -> ObjectTree:
        """Its node in the object graph of the OD API's TF2 checkpoints."""
        layer, listed = tf2_objects.layer, tf2_objects.listed
        dropout: list[ObjectTree] = [{}] * self._options.use_dropout
        num_maps = self._num_maps
        projections = [[layer(part) for part in (unit.conv, unit.norm) if part] for unit in self._projections or []]
        boxes, box_scope = _tower_objects(self._box_tower, num_maps, built=True)
        is_shared = self._class_tower is self._box_tower
        classes, class_scope = _tower_objects(self._class_tower, num_maps, built=not is_shared)
        return {
            "_box_prediction_head": {"_box_encoder_layers": listed([layer(self._box)])},
            "_prediction_heads": {
                CLASS_PREDICTIONS: {"_class_predictor_layers": listed([*dropout, layer(self._classes)])}
            },
            "_sorted_head_names": {},
            "_additional_projection_layers": listed(map(listed, projections or [[]] * num_maps)),
            "_base_tower_layers_for_heads": {BOX_ENCODINGS: boxes, CLASS_PREDICTIONS: classes},
            "_head_scope_conv_layers": {
                "PredictionTower" if is_shared else "BoxPredictionTower": box_scope,
                "ClassPredictionTower": class_scope,
            },
        }

    def is_class_head(self, name: str) -> bool:
        """Whether a canonical name is a variable whose shape depends on the number of classes."""
        return name.startswith(f"{SCOPE}/{CLASS_SCOPE}/") and not name.endswith("/depthwise_weights")

    def class_layout(self, name: str) -> ClassLayout | None:
        """Where each class has its outputs in a variable of the class predictor; None for other variables.

        Which slot is the background's, if any, is for the detector to say.
        """
        return ClassLayout(self._anchors, self._class_slots) if self.is_class_head(name) else None


def _through(tower: list[_TowerLayer], features: tf.Tensor, index: int, training: bool) -> tf.Tensor:
    for layer in tower:
        features = layer(features, index, training)
    return features


def _tower_objects(tower: list[_TowerLayer], num_maps: int, built: bool) -> tuple[ObjectTree, ObjectTree]:
    """The layers of a tower for each feature map, and its convolutions alone. TF2 has a class tower even where the one
    for boxes serves both; its layers are never called, so that they have no variables (`built` is False)."""
    convolutions = [tf2_objects.layer(stage.conv) if built else {} for stage in tower]

    def layers(index: int) -> list[ObjectTree]:
        nodes: list[ObjectTree] = []
        for stage, convolution in zip(tower, convolutions, strict=True):
            norm = stage.norms[index]
            nodes += [convolution, *([tf2_objects.layer(norm) if built else {}] if norm else []), {}]
        return nodes

    listed = tf2_objects.listed
    return listed(listed(layers(index)) for index in range(num_maps)), listed(convolutions)
