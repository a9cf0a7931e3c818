"""center_net message -> CenterNet."""

from __future__ import annotations

from google.protobuf.message import Message

from od_finetune.boxes import center_objects
from od_finetune.config.boxes import build_classification_loss, build_localization_loss
from od_finetune.config.center_extractors import build_extractor
from od_finetune.config.resizers import build_resizer
from od_finetune.errors import UserError
from od_finetune.models.detectors.center_net import CenterNet
from od_finetune.models.detectors.center_tasks import Boxes, Center, Task
from od_finetune.models.heads.center import HeadOptions
from od_finetune.protos import center_net_pb2

AT = "model.center_net"


def build_center_net(proto: center_net_pb2.CenterNet) -> CenterNet:
    """The detector that a center_net message describes, its variables not yet created (`build` does that).

    Raises:
      UserError: what the message asks for does not exist or does not fit together; the message names the field.
    """
    if proto.num_classes < 1:
        raise UserError(f"{AT}.num_classes: found {proto.num_classes}, expected at least 1")
    return CenterNet(
        build_extractor(proto.feature_extractor),
        _build_center(proto),
        _build_tasks(proto),
        build_resizer(proto.image_resizer),
        proto.num_classes,
        proto.use_depthwise,
    )


def _build_center(proto: center_net_pb2.CenterNet) -> Center:
    params = proto.object_center_params
    if not 0.0 < params.min_box_overlap_iou < 1.0:
        raise UserError(f"{AT}.object_center_params.min_box_overlap_iou: found {params.min_box_overlap_iou:g}, expected "
                        "a number between 0 and 1")
    if params.max_box_predictions < 1:
        raise UserError(f"{AT}.object_center_params.max_box_predictions: found {params.max_box_predictions}, expected "
                        "at least 1")
    targets = center_objects.ObjectCenters(
        build_classification_loss(params.classification_loss),
        params.object_center_loss_weight,
        params.min_box_overlap_iou,
        params.max_box_predictions,
        params.peak_max_pool_kernel_size,
        proto.compute_heatmap_sparse,
    )
    options = head_options(params, "center_head_params", f"{AT}.object_center_params")
    return Center(targets, proto.num_classes, options, params.heatmap_bias_init)


def _build_tasks(proto: center_net_pb2.CenterNet) -> tuple[Task, ...]:
    tasks: list[Task] = []
    if proto.HasField("object_detection_task"):
        tasks.append(_build_boxes(proto.object_detection_task))
    return tuple(tasks)


def _build_boxes(task: center_net_pb2.CenterNet.ObjectDetection) -> Boxes:
    field = f"{AT}.object_detection_task"
    targets = center_objects.Boxes(
        point_loss(task.localization_loss, field),
        task.task_loss_weight,
        task.scale_loss_weight,
        task.offset_loss_weight,
    )
    return Boxes(
        targets, head_options(task, "scale_head_params", field), head_options(task, "offset_head_params", field)
    )


def point_loss(loss: Message, field: str):
    """A localisation loss of points and lengths.

    Raises:
      UserError: it is one of boxes.
    """
    kind = loss.WhichOneof("localization_loss")
    if kind in ("weighted_iou", "weighted_giou"):
        raise UserError(f"{field}.localization_loss: found {kind}, which compares boxes; here are points and lengths, "
                        "expected e.g. l1_localization_loss {}")
    return build_localization_loss(loss)


def head_options(message: Message, name: str, field: str) -> HeadOptions:
    """PredictionHeadParams of a head, those of the OD API where the config has none.

    Raises:
      UserError: their lists are not of one length, or hold what is no size.
    """
    if not message.HasField(name):
        return HeadOptions()
    params = getattr(message, name)
    filters, sizes = tuple(params.num_filters), tuple(params.kernel_sizes)
    if len(filters) != len(sizes):
        raise UserError(f"{field}.{name}: found {len(filters)} num_filters and {len(sizes)} kernel_sizes, expected one "
                        "of each per convolution")
    if min((*filters, *sizes), default=1) < 1:
        raise UserError(f"{field}.{name}: found {min((*filters, *sizes))}, expected numbers of at least 1")
    return HeadOptions(filters, sizes)
