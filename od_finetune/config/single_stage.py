"""ssd message -> single-shot detector."""

from __future__ import annotations

from od_finetune.config import heads
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
from od_finetune.config.resizers import build_resizer, padded_after
from od_finetune.errors import UserError
from od_finetune.models.detectors.ssd import SSD, Boxes, Network
from od_finetune.protos import ssd_pb2


def build_ssd(ssd: ssd_pb2.Ssd) -> SSD:
    """The detector that an ssd message describes, its variables not yet created (`build` does that).

    Raises:
      UserError: what the message asks for does not exist or does not fit together; the message names the field.
    """
    if ssd.num_classes < 1:
        raise UserError(f"model.ssd.num_classes: found {ssd.num_classes}, expected at least 1")
    boxes = _build_boxes(ssd)
    network, multiple = build_network(ssd, boxes.anchors.num_anchors_per_location())
    kind = heads.kind_of(ssd.box_predictor)
    code_size, expected = getattr(ssd.box_predictor, kind).box_code_size, boxes.assigner.coder.code_size
    if code_size != expected:
        raise UserError(
            f"model.ssd.box_predictor.{kind}.box_code_size: found {code_size}, expected "
            f"{expected}, the size of {ssd.box_coder.WhichOneof('box_coder_oneof')}'s codes"
        )
    # Other detectors pad before they normalise.
    resizer = padded_after(build_resizer(ssd.image_resizer), network.normalize)
    return SSD(network, boxes, resizer, ssd.num_classes, multiple)


def _build_boxes(ssd: ssd_pb2.Ssd) -> Boxes:
    return Boxes(
        anchors=build_anchor_generator(ssd.anchor_generator),
        assigner=build_target_assigner(ssd),
        losses=build_losses(ssd.loss),
        loss_options=build_loss_options(ssd),
        postprocessor=build_postprocess(ssd.post_processing, heads.converts_scores(ssd.box_predictor)),
        unmatched_class_target=unmatched_class_target(ssd),
        detects_background=has_background(ssd),
    )


def build_network(ssd: ssd_pb2.Ssd, anchors_per_location: list[int]) -> tuple[Network, int]:
    """Backbone, neck and head of an SSD, and the multiple its input is padded to."""
    _check_levels(ssd)
    extractor = build_extractor(ssd.feature_extractor, ssd.freeze_batchnorm)
    if len(anchors_per_location) != extractor.num_maps:
        raise UserError(
            f"model.ssd: the anchor generator makes anchors for {len(anchors_per_location)} feature maps, "
            f"but {ssd.feature_extractor.type} has {extractor.num_maps} "
            "(feature_extractor.num_layers, or the levels of its fpn)"
        )
    class_slots = ssd.num_classes + (1 if ssd.add_background_class else 0)
    head, head_rules = heads.build_head(
        ssd.box_predictor, anchors_per_location, class_slots, ssd.freeze_batchnorm, extractor.keras
    )
    network = Network(
        backbone=extractor.backbone,
        neck=extractor.neck,
        head=head,
        backbone_rules=extractor.backbone_rules,
        neck_rules=extractor.neck_rules,
        head_rules=head_rules,
        vocabularies=extractor.vocabularies,
        normalize=extractor.normalize,
    )
    return network, extractor.pad_to_multiple


def _check_levels(ssd: ssd_pb2.Ssd) -> None:
    """As many anchors of other levels would go unnoticed, and be of another size than what the maps can see."""
    if ssd.anchor_generator.WhichOneof("anchor_generator_oneof") != "multiscale_anchor_generator":
        return
    kind = ssd.feature_extractor.WhichOneof("feature_pyramid_oneof")
    if kind is None:
        return
    pyramid, anchors = getattr(ssd.feature_extractor, kind), ssd.anchor_generator.multiscale_anchor_generator
    found, expected = (anchors.min_level, anchors.max_level), (pyramid.min_level, pyramid.max_level)
    if found != expected:
        raise UserError(
            f"model.ssd.anchor_generator.multiscale_anchor_generator: found min_level {found[0]} and max_level "
            f"{found[1]}, expected {expected[0]} and {expected[1]} as in feature_extractor.{kind}"
        )
