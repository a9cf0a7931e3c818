"""Model message -> detector."""

from __future__ import annotations

from od_finetune.config.boxes import (
    build_anchor_generator,
    build_loss_options,
    build_losses,
    build_postprocess,
    build_target_assigner,
    has_background,
    unmatched_class_target,
)
from od_finetune.config.extractors import build_extractor
from od_finetune.config.hyperparams import build_hyperparams
from od_finetune.errors import UserError
from od_finetune.models import image_resizers
from od_finetune.models.detectors.ssd import SSD, Boxes, Network
from od_finetune.models.heads import dense
from od_finetune.protos import box_predictor_pb2, image_resizer_pb2, model_pb2, ssd_pb2


def build_detector(model: model_pb2.DetectionModel) -> SSD:
    """The detector that a model message describes, its variables not yet created (`build` does that).

    Raises:
      UserError: what the message asks for does not exist or does not fit together; the message names the field.
    """
    kind = model.WhichOneof("model")
    if kind != "ssd":
        raise UserError(f"model: found {kind or 'nothing'}, expected ssd")
    ssd = model.ssd
    if ssd.num_classes < 1:
        raise UserError(f"model.ssd.num_classes: found {ssd.num_classes}, expected at least 1")
    boxes = _build_boxes(ssd)
    network, multiple = build_network(ssd, boxes.anchors.num_anchors_per_location())
    code_size, expected = ssd.box_predictor.convolutional_box_predictor.box_code_size, boxes.assigner.coder.code_size
    if code_size != expected:
        raise UserError(
            f"model.ssd.box_predictor.convolutional_box_predictor.box_code_size: found {code_size}, expected "
            f"{expected}, the size of {ssd.box_coder.WhichOneof('box_coder_oneof')}'s codes"
        )
    return SSD(network, boxes, build_resizer(ssd.image_resizer), ssd.num_classes, multiple)


def _build_boxes(ssd: ssd_pb2.Ssd) -> Boxes:
    return Boxes(
        anchors=build_anchor_generator(ssd.anchor_generator),
        assigner=build_target_assigner(ssd),
        losses=build_losses(ssd.loss),
        loss_options=build_loss_options(ssd),
        postprocessor=build_postprocess(ssd.post_processing),
        unmatched_class_target=unmatched_class_target(ssd),
        detects_background=has_background(ssd),
    )


def build_resizer(proto: image_resizer_pb2.ImageResizer) -> image_resizers.Resizer:
    """The image_resizer message's resizer."""
    kind = proto.WhichOneof("image_resizer_oneof")
    if kind is None:
        raise UserError(
            "model.ssd.image_resizer: found nothing, expected e.g. fixed_shape_resizer { height: 300 width: 300 }"
        )
    message = getattr(proto, kind)
    if kind == "identity_resizer":
        return image_resizers.Identity()
    if kind == "pad_to_multiple_resizer":
        return image_resizers.PadToMultiple(message.multiple, message.convert_to_grayscale)
    method = image_resizer_pb2.ResizeType.Name(message.resize_method).lower()
    if kind == "fixed_shape_resizer":
        return image_resizers.FixedShape(message.height, message.width, method, message.convert_to_grayscale)
    if kind == "conditional_shape_resizer":
        return _conditional(message, method)
    return _keep_aspect_ratio(message, method)


def _conditional(
    proto: image_resizer_pb2.ConditionalShapeResizer, method: str
) -> image_resizers.ConditionalShape:
    if proto.condition == image_resizer_pb2.ConditionalShapeResizer.INVALID:
        raise UserError("conditional_shape_resizer.condition: found INVALID, expected GREATER or SMALLER")
    greater = proto.condition == image_resizer_pb2.ConditionalShapeResizer.GREATER
    return image_resizers.ConditionalShape(greater, proto.size_threshold, method, proto.convert_to_grayscale)


def _keep_aspect_ratio(
    proto: image_resizer_pb2.KeepAspectRatioResizer, method: str
) -> image_resizers.KeepAspectRatio:
    low, high = proto.min_dimension, proto.max_dimension
    if not 0 < low <= high:
        raise UserError(f"keep_aspect_ratio_resizer: found min_dimension {low} and max_dimension {high}, "
                        "expected 0 < min_dimension <= max_dimension")
    pad_value = tuple(proto.per_channel_pad_value) or (0.0, 0.0, 0.0)
    if len(pad_value) != 3:
        raise UserError(f"keep_aspect_ratio_resizer.per_channel_pad_value: found {len(pad_value)} values, expected 3")
    return image_resizers.KeepAspectRatio(low, high, method, proto.pad_to_max_dimension,
                                          proto.convert_to_grayscale, pad_value)


def build_network(ssd: ssd_pb2.Ssd, anchors_per_location: list[int]) -> tuple[Network, int]:
    """Backbone, neck and head of an SSD, and the multiple its input is padded to."""
    extractor = build_extractor(ssd.feature_extractor, ssd.freeze_batchnorm)
    if len(anchors_per_location) != extractor.num_maps:
        raise UserError(
            f"model.ssd: the anchor generator makes anchors for {len(anchors_per_location)} feature maps, "
            f"but {ssd.feature_extractor.type} has {extractor.num_maps} (feature_extractor.num_layers)"
        )
    class_slots = ssd.num_classes + (1 if ssd.add_background_class else 0)
    options = head_options(ssd.box_predictor, ssd.freeze_batchnorm)
    network = Network(
        backbone=extractor.backbone,
        neck=extractor.neck,
        head=dense.ConvolutionalHead(options, anchors_per_location, class_slots),
        backbone_rules=extractor.backbone_rules,
        neck_rules=extractor.neck_rules,
        head_rules=dense.TF2_RULES,
    )
    return network, extractor.pad_to_multiple


def head_options(proto: box_predictor_pb2.BoxPredictor, freeze_batchnorm: bool) -> dense.ConvolutionalHeadOptions:
    """The options of a convolutional_box_predictor."""
    kind = proto.WhichOneof("box_predictor_oneof")
    if kind != "convolutional_box_predictor":
        raise UserError(f"model.ssd.box_predictor: found {kind}, expected convolutional_box_predictor")
    predictor = proto.convolutional_box_predictor
    hyperparams = build_hyperparams(
        predictor.conv_hyperparams, "model.ssd.box_predictor.convolutional_box_predictor.conv_hyperparams"
    )
    clip = predictor.box_encodings_clip_range
    return dense.ConvolutionalHeadOptions(
        hyperparams=hyperparams.frozen_batchnorm() if freeze_batchnorm else hyperparams,
        kernel_size=predictor.kernel_size,
        box_code_size=predictor.box_code_size,
        num_layers_before_predictor=predictor.num_layers_before_predictor,
        min_depth=predictor.min_depth,
        max_depth=predictor.max_depth,
        dropout_keep_probability=predictor.dropout_keep_probability if predictor.use_dropout else 1.0,
        use_dropout=predictor.use_dropout,
        apply_sigmoid_to_scores=predictor.apply_sigmoid_to_scores,
        class_prediction_bias_init=predictor.class_prediction_bias_init,
        use_depthwise=predictor.use_depthwise,
        box_encodings_clip_range=(clip.min, clip.max) if predictor.HasField("box_encodings_clip_range") else None,
    )
