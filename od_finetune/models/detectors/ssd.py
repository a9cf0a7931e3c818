"""Single-shot detectors (Liu et al. 2016, arXiv:1512.02325): every anchor of every feature map is classified and
regressed in one pass."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf
import tf_keras

from od_finetune import fields
from od_finetune.boxes.anchors import AnchorGenerator
from od_finetune.boxes.postprocess import Postprocessor, true_window
from od_finetune.boxes.ssd_loss import LossParts, SsdLossOptions, ssd_loss
from od_finetune.boxes.targets import TargetAssigner
from od_finetune.errors import UserError
from od_finetune.models import layers, stages
from od_finetune.models.image_resizers import Resizer
from od_finetune.models.normalization import SYMMETRIC, Normalization
from od_finetune.names import Rules, Vocabulary, apply_rules

# Canonical leaf -> tf_keras's, after the rules of the part.
_TF2_LEAVES: Rules = [
    (r"/weights$", "/kernel"),
    (r"/depthwise_weights$", "/depthwise_kernel"),
    (r"/pointwise_weights$", "/pointwise_kernel"),
    (r"/biases$", "/bias"),
]

CLIP_WINDOW = "clip_window"  # float32 [B, 4]: the true part of each image, normalised to the padded image


class Network(NamedTuple):
    """The weighted parts of an SSD, with the rules from their canonical names to those of TF2 checkpoints."""

    backbone: tf.Module  # (images, training) -> {level: features}
    neck: tf.Module  # ({level: features}, training) -> [feature map]
    head: tf.Module  # ([feature map], training) -> box encodings [B, A, 4], class predictions [B, A, K]
    backbone_rules: Rules
    neck_rules: Rules
    head_rules: Rules
    vocabularies: tuple[Vocabulary, ...] = ()  # of the backbone in published classification nets
    normalize: Normalization = SYMMETRIC  # of pixel values, as the backbone's pretrained weights expect


class Boxes(NamedTuple):
    """The parts of an SSD without weights: what an anchor is, should predict, and what becomes of its predictions."""

    anchors: AnchorGenerator
    assigner: TargetAssigner
    losses: LossParts
    loss_options: SsdLossOptions
    postprocessor: Postprocessor
    unmatched_class_target: list[float]
    detects_background: bool  # whether column 0 of the class predictions is background, which is never detected


class SSD(tf.Module):
    """Fulfils `fields.Detector`.

    Args:
      network: backbone, neck and head.
      boxes: anchors, targets, losses, post-processing.
      resizer: see `image_resizers`.
      num_classes: without background.
      pad_to_multiple: the network's input is zero-padded to a multiple of this.
    """

    def __init__(
        self, network: Network, boxes: Boxes, resizer: Resizer, num_classes: int, pad_to_multiple: int = 1
    ):
        super().__init__()
        self.num_classes = num_classes
        self.backbone, self.neck, self.head = network.backbone, network.neck, network.head
        self._rules = {
            "backbone": network.backbone_rules,
            "neck": network.neck_rules,
            "head": network.head_rules,
        }
        self._vocabularies = network.vocabularies
        self._normalize = network.normalize
        self._resizer = resizer
        self._boxes = boxes
        self._pad_to_multiple = pad_to_multiple
        self._parts: dict[str, str] = {}  # canonical scope -> part, filled once the network is built
        self._built = False

    def resize(self, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`[H, W, 3]` (0..255, any dtype) -> float32 `[h, w, 3]` and its true shape int32 `[3]`."""
        return self._resizer(image)

    def normalize(self, images: tf.Tensor) -> tf.Tensor:
        """0..255 -> what the backbone takes, float32."""
        return self._normalize(images)

    def preprocess(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`[B, H, W, 3]` (0..255) -> resized and normalised `[B, h, w, 3]` and true shapes int32 `[B, 3]`."""
        resized, true_shape = self._resizer(images)
        return self.normalize(resized), tf.tile(true_shape[tf.newaxis], [tf.shape(images)[0], 1])

    def predict(self, inputs: tf.Tensor, true_shapes: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Normalised inputs `[B, h, w, 3]`, true shapes `[B, 3]` -> `box_encodings` [B, A, 4],
        `class_predictions_with_background` [B, A, K] (logits), `anchors` [A, 4], `feature_maps` (a list) and
        `clip_window` [B, 4]. K is the number of classes, plus one (column 0) with a background class."""
        feature_maps, box_encodings, class_predictions = self._forward(inputs, training)
        sizes = [layers.spatial_shape(feature_map) for feature_map in feature_maps]
        image_size = layers.spatial_shape(inputs)
        return {
            fields.BOX_ENCODINGS: box_encodings,
            fields.CLASS_PREDICTIONS: class_predictions,
            fields.FEATURE_MAPS: feature_maps,
            fields.ANCHORS: self._boxes.anchors(sizes, image_size),
            CLIP_WINDOW: true_window(true_shapes, *image_size),
        }

    def _forward(self, inputs: tf.Tensor, training: bool) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        images = layers.pad_to_multiple(inputs, self._pad_to_multiple)
        feature_maps = self.neck(self.backbone(images, training), training)
        outputs = self.head(feature_maps, training)
        self._built = True  # tf_keras creates variables at a layer's first call
        return feature_maps, *outputs

    def losses(self, predictions: dict[str, tf.Tensor], groundtruth: fields.Groundtruth) -> dict[str, tf.Tensor]:
        """Weighted scalar losses by name; their sum is what is minimised (without regularisation)."""
        # Groundtruth boxes are relative to the true part of the image, anchors to all of it.
        scale = tf.tile(predictions[CLIP_WINDOW][:, tf.newaxis, 2:], [1, 1, 2])
        boxes, options = self._boxes, self._boxes.loss_options
        classes = groundtruth.classes
        if options.has_background:
            classes = tf.pad(classes, [[0, 0], [0, 0], [1, 0]])
        losses = ssd_loss(
            predictions[fields.BOX_ENCODINGS],
            predictions[fields.CLASS_PREDICTIONS],
            predictions[fields.ANCHORS],
            groundtruth.boxes * scale,
            classes,
            groundtruth.weights,
            tf.sequence_mask(groundtruth.num_boxes, tf.shape(classes)[1]),
            boxes.assigner,
            boxes.losses,
            options,
            boxes.unmatched_class_target,
        )
        return {
            fields.LOCALIZATION_LOSS: losses.localization,
            fields.CLASSIFICATION_LOSS: losses.classification,
        }

    def postprocess(self, predictions: dict[str, tf.Tensor], true_shapes: tf.Tensor) -> fields.Detections:
        """Raw predictions -> final detections, relative to the true part of the image."""
        del true_shapes  # predict has put them into the predictions
        return self._boxes.postprocessor(
            predictions[fields.BOX_ENCODINGS],
            predictions[fields.CLASS_PREDICTIONS],
            predictions[fields.ANCHORS],
            self._boxes.assigner.coder,
            predictions[CLIP_WINDOW],
            self._boxes.detects_background,
        )

    def build(self) -> None:
        """Creates all variables by tracing the network once; idempotent."""
        if self._built:
            return
        height, width = self._resizer.static_size
        # In a function's graph tf_keras creates variables outside of it; a tf.function would trace twice.
        with tf.__internal__.FuncGraph("build").as_default():
            images = tf.compat.v1.placeholder(tf.float32, [1, height, width, self._resizer.channels])
            self._forward(images, training=False)

    def weighted_layers(self) -> dict[str, tf_keras.layers.Layer]:
        """Every layer that owns variables, by canonical scope, in the order of the forward pass."""
        self.build()
        return layers.weighted_layers(self)

    def named_variables(self) -> dict[str, tf.Variable]:
        """Every variable by canonical name, moving statistics included, in the order of the forward pass."""
        self.build()
        return layers.named_variables(self)

    def regularizers(self) -> dict[str, layers.Regularizer]:
        """Regulariser by canonical variable name, for the variables that have one."""
        self.build()
        return layers.regularizers(self)

    def tf2_names(self) -> dict[str, str]:
        """Canonical name -> the full name the OD API's TF2 checkpoints store for the same variable."""
        return {name: apply_rules(name, self._rules[self.part(name)] + _TF2_LEAVES) for name in self.named_variables()}

    def tf2_objects(self) -> fields.ObjectTree:
        """The detector's node in the object graph of the OD API's TF2 checkpoints.

        Raises:
          UserError: the OD API's TF2 half has no such detector.
        """
        self.build()
        for part in (self.backbone, self.neck, self.head):
            if not hasattr(part, "tf2_objects"):
                raise UserError(
                    f"the OD API's TF2 half has no {type(part).__name__}, so there is no object graph for this "
                    "detector; write a TF1 checkpoint instead"
                )
        return {
            "_groundtruth_lists": {},
            "_box_predictor": self.head.tf2_objects(),
            "_feature_extractor": self.neck.tf2_objects(self.backbone.tf2_objects()),
            "_batched_prediction_tensor_names": {},
        }

    def vocabularies(self) -> tuple[Vocabulary, ...]:
        """Under which names published classification nets have the backbone."""
        return self._vocabularies

    def part(self, name: str) -> str:
        """`backbone`, `neck` or `head`: what a canonical variable name belongs to."""
        if not self._parts:
            self.build()
            self._parts.update(
                (scope, part)
                for part in ("backbone", "neck", "head")
                for scope in layers.weighted_layers(getattr(self, part))
            )
        return self._parts[name.rpartition("/")[0]]

    def stages(self) -> list[fields.Stage]:
        """The steps of the network from the input on: the backbone's blocks, `neck`, `head`."""
        self.build()
        parts = [("neck", self.neck), ("head", self.head)]
        return stages.backbone_stages(self.backbone.blocks()) + [
            stage for name, module in parts for stage in stages.part_stage(name, module)
        ]

    def is_class_head(self, name: str) -> bool:
        """Whether this variable's shape depends on the number of classes."""
        return self.head.is_class_head(name)

    def class_layout(self, name: str) -> fields.ClassLayout | None:
        """Where in a variable each class has its outputs; None for a variable that is the same for all classes."""
        layout = self.head.class_layout(name)
        if layout is None or layout.slots == self.num_classes:
            return layout
        return layout._replace(background=0)
