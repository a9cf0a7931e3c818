"""A Faster R-CNN small enough for everyday tests: a ResNet of one unit per block, some channels wide."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import tf_keras
from google.protobuf import text_format

from od_finetune.config.detector import build_detector
from od_finetune.config.two_stage_extractors import TABLE
from od_finetune.models.backbones import resnet_v1
from od_finetune.models.detectors.faster_rcnn import FasterRCNN
from od_finetune.protos import model_pb2

KIND = "faster_rcnn_resnet50"
_ARGUMENTS = {"num_layers": 5, "depth_multiplier": 1 / 16}
HYPERPARAMS = "regularizer { l2_regularizer { weight: 0.01 } } initializer { truncated_normal_initializer { } }"
TEXT = f"""
  num_classes: 2
  image_resizer {{ fixed_shape_resizer {{ height: 64 width: 64 }} }}
  feature_extractor {{ type: "{KIND}" batch_norm_trainable: true }}
  first_stage_anchor_generator {{ grid_anchor_generator {{
    height: 32 width: 32 scales: [0.5, 1.0] aspect_ratios: [1.0] height_stride: 16 width_stride: 16
    height_offset: 8 width_offset: 8 }} }}
  first_stage_box_predictor_conv_hyperparams {{ {HYPERPARAMS.replace("{ }", "{ stddev: 0.03 }")} }}
  first_stage_box_predictor_depth: 8
  first_stage_minibatch_size: 8
  first_stage_max_proposals: 6
  initial_crop_size: 4
  maxpool_kernel_size: 2
  maxpool_stride: 2
  second_stage_box_predictor {{ mask_rcnn_box_predictor {{
    use_dropout: true dropout_keep_probability: 0.9
    fc_hyperparams {{ op: FC {HYPERPARAMS.replace("{ }", "{ stddev: 0.03 }")} }} }} }}
  second_stage_batch_size: 4
  second_stage_post_processing {{ score_converter: SOFTMAX batch_non_max_suppression {{
    max_detections_per_class: 4 max_total_detections: 5 }} }}
"""


@contextmanager
def tiny_table() -> Iterator[None]:
    """Makes the ResNet-50 of Faster R-CNN tiny, TF1's and TF2's."""
    rows = {
        kind: TABLE[kind]._replace(
            arguments=TABLE[kind].arguments | _ARGUMENTS,
            second_arguments=TABLE[kind].second_arguments | _ARGUMENTS,
        )
        for kind in (KIND, f"{KIND}_keras")
    }
    with mock.patch.dict(TABLE, rows), mock.patch.dict(resnet_v1.UNITS, {5: (1, 1, 1, 1)}):
        yield


def tiny(**changes: object) -> FasterRCNN:
    """The tiny detector, always with the same weights, with fields of its message set (messages as text)."""
    tf_keras.utils.set_random_seed(0)
    model = model_pb2.DetectionModel()
    text_format.Parse(TEXT, model.faster_rcnn)
    for name, value in changes.items():
        if isinstance(value, str):
            text_format.Merge(value, getattr(model.faster_rcnn, name))
        else:
            setattr(model.faster_rcnn, name, value)
    with tiny_table():
        return build_detector(model)
