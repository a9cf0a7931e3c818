"""center_net message -> CenterNet."""

from __future__ import annotations

from od_finetune.boxes import center_objects
from od_finetune.config.boxes import build_classification_loss, build_nms
from od_finetune.config.center_extractors import build_extractor
from od_finetune.config.center_tasks import AT, build_tasks, head_options, keypoint_centers
from od_finetune.config.resizers import build_resizer
from od_finetune.errors import UserError
from od_finetune.models.detectors.base import Inputs
from od_finetune.models.detectors.center_net import CenterNet
from od_finetune.models.detectors.center_tasks import Center
from od_finetune.protos import center_net_pb2


def build_center_net(proto: center_net_pb2.CenterNet) -> CenterNet:
    """The detector that a center_net message describes, its variables not yet created (`build` does that).

    Raises:
      UserError: what the message asks for does not exist or does not fit together; the message names the field.
    """
    if proto.num_classes < 1:
        raise UserError(f"{AT}.num_classes: found {proto.num_classes}, expected at least 1")
    extractor, normalize = build_extractor(proto.feature_extractor)
    has_nms = proto.post_processing.HasField("batch_non_max_suppression")
    for name, _ in proto.post_processing.ListFields():
        if name.name != "batch_non_max_suppression":
            raise UserError(f"{AT}.post_processing.{name.name}: a CenterNet's scores are the heat maps' as they are; "
                            "remove the field (only batch_non_max_suppression acts)")
    resizer = build_resizer(proto.image_resizer, f"{AT}.image_resizer")
    if resizer.channels != 3:
        raise UserError(f"{AT}.image_resizer: found convert_to_grayscale: true, but a CenterNet takes images of 3 "
                        "channels; remove it")
    return CenterNet(
        extractor,
        build_center(proto),
        build_tasks(proto),
        Inputs(resizer, normalize),
        proto.num_classes,
        proto.use_depthwise,
        build_nms(proto.post_processing.batch_non_max_suppression) if has_nms else None,
    )


def build_center(proto: center_net_pb2.CenterNet) -> Center:
    """The task that finds objects.

    Raises:
      UserError: a field of object_center_params is out of range, or does not go with the keypoint tasks.
    """
    params, field = proto.object_center_params, f"{AT}.object_center_params"
    if not 0.0 < params.min_box_overlap_iou < 1.0:
        raise UserError(f"{field}.min_box_overlap_iou: found {params.min_box_overlap_iou:g}, expected a number between "
                        "0 and 1")
    if params.max_box_predictions < 1:
        raise UserError(f"{field}.max_box_predictions: found {params.max_box_predictions}, expected at least 1")
    targets = center_objects.ObjectCenters(
        build_classification_loss(params.classification_loss),
        params.object_center_loss_weight,
        params.min_box_overlap_iou,
        params.max_box_predictions,
        params.peak_max_pool_kernel_size,
        proto.compute_heatmap_sparse,
    )
    options = head_options(params, "center_head_params", field)
    return Center(targets, proto.num_classes, options, params.heatmap_bias_init, keypoint_centers(proto))
