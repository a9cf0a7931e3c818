"""faster_rcnn message -> two-stage detector."""

from __future__ import annotations

from od_finetune.boxes import coders, losses, matching, nms, sampling, similarity, targets
from od_finetune.boxes.mask_loss import MaskLoss
from od_finetune.boxes.postprocess import Postprocessor
from od_finetune.boxes.proposals import ProposalGenerator
from od_finetune.boxes.two_stage_loss import FirstStageLoss, SecondStageLoss
from od_finetune.config.boxes import (
    build_anchor_generator,
    build_classification_loss,
    build_miner,
    build_postprocess,
)
from od_finetune.config.hyperparams import build_hyperparams
from od_finetune.config.resizers import build_resizer
from od_finetune.config.roi_heads import build_second_stage
from od_finetune.config.two_stage_extractors import TwoStageExtractor, build_extractor
from od_finetune.errors import UserError
from od_finetune.models.detectors.base import Inputs
from od_finetune.models.detectors.faster_rcnn import Boxes, FasterRCNN, Network
from od_finetune.models.heads import rpn
from od_finetune.protos import faster_rcnn_pb2, losses_pb2, post_processing_pb2

AT = "model.faster_rcnn"
# IoU from which an anchor (a region) counts as an object, and below which it counts as background.
_ANCHOR_THRESHOLDS, _REGION_THRESHOLD = (0.7, 0.3), 0.5


def build_faster_rcnn(proto: faster_rcnn_pb2.FasterRcnn) -> FasterRCNN:
    """The detector that a faster_rcnn message describes, its variables not yet created (`build` does that).

    Raises:
      UserError: what the message asks for does not exist or does not fit together; the message names the field.
    """
    if proto.num_classes < 1:
        raise UserError(f"{AT}.num_classes: found {proto.num_classes}, expected at least 1")
    if proto.number_of_stages not in (1, 2, 3):
        raise UserError(f"{AT}.number_of_stages: found {proto.number_of_stages}, expected 1, 2 or 3")
    if proto.number_of_stages == 1 and proto.HasField("context_config"):
        raise UserError(f"{AT}.context_config: with number_of_stages 1 nothing attends to the bank; remove it, or set "
                        "number_of_stages: 2")
    extractor = build_extractor(proto.feature_extractor)
    boxes = build_boxes(proto)
    inputs = Inputs(build_resizer(proto.image_resizer, f"{AT}.image_resizer"), extractor.normalize)
    network = build_network(proto, extractor, boxes.anchors.num_anchors_per_location())
    return FasterRCNN(network, boxes, inputs, proto.num_classes)


def build_network(
    proto: faster_rcnn_pb2.FasterRcnn, extractor: TwoStageExtractor, anchors_per_location: list[int]
) -> Network:
    """The weighted parts of the detector."""
    if len(anchors_per_location) != extractor.num_maps:
        raise UserError(
            f"{AT}.first_stage_anchor_generator: makes anchors for {len(anchors_per_location)} feature maps, but "
            f"{proto.feature_extractor.type} has {extractor.num_maps}"
        )
    second = None if proto.number_of_stages == 1 else build_second_stage(proto, extractor)
    return Network(
        backbone=extractor.backbone,
        neck=extractor.neck,
        rpn=rpn.RegionProposalNetwork(rpn_options(proto), anchors_per_location),
        second=second and second.module,
        rules={
            "backbone": extractor.backbone_rules,
            "neck": extractor.neck_rules,
            "head": [*rpn.TF2_RULES, *(second.rules if second else [])],
        },
        vocabularies=extractor.vocabularies,
        pad_to_multiple=extractor.pad_to_multiple,
    )


def rpn_options(proto: faster_rcnn_pb2.FasterRcnn) -> rpn.RpnOptions:
    """What the region proposal network looks like."""
    field = "first_stage_box_predictor_conv_hyperparams"
    return rpn.RpnOptions(
        hyperparams=build_hyperparams(getattr(proto, field), f"{AT}.{field}"),
        depth=proto.first_stage_box_predictor_depth,
        kernel_size=proto.first_stage_box_predictor_kernel_size,
        atrous_rate=proto.first_stage_atrous_rate,
    )


def build_boxes(proto: faster_rcnn_pb2.FasterRcnn) -> Boxes:
    """The parts without weights."""
    return Boxes(
        anchors=build_anchor_generator(proto.first_stage_anchor_generator, normalize=False),
        clip_anchors=proto.clip_anchors_to_image,
        proposals=build_proposals(proto),
        first_loss=build_first_loss(proto),
        second_loss=build_second_loss(proto),
        postprocessor=build_regions_postprocess(proto),
        mask_loss=MaskLoss(proto.second_stage_mask_prediction_loss_weight),
    )


def build_regions_postprocess(proto: faster_rcnn_pb2.FasterRcnn) -> Postprocessor:
    """Of the second stage. Its boxes are relative to the image whatever `change_coordinate_frame` says, as in the OD
    API."""
    settings = post_processing_pb2.PostProcessing()
    settings.CopyFrom(proto.second_stage_post_processing)
    settings.batch_non_max_suppression.change_coordinate_frame = True
    return build_postprocess(settings)


def build_proposals(proto: faster_rcnn_pb2.FasterRcnn) -> ProposalGenerator:
    """What is kept of the first stage's boxes.

    Raises:
      UserError: a threshold or number that cannot be.
    """
    number, threshold = proto.first_stage_max_proposals, proto.first_stage_nms_iou_threshold
    if number < 1:
        raise UserError(f"{AT}.first_stage_max_proposals: found {number}, expected at least 1")
    if not 0.0 <= threshold <= 1.0:
        raise UserError(f"{AT}.first_stage_nms_iou_threshold: found {threshold:g}, expected a number from 0 to 1")
    options = nms.NmsOptions(
        score_threshold=proto.first_stage_nms_score_threshold,
        iou_threshold=threshold,
        max_detections_per_class=number,
        max_total_detections=number,
        use_combined_nms=proto.use_combined_nms_in_first_stage,
        change_coordinate_frame=False,
    )
    return ProposalGenerator(_coder(), nms.MulticlassNms(options))


def build_first_loss(proto: faster_rcnn_pb2.FasterRcnn) -> FirstStageLoss:
    """The loss of the region proposal network, its kinds of losses fixed as in the OD API."""
    matcher = matching.ArgmaxMatcher(*_ANCHOR_THRESHOLDS, force_match_for_each_row=True)
    return FirstStageLoss(
        assigner=targets.TargetAssigner(similarity.iou_similarity, matcher, _coder()),
        sampling=_sampler(proto, "first_stage_minibatch_size", "first_stage_positive_balance_fraction"),
        localization=losses.SmoothL1LocalizationLoss(),
        objectness=losses.SoftmaxClassificationLoss(),
        localization_weight=proto.first_stage_localization_loss_weight,
        objectness_weight=proto.first_stage_objectness_loss_weight,
    )


def build_second_loss(proto: faster_rcnn_pb2.FasterRcnn) -> SecondStageLoss:
    """The loss of the second stage; its class loss is softmax unless the config says otherwise.

    Raises:
      UserError: the class loss is none for regions, or sizes and shares that cannot be.
    """
    classification = losses_pb2.ClassificationLoss()
    classification.CopyFrom(proto.second_stage_classification_loss)
    kind = classification.WhichOneof("classification_loss")
    if kind is None:
        classification.weighted_softmax.SetInParent()
    elif kind not in _CLASSIFICATION:
        raise UserError(
            f"{AT}.second_stage_classification_loss: found {kind}, expected one of {', '.join(_CLASSIFICATION)}"
        )
    weights = proto.second_stage_classification_loss_weight, proto.second_stage_localization_loss_weight
    mines = proto.HasField("hard_example_miner")
    background = [1.0] + [0.0] * proto.num_classes
    matcher = matching.ArgmaxMatcher(_REGION_THRESHOLD)
    return SecondStageLoss(
        assigner=targets.TargetAssigner(
            similarity.iou_similarity, matcher, _coder(), unmatched_class_target=background
        ),
        sampling=None if mines else _sampler(proto, "second_stage_batch_size", "second_stage_balance_fraction"),
        localization=losses.SmoothL1LocalizationLoss(),
        classification=build_classification_loss(classification),
        classification_weight=weights[0],
        localization_weight=weights[1],
        miner=build_miner(proto.hard_example_miner, *weights) if mines else None,
    )


_CLASSIFICATION = ("weighted_softmax", "weighted_sigmoid", "weighted_sigmoid_focal", "weighted_logits_softmax")


def _coder() -> coders.FasterRcnnCoder:
    """Of both stages; the config has no field for it."""
    return coders.FasterRcnnCoder(10.0, 10.0, 5.0, 5.0)


def _sampler(proto: faster_rcnn_pb2.FasterRcnn, size: str, fraction: str) -> sampling.BalancedSampler:
    if getattr(proto, size) < 1:
        raise UserError(f"{AT}.{size}: found {getattr(proto, size)}, expected at least 1")
    if not 0.0 <= getattr(proto, fraction) <= 1.0:
        raise UserError(f"{AT}.{fraction}: found {getattr(proto, fraction):g}, expected a number from 0 to 1")
    return sampling.BalancedSampler(getattr(proto, size), getattr(proto, fraction))
