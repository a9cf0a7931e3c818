"""Single-shot detectors (Liu et al. 2016, arXiv:1512.02325): every anchor of every feature map is classified and
regressed in one pass."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from od_finetune import fields
from od_finetune.boxes.anchors import AnchorGenerator
from od_finetune.boxes.postprocess import Postprocessor, true_window
from od_finetune.boxes.ssd_loss import LossParts, SsdLossOptions, ssd_loss
from od_finetune.boxes.targets import TargetAssigner
from od_finetune.errors import UserError
from od_finetune.models import layers, stages
from od_finetune.models.detectors.base import Inputs, NetworkDetector
from od_finetune.models.image_resizers import Resizer
from od_finetune.models.normalization import SYMMETRIC, Normalization
from od_finetune.names import Rules, Vocabulary

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


class SSD(NetworkDetector):
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
        rules = {"backbone": network.backbone_rules, "neck": network.neck_rules, "head": network.head_rules}
        super().__init__(Inputs(resizer, network.normalize), num_classes, rules, network.vocabularies)
        self.backbone, self.neck, self.head = network.backbone, network.neck, network.head
        self._boxes = boxes
        self._pad_to_multiple = pad_to_multiple

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

    def _call_layers(self, images: tf.Tensor) -> None:
        self._forward(images, training=False)

    def _modules_of_parts(self) -> dict[str, list[tf.Module]]:
        return {"backbone": [self.backbone], "neck": [self.neck]}

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
