"""The published configs (`shared/reference/configs`, and those of the goldens), and how to make one small."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from od_finetune import fields
from od_finetune.config import pipeline
from od_finetune.protos import image_resizer_pb2, model_pb2
from od_finetune.protos.pipeline_pb2 import TrainEvalPipelineConfig
from od_finetune.training import probe

SHARED = Path(__file__).resolve().parents[3] / "shared"
SIDE = 128  # of a small config's images
HOURGLASS_SIDE = 256  # 128 leaves its innermost batch norms two numbers a channel, and gradients near 1e19


def configs() -> dict[str, Path]:
    """Path by name, `tf1_ssd_mobilenet_v1_coco`; empty where there is no reference data."""
    found = {}
    for half in ("tf1", "tf2"):
        for path in sorted((SHARED / "reference" / "configs" / half).glob("*.config")):
            found[f"{half}_{path.stem}"] = path
    for path in sorted((SHARED / "reference" / "goldens").glob("*/pipeline.config")):
        found.setdefault(path.parent.name, path)
    return found


# What archives call a network whose config has another name, or is at hand for another input size.
_SPELLINGS = (
    (r"_\d{4}_\d\d_\d\d$", ""),
    (r"_lowproposals", ""),
    (r"^centernet_hg104", "centernet_hourglass104"),
    (r"^ssd_mobilenet_v3_large_coco$", "ssdlite_mobilenet_v3_large_320x320_coco"),
    (r"^(ssdlite_mobiledet_\w+_320x320_coco)$", r"\1_sync_4x4"),
    (r"^ssdlite_mobilenet_edgetpu_coco_quant$", "ssdlite_mobilenet_edgetpu_320x320_coco_quant"),
    (r"^ssd_mobilenet_v2_fpnlite_640x640", "ssd_mobilenet_v2_fpnlite_320x320"),
    (r"^(ssd_resnet101_v1_fpn|faster_rcnn_resnet101_v1)_640x640", r"\1_1024x1024"),
    (r"^efficientdet_(d\d)_.*", r"ssd_efficientdet_\1"),
)


def is_config_of(name: str, archive: str) -> bool:
    """Whether a published config is of the network in one of the zoo's archives."""
    for pattern, replacement in _SPELLINGS:
        archive = re.sub(pattern, replacement, archive)
    config = name[len("tf1_") :]
    return config == archive or archive.startswith("ssd_efficientdet") and config.startswith(f"{archive}_")


def load(path: Path) -> TrainEvalPipelineConfig:
    """The config as it was published, its keypoints' label map found."""
    config = pipeline.parse(path.read_text(encoding="utf-8"), str(path))
    if config.model.center_net.keypoint_label_map_path:
        label_map = SHARED / "reference" / "mscoco_keypoints_label_map.pbtxt"
        config.model.center_net.keypoint_label_map_path = str(label_map)
    return config


def parts(model: model_pb2.DetectionModel) -> Any:
    """The message of the detector that is set: an Ssd, a FasterRcnn or a CenterNet."""
    return getattr(model, model.WhichOneof("model"))


def extractor_type(model: model_pb2.DetectionModel) -> str:
    """E.g. `ssd_mobilenet_v1`."""
    return parts(model).feature_extractor.type


def small_side(model: model_pb2.DetectionModel) -> int:
    """The sides of images on which a network trains quickly, in pixels."""
    return HOURGLASS_SIDE if "hourglass" in extractor_type(model) else SIDE


def shrunk(model: model_pb2.DetectionModel) -> model_pb2.DetectionModel:
    """The same network on small images, with few proposals: a training step is then mostly its tracing."""
    small = model_pb2.DetectionModel()
    small.CopyFrom(model)
    detector, side = parts(small), small_side(model)
    resizer = image_resizer_pb2.ImageResizer()
    resizer.fixed_shape_resizer.height = resizer.fixed_shape_resizer.width = side
    detector.image_resizer.CopyFrom(resizer)
    if small.WhichOneof("model") == "faster_rcnn":
        detector.first_stage_max_proposals = 16
        detector.second_stage_batch_size = 8
    if small.center_net.HasField("deepmac_mask_estimation"):
        small.center_net.object_center_params.max_box_predictions = 4  # each of them has a mask drawn
    return small


def batch(model: model_pb2.DetectionModel, num_classes: int, size: int = 2, side: int | None = None) -> fields.Batch:
    """Noise with three boxes an image, and with what else a detector learns from: masks, keypoints, a context bank.

    `side` is that of the images, `small_side` unless given."""
    side = side or small_side(model)
    made = probe.random_batch(size, (side, side), num_classes, max_boxes=3)
    groundtruth, draws = made.groundtruth, np.random.default_rng(1)
    drawn = any(map(model.center_net.HasField, ("mask_estimation_task", "deepmac_mask_estimation")))
    if drawn or model.WhichOneof("model") == "faster_rcnn":
        masks = draws.integers(0, 2, (size, 3, side, side)).astype(np.uint8)
        groundtruth = groundtruth._replace(masks=tf.constant(masks))
    if model.center_net.keypoint_estimation_task:
        count = 17  # of COCO's people
        groundtruth = groundtruth._replace(
            keypoints=tf.constant(draws.random((size, 3, count, 2), np.float32)),
            keypoint_visibilities=tf.ones((size, 3, count), tf.bool),
        )
    made = made._replace(groundtruth=groundtruth)
    if model.faster_rcnn.HasField("context_config"):
        features = draws.normal(size=(size, 5, model.faster_rcnn.context_config.context_feature_length))
        bank = fields.ContextBank(tf.constant(features, tf.float32), tf.range(1, size + 1))
        made = made._replace(context=bank)
    return made
