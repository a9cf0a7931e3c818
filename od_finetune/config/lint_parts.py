"""TABLE: which parts of each kind of model are built by themselves, so that several can complain at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from google.protobuf.message import Message

from od_finetune.config import (
    boxes,
    center_extractors,
    center_net,
    center_tasks,
    extractors,
    faster_rcnn,
    heads,
    roi_heads,
    two_stage_extractors,
)
from od_finetune.config.resizers import build_resizer
from od_finetune.protos import center_net_pb2, faster_rcnn_pb2, ssd_pb2

Build = tuple[str, Callable[[], object]]
"""A path and what builds from the message there."""


def _ssd(ssd: ssd_pb2.Ssd, at: str) -> Iterator[Build]:
    yield f"{at}.image_resizer", partial(build_resizer, ssd.image_resizer)
    yield f"{at}.feature_extractor", partial(extractors.build_extractor, ssd.feature_extractor)
    yield f"{at}.box_coder", partial(boxes.build_box_coder, ssd.box_coder)
    yield f"{at}.matcher", partial(boxes.build_matcher, ssd.matcher)
    yield f"{at}.similarity_calculator", partial(boxes.build_similarity, ssd.similarity_calculator)
    yield f"{at}.box_predictor", partial(heads.head_options, ssd.box_predictor, ssd.freeze_batchnorm)
    yield f"{at}.anchor_generator", partial(boxes.build_anchor_generator, ssd.anchor_generator)
    loss = ssd.loss
    yield f"{at}.loss.localization_loss", partial(boxes.build_localization_loss, loss.localization_loss)
    yield f"{at}.loss.classification_loss", partial(boxes.build_classification_loss, loss.classification_loss)
    yield f"{at}.loss", partial(boxes.build_losses, loss)
    yield f"{at}.post_processing", partial(boxes.build_postprocess, ssd.post_processing)


def _faster_rcnn(proto: faster_rcnn_pb2.FasterRcnn, at: str) -> Iterator[Build]:
    yield f"{at}.image_resizer", partial(build_resizer, proto.image_resizer, f"{at}.image_resizer")
    yield f"{at}.feature_extractor", partial(two_stage_extractors.build_extractor, proto.feature_extractor)
    yield f"{at}.first_stage_anchor_generator", partial(
        boxes.build_anchor_generator, proto.first_stage_anchor_generator, normalize=False
    )
    yield f"{at}.first_stage_box_predictor_conv_hyperparams", partial(faster_rcnn.rpn_options, proto)
    yield at, partial(faster_rcnn.build_proposals, proto)
    yield at, partial(faster_rcnn.build_first_loss, proto)
    yield at, partial(faster_rcnn.build_second_loss, proto)
    if proto.number_of_stages > 1:
        yield at, partial(roi_heads.build_crop, proto)
        yield (
            f"{at}.second_stage_post_processing",
            partial(boxes.build_postprocess, proto.second_stage_post_processing),
        )


def _center_net(proto: center_net_pb2.CenterNet, at: str) -> Iterator[Build]:
    yield f"{at}.image_resizer", partial(build_resizer, proto.image_resizer, f"{at}.image_resizer")
    yield f"{at}.feature_extractor", partial(center_extractors.build_extractor, proto.feature_extractor)
    yield f"{at}.object_center_params", partial(center_net.build_center, proto)
    yield at, partial(center_tasks.build_tasks, proto)


PARTS: dict[str, Callable[[Message, str], Iterator[Build]]] = {
    "ssd": _ssd,
    "faster_rcnn": _faster_rcnn,
    "center_net": _center_net,
}
