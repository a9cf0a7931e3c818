"""Task messages of center_net -> CenterNet's tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from od_finetune.boxes import (
    center_deepmac,
    center_dense_pose,
    center_keypoint_decode,
    center_keypoints,
    center_masks,
    center_objects,
    center_tracking,
)
from od_finetune.config.boxes import build_classification_loss, build_localization_loss
from od_finetune.config.label_map import load_label_map
from od_finetune.data.label_map import Label
from od_finetune.errors import UserError
from od_finetune.models.detectors.center_deepmac_task import DeepMasks
from od_finetune.models.detectors.center_keypoint_tasks import KeypointOptions, KeypointPart, KeypointTasks
from od_finetune.models.detectors.center_more_tasks import DensePose, Masks, TemporalOffsets, TrackClassifier, Tracks
from od_finetune.models.detectors.center_tasks import Boxes, KeypointCenters, Task
from od_finetune.models.heads.center import SCOPE, HeadOptions
from od_finetune.models.heads.mask_network import MaskNetwork, architectures
from od_finetune.names import nearest
from od_finetune.protos import center_net_pb2

AT = "model.center_net"
_STD_DEV = 1.0  # of a keypoint's Gaussian where keypoint_label_to_std does not say

CenterNetProto = center_net_pb2.CenterNet


def build_tasks(proto: CenterNetProto) -> tuple[Task, ...]:
    """All tasks but that of the centres, in the order in which one's results are needed by the next.

    Raises:
      UserError: a message asks for what does not exist or does not go with another.
    """
    tasks: list[Task] = []
    if proto.HasField("object_detection_task"):
        tasks.append(_boxes(proto.object_detection_task))
    if proto.keypoint_estimation_task:
        tasks.append(_keypoints(proto))
    if proto.HasField("mask_estimation_task"):
        _needs(proto, "mask_estimation_task", "object_detection_task")
        tasks.append(_masks(proto))
    if proto.HasField("densepose_estimation_task"):
        _needs(proto, "densepose_estimation_task", "mask_estimation_task")
        tasks.append(_dense_pose(proto.densepose_estimation_task))
    if proto.HasField("track_estimation_task"):
        tasks.append(_tracks(proto.track_estimation_task))
    if proto.HasField("temporal_offset_task"):
        tasks.append(_temporal_offsets(proto.temporal_offset_task))
    if proto.HasField("deepmac_mask_estimation"):
        _needs(proto, "deepmac_mask_estimation", "object_detection_task")
        tasks.append(_deep_masks(proto))
    return tuple(tasks)


def _needs(proto: CenterNetProto, field: str, other: str) -> None:
    if not proto.HasField(other):
        raise UserError(f"{AT}.{field}: found it without {other}, whose results it needs; add {other} {{ ... }}")


def _boxes(task: CenterNetProto.ObjectDetection) -> Boxes:
    field = f"{AT}.object_detection_task"
    targets = center_objects.Boxes(
        _point_loss(task.localization_loss, f"{field}.localization_loss"),
        task.task_loss_weight,
        task.scale_loss_weight,
        task.offset_loss_weight,
    )
    return Boxes(
        targets, head_options(task, "scale_head_params", field), head_options(task, "offset_head_params", field)
    )


def keypoint_centers(proto: CenterNetProto) -> KeypointCenters | None:
    """What object_center_params.keypoint_weights_for_center says.

    Raises:
      UserError: it does not go with the keypoint tasks.
    """
    weights = tuple(proto.object_center_params.keypoint_weights_for_center)
    field, tasks = f"{AT}.object_center_params.keypoint_weights_for_center", proto.keypoint_estimation_task
    if not weights:
        return None
    if len(tasks) != 1:
        raise UserError(f"{field}: found {len(tasks)} keypoint_estimation_task, expected one, whose keypoints these "
                        "are")
    label = _class_with_keypoints(proto, 0)
    if len(weights) != len(label.keypoints):
        raise UserError(f"{field}: found {len(weights)} weights, expected {len(label.keypoints)}, one per keypoint of "
                        f"{label.name!r}")
    return KeypointCenters(label.id - 1, tuple(index for index, _ in label.keypoints), weights)


def _keypoints(proto: CenterNetProto) -> KeypointTasks:
    parts = tuple(_keypoint_part(proto, index) for index in range(len(proto.keypoint_estimation_task)))
    for name, values in (
        ("task_name", [part.name for part in parts]),
        ("keypoint_class_name", [part.targets.class_id for part in parts]),
    ):
        if len(set(values)) < len(values):
            raise UserError(f"{AT}.keypoint_estimation_task: found two of the same {name}, expected each once")
    total = 1 + max(index for part in parts for index in part.targets.indices)
    return KeypointTasks(parts, total)


def _class_with_keypoints(proto: CenterNetProto, index: int) -> Label:
    """The class of a keypoint task."""
    name = proto.keypoint_estimation_task[index].keypoint_class_name
    path = proto.keypoint_label_map_path
    if not path or "PATH_TO_BE_CONFIGURED" in path:
        raise UserError(f"{AT}.keypoint_label_map_path: found {path!r}, expected the label map that gives {name!r} its "
                        "keypoints: an item with keypoints { id: 0 label: 'nose' }")
    known = {label.name: label for label in load_label_map(path).check(proto.num_classes).labels if label.keypoints}
    if name not in known:
        like = nearest(name, known) or sorted(known)
        raise UserError(f"{AT}.keypoint_estimation_task[{index}].keypoint_class_name: found {name!r}, expected a class "
                        f"with keypoints in {path}: {', '.join(like) or 'there is none'}")
    return known[name]


def _keypoint_part(proto: CenterNetProto, index: int) -> KeypointPart:
    task, field = proto.keypoint_estimation_task[index], f"{AT}.keypoint_estimation_task[{index}]"
    label = _class_with_keypoints(proto, index)
    ids, names = zip(*label.keypoints, strict=True)
    if unknown := sorted(set(task.keypoint_label_to_std) - set(names)):
        raise UserError(f"{field}.keypoint_label_to_std: found {', '.join(unknown)}, expected keypoints of "
                        f"{label.name!r}: {', '.join(names)}")
    std_devs = tuple(dict(task.keypoint_label_to_std).get(name, _STD_DEV) for name in names)
    targets = center_keypoints.Keypoints(
        label.id - 1,
        ids,
        std_devs,
        build_classification_loss(task.loss.classification_loss),
        _point_loss(task.loss.localization_loss, f"{field}.loss.localization_loss"),
        task.task_loss_weight,
        task.keypoint_heatmap_loss_weight,
        task.keypoint_offset_loss_weight,
        task.keypoint_regression_loss_weight,
        task.keypoint_depth_loss_weight,
        task.offset_peak_radius,
        proto.compute_heatmap_sparse,
    )
    return KeypointPart(
        task.task_name,
        targets,
        _keypoint_decoder(task, std_devs, proto.HasField("object_detection_task")),
        _keypoint_options(task, len(ids), field),
        task.clip_out_of_frame_keypoints,
        task.rescore_instances,
        task.rescoring_threshold,
    )


def _keypoint_decoder(
    task: CenterNetProto.KeypointEstimation, std_devs: tuple[float, ...], has_boxes: bool
) -> center_keypoint_decode.KeypointDecoder:
    return center_keypoint_decode.KeypointDecoder(
        std_devs,
        task.keypoint_candidate_score_threshold,
        task.num_candidates_per_keypoint,
        task.peak_max_pool_kernel_size,
        task.unmatched_keypoint_score,
        task.box_scale,
        task.candidate_search_scale,
        task.candidate_ranking_mode,
        task.score_distance_offset,
        task.score_distance_multiplier,
        task.std_dev_multiplier,
        task.argmax_postprocessing,
        task.gaussian_denom_ratio,
    ).check(has_boxes)


def _keypoint_options(task: CenterNetProto.KeypointEstimation, count: int, field: str) -> KeypointOptions:
    return KeypointOptions(
        head_options(task, "heatmap_head_params", field),
        head_options(task, "offset_head_params", field),
        head_options(task, "regress_head_params", field),
        task.heatmap_bias_init,
        task.per_keypoint_offset and count > 1,
        task.predict_depth,
        task.per_keypoint_depth,
    )


def _masks(proto: CenterNetProto) -> Masks:
    task, field = proto.mask_estimation_task, f"{AT}.mask_estimation_task"
    targets = center_masks.Masks(
        build_classification_loss(task.classification_loss),
        task.task_loss_weight,
        task.mask_height,
        task.mask_width,
        task.score_threshold,
    )
    return Masks(targets, proto.num_classes, head_options(task, "mask_head_params", field), task.heatmap_bias_init)


def _dense_pose(task: CenterNetProto.DensePoseEstimation) -> DensePose:
    field = f"{AT}.densepose_estimation_task"
    targets = center_dense_pose.DensePose(
        task.class_id,
        build_classification_loss(task.loss.classification_loss),
        _point_loss(task.loss.localization_loss, f"{field}.loss.localization_loss"),
        task.num_parts,
        task.task_loss_weight,
        task.part_loss_weight,
        task.coordinate_loss_weight,
        task.upsample_to_input_res,
    )
    return DensePose(targets, task.heatmap_bias_init)


def _tracks(task: CenterNetProto.TrackEstimation) -> Tracks:
    for name in ("num_track_ids", "reid_embed_size", "num_fc_layers"):
        if getattr(task, name) < 1:
            raise UserError(f"{AT}.track_estimation_task.{name}: found {getattr(task, name)}, expected at least 1")
    targets = center_tracking.Tracks(
        build_classification_loss(task.classification_loss), task.num_track_ids, task.task_loss_weight
    )
    classifier = TrackClassifier(task.reid_embed_size, task.num_track_ids, task.num_fc_layers)
    return Tracks(targets, task.reid_embed_size, classifier)


def _temporal_offsets(task: CenterNetProto.TemporalOffsetEstimation) -> TemporalOffsets:
    loss = _point_loss(task.localization_loss, f"{AT}.temporal_offset_task.localization_loss")
    return TemporalOffsets(center_tracking.TemporalOffsets(loss, task.task_loss_weight))


def _deep_masks(proto: CenterNetProto) -> DeepMasks:
    task, field = proto.deepmac_mask_estimation, f"{AT}.deepmac_mask_estimation"
    if proto.HasField("mask_estimation_task"):
        raise UserError(f"{field}: found it beside mask_estimation_task; an object has one mask, remove one of the two")
    networks = architectures(task.num_init_channels)
    if task.network_type not in networks:
        raise UserError(f"{field}.network_type: found {task.network_type!r}, expected one of: {', '.join(networks)}")
    for name in ("dim", "pixel_embedding_dim", "mask_size", "num_init_channels", "postprocess_crop_size"):
        if getattr(task, name) < 1:
            raise UserError(f"{field}.{name}: found {getattr(task, name)}, expected at least 1")
    outside = [number for number in task.allowed_masked_classes_ids if not 1 <= number <= proto.num_classes]
    if outside:
        raise UserError(f"{field}.allowed_masked_classes_ids: found {outside[0]}, expected ids of the label map, 1 to "
                        f"num_classes ({proto.num_classes})")
    channels = (task.pixel_embedding_dim + (2 if task.use_xy else 0), task.dim)
    network = MaskNetwork(f"{SCOPE}/deepmac", networks[task.network_type], channels, task.use_instance_embedding)
    if not task.predict_full_resolution_masks and task.mask_size % network.multiple:
        raise UserError(f"{field}.mask_size: found {task.mask_size}, expected a multiple of {network.multiple} with "
                        f"{task.network_type}")
    targets = center_deepmac.DeepMasks(
        build_classification_loss(task.classification_loss),
        task.task_loss_weight,
        task.mask_size,
        task.use_xy,
        task.predict_full_resolution_masks,
        task.postprocess_crop_size,
        tuple(number - 1 for number in task.allowed_masked_classes_ids),
    )
    return DeepMasks(targets, task.dim, task.pixel_embedding_dim, network, task.use_only_last_stage)


def _point_loss(loss: Message, field: str) -> Callable[..., Any]:
    """A localisation loss of points and lengths.

    Raises:
      UserError: it is one of boxes.
    """
    kind = loss.WhichOneof("localization_loss")
    if kind in ("weighted_iou", "weighted_giou"):
        raise UserError(f"{field}: found {kind}, which compares boxes; here are points and lengths, expected e.g. "
                        "l1_localization_loss {}")
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
