"""second_stage_box_predictor message -> heads of the second stage, one builder per kind."""

from __future__ import annotations

from typing import NamedTuple

from od_finetune.config.hyperparams import build_dense_hyperparams, build_hyperparams
from od_finetune.config.two_stage_extractors import TwoStageExtractor
from od_finetune.errors import UserError
from od_finetune.models.heads import context, mask, rfcn, roi
from od_finetune.names import Rules
from od_finetune.protos import faster_rcnn_pb2

AT = "model.faster_rcnn.second_stage_box_predictor"


class SecondStage(NamedTuple):
    """What looks at regions, with what its surroundings need to know."""

    module: roi.RoiClassifier
    rules: Rules  # canonical -> TF2 name, of its heads


def build_second_stage(proto: faster_rcnn_pb2.FasterRcnn, extractor: TwoStageExtractor) -> SecondStage:
    """The second stage of the detector, masks included where there is a third one.

    Raises:
      UserError: no or an unknown predictor is described, or one that does not fit.
    """
    kind = proto.second_stage_box_predictor.WhichOneof("box_predictor_oneof")
    if kind not in BUILDERS:
        raise UserError(f"{AT}: found {kind or 'nothing'}, expected {' or '.join(BUILDERS)}")
    return BUILDERS[kind](proto, extractor)


def _mask_rcnn(proto: faster_rcnn_pb2.FasterRcnn, extractor: TwoStageExtractor) -> SecondStage:
    at, predictor = f"{AT}.mask_rcnn_box_predictor", proto.second_stage_box_predictor.mask_rcnn_box_predictor
    if predictor.box_code_size != roi.CODE_SIZE:
        raise UserError(f"{at}.box_code_size: found {predictor.box_code_size}, expected {roi.CODE_SIZE}")
    options = roi.BoxHeadOptions(
        hyperparams=build_dense_hyperparams(predictor.fc_hyperparams, f"{at}.fc_hyperparams"),
        share_box_across_classes=predictor.share_box_across_classes,
        dropout_keep_probability=predictor.dropout_keep_probability if predictor.use_dropout else 1.0,
        use_dropout=predictor.use_dropout,
    )
    head = roi.BoxHead(options, proto.num_classes)
    masks, rules = _mask_head(proto)
    attention = build_context(proto)
    if attention is not None and masks is not None:
        raise UserError("model.faster_rcnn.number_of_stages: found 3, but with context_config there are no masks; "
                        "expected 2")
    early = proto.context_config.attention_position == faster_rcnn_pb2.POST_RPN
    module = roi.CropClassifier(build_crop(proto), extractor.second, head, masks, attention, early)
    return SecondStage(module, [*roi.TF2_RULES, *rules])


def _mask_head(proto: faster_rcnn_pb2.FasterRcnn) -> tuple[mask.MaskHead | None, Rules]:
    """Nothing unless there is a third stage."""
    at, predictor = f"{AT}.mask_rcnn_box_predictor", proto.second_stage_box_predictor.mask_rcnn_box_predictor
    masks = predictor.predict_instance_masks
    if masks != (proto.number_of_stages == 3):
        raise UserError(
            f"model.faster_rcnn.number_of_stages: found {proto.number_of_stages}, but {at}.predict_instance_masks: "
            f"{str(masks).lower()}; masks are the third stage, so expected 3 and true, or neither"
        )
    if not masks:
        return None, []
    sizes = "mask_height", "mask_width", "mask_prediction_num_conv_layers"
    for field in sizes:
        if getattr(predictor, field) < 1:
            raise UserError(f"{at}.{field}: found {getattr(predictor, field)}, expected at least 1")
    height, width, num_conv_layers = (getattr(predictor, field) for field in sizes)
    options = mask.MaskHeadOptions(
        hyperparams=build_hyperparams(predictor.conv_hyperparams, f"{at}.conv_hyperparams"),
        height=height,
        width=width,
        conv_depth=predictor.mask_prediction_conv_depth,
        num_conv_layers=num_conv_layers,
        class_agnostic=predictor.masks_are_class_agnostic,
        convolve_then_upsample=predictor.convolve_then_upsample_masks,
    )
    return mask.MaskHead(options, proto.num_classes), mask.tf2_rules(options)


def _rfcn(proto: faster_rcnn_pb2.FasterRcnn, extractor: TwoStageExtractor) -> SecondStage:
    at, predictor = f"{AT}.rfcn_box_predictor", proto.second_stage_box_predictor.rfcn_box_predictor
    if predictor.box_code_size != roi.CODE_SIZE:
        raise UserError(f"{at}.box_code_size: found {predictor.box_code_size}, expected {roi.CODE_SIZE}")
    if proto.number_of_stages == 3:
        raise UserError("model.faster_rcnn.number_of_stages: found 3, but rfcn_box_predictor has no masks; expected 2")
    if proto.HasField("context_config"):
        raise UserError("model.faster_rcnn.context_config: rfcn_box_predictor has no features of single regions to "
                        "which it could add; remove it")
    if extractor.num_maps != 1:
        raise UserError(f"{at}: {proto.feature_extractor.type} has {extractor.num_maps} feature maps, expected one")
    bins = predictor.num_spatial_bins_height, predictor.num_spatial_bins_width
    crop = predictor.crop_height, predictor.crop_width
    for side, number, size in zip(("height", "width"), bins, crop, strict=True):
        if number < 1 or size < 1 or size % number:
            raise UserError(
                f"{at}.crop_{side}: found {size}, expected a multiple of num_spatial_bins_{side}, {number}"
            )
    hyperparams = build_hyperparams(predictor.conv_hyperparams, f"{at}.conv_hyperparams")
    head = rfcn.RfcnHead(rfcn.RfcnOptions(hyperparams, bins, crop, predictor.depth), proto.num_classes)
    return SecondStage(rfcn.RfcnClassifier(extractor.second, head), [])


def build_context(proto: faster_rcnn_pb2.FasterRcnn) -> context.ContextAttention | None:
    """What lets regions attend to other images; None without a context_config.

    Raises:
      UserError: nothing would be attended to, or numbers that cannot be.
    """
    if not proto.HasField("context_config"):
        return None
    at, message = "model.faster_rcnn.context_config", proto.context_config
    if not (message.use_self_attention or message.use_long_term_attention):
        raise UserError(f"{at}: both use_self_attention and use_long_term_attention are false; set one, or remove "
                        "context_config")
    if message.attention_position == faster_rcnn_pb2.ATTENTION_DEFAULT:
        raise UserError(f"{at}.attention_position: found ATTENTION_DEFAULT, expected POST_RPN or POST_BOX_CLASSIFIER")
    for field in ("max_num_context_features", "attention_bottleneck_dimension", "attention_temperature",
                  "context_feature_length", "num_attention_heads", "num_attention_layers"):  # fmt: skip
        if getattr(message, field) <= 0:
            raise UserError(f"{at}.{field}: found {getattr(message, field):g}, expected more than 0")
    options = context.ContextOptions(
        context_feature_length=message.context_feature_length,
        max_num_context_features=message.max_num_context_features,
        attention_bottleneck_dimension=message.attention_bottleneck_dimension,
        attention_temperature=message.attention_temperature,
        use_self_attention=message.use_self_attention,
        use_long_term_attention=message.use_long_term_attention,
        self_attention_in_sequence=message.self_attention_in_sequence,
        num_attention_heads=message.num_attention_heads,
        num_attention_layers=message.num_attention_layers,
    )
    return context.ContextAttention(options)


def build_crop(proto: faster_rcnn_pb2.FasterRcnn) -> roi.RoiCrop:
    """What cuts regions out.

    Raises:
      UserError: nothing would be left of them.
    """
    at = "model.faster_rcnn"
    for field in ("initial_crop_size", "maxpool_kernel_size", "maxpool_stride"):
        if getattr(proto, field) < 1:
            raise UserError(f"{at}.{field}: found {getattr(proto, field)}, expected at least 1")
    if proto.maxpool_kernel_size > proto.initial_crop_size:
        raise UserError(
            f"{at}.maxpool_kernel_size: found {proto.maxpool_kernel_size}, expected at most initial_crop_size, "
            f"{proto.initial_crop_size}"
        )
    return roi.RoiCrop(proto.initial_crop_size, proto.maxpool_kernel_size, proto.maxpool_stride)


BUILDERS = {
    "mask_rcnn_box_predictor": _mask_rcnn,
    "rfcn_box_predictor": _rfcn,
}
