"""Two-stage detectors (Ren et al. 2015, arXiv:1506.01497): regions are proposed, then cropped and classified."""

from __future__ import annotations

import logging
from typing import NamedTuple

import tensorflow as tf

from od_finetune import fields
from od_finetune.boxes import box_ops, proposals
from od_finetune.boxes.anchors import AnchorGenerator
from od_finetune.boxes.mask_loss import MaskLoss
from od_finetune.boxes.postprocess import Postprocessor
from od_finetune.boxes.two_stage_loss import FirstStageLoss, SecondStageLoss
from od_finetune.errors import UserError
from od_finetune.models import layers, stages
from od_finetune.models.detectors.base import Inputs, NetworkDetector, PartRules
from od_finetune.models.heads.roi import CropClassifier, RoiClassifier, Surroundings
from od_finetune.names import Vocabulary

logger = logging.getLogger(__name__)

RPN_FEATURES = "rpn_box_predictor_features"
FEATURES_TO_CROP = "rpn_features_to_crop"
RPN_ENCODINGS = "rpn_box_encodings"
OBJECTNESS = "rpn_objectness_predictions_with_background"
REFINED_ENCODINGS = "refined_box_encodings"
PROPOSALS = "proposal_boxes"
NORMALIZED_PROPOSALS = "proposal_boxes_normalized"
NUM_PROPOSALS = "num_proposals"
CLASSIFIER_FEATURES = "box_classifier_features"
MASK_PREDICTIONS = "mask_predictions"
DETECTIONS = "detections"  # a fields.Detections, where predict had to find them
FINAL_ANCHORS = "final_anchors"
IMAGE_SHAPE = "image_shape"  # int32 [2]: height and width of the network's input
TRUE_SHAPES = "true_image_shapes"  # int32 [B, 3]
CONTEXT = "context"  # a fields.ContextBank, where regions attend to one

Tensors = dict[str, tf.Tensor]


class Network(NamedTuple):
    """The weighted parts, with the rules from their canonical names to those of TF2 checkpoints."""

    backbone: tf.Module  # (images, training) -> {level: features}
    neck: tf.Module  # ({level: features}, training) -> [feature map to propose on and crop from, finest first]
    rpn: tf.Module  # ([feature map], training) -> RpnOutputs
    second: RoiClassifier | None  # None: proposals are the detections (number_of_stages 1)
    rules: PartRules
    vocabularies: tuple[Vocabulary, ...] = ()
    pad_to_multiple: int = 1  # the backbone's input is zero-padded to it


class Boxes(NamedTuple):
    """The parts without weights."""

    anchors: AnchorGenerator  # in pixels
    clip_anchors: bool  # while training, anchors are cut at the border instead of left out
    proposals: proposals.ProposalGenerator
    first_loss: FirstStageLoss
    second_loss: SecondStageLoss
    postprocessor: Postprocessor
    mask_loss: MaskLoss = MaskLoss()


class FasterRCNN(NetworkDetector):
    """Fulfils `fields.Detector`.

    While training, the regions of the second stage are sampled by the ground truth, which `predict` does not see. So
    `predict(training=True)` ends with the proposals and `losses` runs the second stage on the sampled ones, unless
    a hard example miner wants all of them.
    """

    def __init__(self, network: Network, boxes: Boxes, inputs: Inputs, num_classes: int):
        super().__init__(inputs, num_classes, network.rules, network.vocabularies)
        self.backbone, self.neck, self.rpn, self.second = network.backbone, network.neck, network.rpn, network.second
        self._pad_to_multiple = network.pad_to_multiple
        self._boxes = boxes
        if self.second is not None and self.second.attention is not None:
            self.context_size = self.second.attention.size

    def _feature_maps(self, images: tf.Tensor, training: bool) -> list[tf.Tensor]:
        padded = layers.pad_to_multiple(images, self._pad_to_multiple)
        return self.neck(self.backbone(padded, training), training)

    def _call_layers(self, images: tf.Tensor) -> None:
        maps = self._feature_maps(images, training=False)
        self.rpn(maps, training=False)
        if self.second is not None:
            region, image_size = tf.zeros([1, 1, 4]), layers.spatial_shape(images)
            around = self._around(self._bank(images, None), tf.zeros([1], tf.int32))
            self.second(maps, region, image_size, training=False, around=around)
            if self.second.mask_head is not None:
                self.second.masks(maps, region, image_size)

    def _bank(self, images: tf.Tensor, context: fields.ContextBank | None) -> fields.ContextBank | None:
        """The bank that regions attend to, an empty one where there is none; None without attention."""
        if self.second is None or self.second.attention is None:
            return None
        return self.second.attention.empty_bank(tf.shape(images)[0]) if context is None else context

    @staticmethod
    def _around(bank: fields.ContextBank | None, count: tf.Tensor) -> Surroundings | None:
        return None if bank is None else Surroundings(bank, count)

    def predict(
        self,
        inputs: tf.Tensor,
        true_shapes: tf.Tensor,
        training: bool = False,
        context: fields.ContextBank | None = None,
    ) -> Tensors:
        """Normalised inputs `[B, h, w, 3]`, true shapes `[B, 3]` -> predictions by the names that the OD API has.

        Of the first stage: `rpn_box_encodings` [B, A, 4], `rpn_objectness_predictions_with_background` [B, A, 2]
        (logits), `anchors` [A, 4] (pixels), lists of `rpn_box_predictor_features` and `rpn_features_to_crop` (also
        `feature_maps`), `image_shape` [2], `true_image_shapes` [B, 3].

        With a second stage: `proposal_boxes` [B, P, 4] (pixels), `proposal_boxes_normalized`, `num_proposals` [B], and
        what `RoiClassifier` says of them: `refined_box_encodings` [B * P, K, 4],
        `class_predictions_with_background` [B * P, C + 1] (logits), `box_classifier_features` [B * P, h', w', D].

        With a mask head `mask_predictions` (logits): while training of the proposals, [B * P, K, m, n], else of the
        final boxes, [B * D, K, m, n], and `detections`.

        `context` is what Context R-CNN looks at; without, its regions attend to an empty bank.
        """
        predictions = self._first_stage(inputs, training) | {TRUE_SHAPES: true_shapes}
        bank = self._bank(inputs, context)
        if bank is not None:
            predictions[CONTEXT] = bank
            if context is None and self.context_size is not None:
                logger.warning("model.faster_rcnn.context_config: no context features are given, so regions attend to "
                               "an empty bank; where records hold them, set load_context_features in the reader.")
        if self.second is None:
            return predictions
        image_size = layers.spatial_shape(inputs)
        proposed = self._boxes.proposals(
            predictions[RPN_ENCODINGS], predictions[OBJECTNESS], predictions[fields.ANCHORS], true_window(true_shapes)
        )
        if training and self._boxes.second_loss.sampling is not None:
            return predictions | self._named(proposed, image_size)
        predictions |= self._second_stage(predictions, proposed, image_size, training)
        if training or self.second.mask_head is None:
            return predictions
        return predictions | self._third_stage(predictions, image_size)

    def _first_stage(self, inputs: tf.Tensor, training: bool) -> Tensors:
        maps = self._feature_maps(inputs, training)
        features, encodings, objectness = self.rpn(maps, training)
        image_size = layers.spatial_shape(inputs)
        # As tensors, sides are taken for multiples of every stride: anchors are in the centres of cells.
        sides = tuple(map(tf.convert_to_tensor, image_size))
        anchors = self._boxes.anchors([layers.spatial_shape(each) for each in features], sides)
        window = proposals.image_window(*image_size)
        if training and not self._boxes.clip_anchors:
            inside = tf.where(proposals.is_inside(anchors, window))[:, 0]
            anchors = tf.gather(anchors, inside)
            encodings, objectness = (tf.gather(each, inside, axis=1) for each in (encodings, objectness))
        else:
            anchors = box_ops.clip_to_window(anchors, window)
        return {
            RPN_FEATURES: features,
            FEATURES_TO_CROP: maps,
            fields.FEATURE_MAPS: maps,
            RPN_ENCODINGS: encodings,
            OBJECTNESS: objectness,
            fields.ANCHORS: anchors,
            IMAGE_SHAPE: tf.stack(image_size),
        }

    @staticmethod
    def _named(proposed: proposals.Proposals, image_size: tuple) -> Tensors:
        boxes = box_ops.normalize(proposed.boxes, *image_size)
        return {
            PROPOSALS: proposed.boxes,
            NORMALIZED_PROPOSALS: boxes,
            NUM_PROPOSALS: proposed.count,
            FINAL_ANCHORS: boxes,
        }

    def _second_stage(
        self, predictions: Tensors, proposed: proposals.Proposals, image_size: tuple, training: bool
    ) -> Tensors:
        named = self._named(proposed, image_size)
        around = self._around(predictions.get(CONTEXT), proposed.count)
        maps, boxes = predictions[FEATURES_TO_CROP], named[NORMALIZED_PROPOSALS]
        outputs = self.second(maps, boxes, image_size, training, around)
        return named | {
            REFINED_ENCODINGS: outputs.box_encodings,
            fields.CLASS_PREDICTIONS: outputs.class_predictions,
            CLASSIFIER_FEATURES: outputs.features,
            **({} if outputs.masks is None else {MASK_PREDICTIONS: outputs.masks}),
        }

    def losses(self, predictions: Tensors, groundtruth: fields.Groundtruth) -> Tensors:
        """Weighted scalar losses by name; their sum is what is minimised (without regularisation).

        Runs the second stage, in training mode, where `predict` was to leave it to this.
        """
        groundtruth = groundtruth._replace(boxes=_in_pixels(groundtruth.boxes, predictions[TRUE_SHAPES]))
        losses = self._boxes.first_loss(
            predictions[RPN_ENCODINGS], predictions[OBJECTNESS], predictions[fields.ANCHORS], groundtruth
        )
        if self.second is None:
            return losses
        second_loss = self._boxes.second_loss
        if fields.CLASS_PREDICTIONS not in predictions:
            proposed = proposals.Proposals(predictions[PROPOSALS], predictions[NUM_PROPOSALS])
            sampled = second_loss.sample(proposed, groundtruth)
            image_size = tuple(tf.unstack(predictions[IMAGE_SHAPE]))
            predictions = predictions | self._second_stage(predictions, sampled, image_size, training=True)
        losses |= second_loss(
            predictions[REFINED_ENCODINGS],
            predictions[fields.CLASS_PREDICTIONS],
            proposals.Proposals(predictions[PROPOSALS], predictions[NUM_PROPOSALS]),
            groundtruth,
        )
        if self.second.mask_head is None:
            return losses
        return losses | self._mask_losses(predictions, groundtruth)

    def _mask_losses(self, predictions: Tensors, groundtruth: fields.Groundtruth) -> Tensors:
        """Of the regions that `predictions` has masks of; ground truth in pixels."""
        if groundtruth.masks is None:
            raise UserError(
                "model.faster_rcnn predicts instance masks, but the records are read without; set "
                "load_instance_masks: true in train_input_reader and eval_input_reader"
            )
        proposed = proposals.Proposals(predictions[PROPOSALS], predictions[NUM_PROPOSALS])
        if DETECTIONS in predictions:
            detections = predictions[DETECTIONS]
            boxes = _in_pixels(detections.boxes, predictions[TRUE_SHAPES])
            proposed = proposals.Proposals(boxes, detections.num_detections)
        targets = self._boxes.second_loss.targets(proposed, groundtruth)
        image_size = tuple(tf.unstack(predictions[IMAGE_SHAPE]))
        return self._boxes.mask_loss(
            predictions[MASK_PREDICTIONS], proposed, targets, groundtruth.masks, image_size
        )

    def postprocess(self, predictions: Tensors, true_shapes: tf.Tensor) -> fields.Detections:
        """Raw predictions -> final detections, relative to the true part of the image."""
        del true_shapes  # predict has put them into the predictions
        return predictions[DETECTIONS] if DETECTIONS in predictions else self._detections(predictions)

    def _detections(self, predictions: Tensors) -> fields.Detections:
        window = true_window(predictions[TRUE_SHAPES])
        if self.second is None:
            return self._proposals_as_detections(predictions, window)
        boxes = predictions[PROPOSALS]
        each = tf.unstack(tf.shape(boxes)[:2])
        encodings, classes = predictions[REFINED_ENCODINGS], predictions[fields.CLASS_PREDICTIONS]
        return self._boxes.postprocessor.of_regions(
            tf.reshape(encodings, [*each, *encodings.shape[1:]]),
            tf.reshape(classes, [*each, classes.shape[-1]]),
            proposals.Proposals(boxes, predictions[NUM_PROPOSALS]),
            self._boxes.proposals.coder,
            window,
        )

    def _third_stage(self, predictions: Tensors, image_size: tuple) -> Tensors:
        """Masks within the final boxes, which are cropped anew."""
        detections = self._detections(predictions)
        window = true_window(predictions[TRUE_SHAPES])[:, tf.newaxis]
        boxes = box_ops.normalize(detections.boxes * tf.tile(window[..., 2:], [1, 1, 2]), *image_size)
        masks = self.second.masks(predictions[FEATURES_TO_CROP], boxes, image_size)
        each = tf.reshape(masks, [*tf.unstack(tf.shape(boxes)[:2]), *masks.shape[1:]])
        own = each[:, :, 0] if masks.shape[1] == 1 else tf.gather(each, detections.classes, axis=2, batch_dims=2)
        return {MASK_PREDICTIONS: masks, DETECTIONS: detections._replace(masks=tf.sigmoid(own))}

    def _proposals_as_detections(self, predictions: Tensors, window: tf.Tensor) -> fields.Detections:
        """Every proposal is of class 0."""
        generator = self._boxes.proposals
        encodings, objectness, anchors = (
            predictions[name] for name in (RPN_ENCODINGS, OBJECTNESS, fields.ANCHORS)
        )
        selected = generator.select(encodings, objectness, anchors, window)
        raw_boxes = generator.coder.decode(encodings, anchors)
        raw_scores = tf.nn.softmax(objectness)
        return fields.Detections(
            box_ops.change_coordinate_frame(selected.boxes, window),
            selected.scores,
            selected.classes,
            selected.num_detections,
            selected.gather(raw_scores),
            selected.anchor_indices,
            box_ops.change_coordinate_frame(raw_boxes, window),
            raw_scores,
        )

    def _modules_of_parts(self) -> dict[str, list[tf.Module]]:
        second = [] if self.second is None else [self.second.extractor]
        return {"backbone": [self.backbone, *second], "neck": [self.neck]}

    def stages(self) -> list[fields.Stage]:
        """The steps of the network from the input on: the backbone's blocks, `neck`, `rpn`, the second stage's blocks
        (the last also known as `second_stage`), `head`."""
        self.build()
        found = stages.backbone_stages(self.backbone.blocks())
        found += stages.part_stage("neck", self.neck) + stages.part_stage("rpn", self.rpn)
        if self.second is not None:
            blocks = stages.block_stages(self.second.extractor.blocks())
            blocks[-1] = blocks[-1]._replace(names=(*blocks[-1].names, "second_stage"))
            found += blocks
        return found + self._rest_of(found, "head")

    def tf2_objects(self) -> fields.ObjectTree:
        """The detector's node in the object graph of the OD API's TF2 checkpoints.

        Raises:
          UserError: the OD API's TF2 half has no such detector.
        """
        self.build()
        if not isinstance(self.second, CropClassifier):
            raise UserError("the OD API's TF2 half has two-stage detectors with mask_rcnn_box_predictor only")
        conv, predictors = self.rpn.tf2_objects()
        masks = self.second.mask_head
        if self.second.attention is not None:
            raise UserError("model.faster_rcnn.context_config: TF2 checkpoints have no names for its attention here; "
                            "export as TF1")
        return {
            "_groundtruth_lists": {},
            "_first_stage_box_predictor_first_conv": conv,
            "_first_stage_box_predictor": predictors,
            "_maxpool_layer": {},
            "_mask_rcnn_box_predictor": {
                **self.second.head.tf2_objects(),
                "_third_stage_heads": {} if masks is None else {MASK_PREDICTIONS: masks.tf2_objects()},
            },
            "_batched_prediction_tensor_names": {},
            "_feature_extractor_for_proposal_features": self.neck.tf2_model(self.backbone.tf2_objects()),
            "endpoints": {},
            "_feature_extractor_for_box_classifier_features": self.second.extractor.tf2_objects(),
        }

    def is_class_head(self, name: str) -> bool:
        """Whether this variable's shape depends on the number of classes."""
        return any(head.is_class_head(name) for head in self._roi_heads())

    def class_layout(self, name: str) -> fields.ClassLayout | None:
        """Where in a variable each class has its outputs; None for a variable that is the same for all classes."""
        return next(filter(None, (head.class_layout(name) for head in self._roi_heads())), None)

    def _roi_heads(self) -> list[tf.Module]:
        heads = [] if self.second is None else [self.second.head, self.second.mask_head]
        return [head for head in heads if head is not None]


def true_window(true_shapes: tf.Tensor) -> tf.Tensor:
    """True shapes int32 `[B, 3]` -> the windows `[B, 4]`, in pixels, that are no padding."""
    ends = tf.cast(true_shapes[:, :2], tf.float32)
    return tf.concat([tf.zeros_like(ends), ends], axis=1)


def _in_pixels(boxes: tf.Tensor, true_shapes: tf.Tensor) -> tf.Tensor:
    """Boxes `[B, N, 4]`, relative to the true part of each image -> pixels."""
    sides = tf.cast(true_shapes[:, tf.newaxis, :2], tf.float32)
    return boxes * tf.tile(sides, [1, 1, 2])
