"""Every row of SSD with a ResNet and a feature pyramid, narrow and on small images: it learns, what is frozen rests.

Those that a published config names are in test_published.py as well, at their full width.
"""

from __future__ import annotations

import numpy as np
import published
import pytest
import tensorflow as tf
from google.protobuf import text_format

from od_finetune import fields
from od_finetune.config.detector import build_detector
from od_finetune.config.families import resnet
from od_finetune.errors import UserError
from od_finetune.protos import model_pb2
from od_finetune.training import optimizers, schedules
from od_finetune.training.freeze import FreezePlan, FreezeRequest
from od_finetune.training.trainer import Trainer

SIDE = 64
HYPERPARAMS = """
    conv_hyperparams {
      activation: RELU_6
      regularizer { l2_regularizer { weight: 0.0004 } }
      initializer { truncated_normal_initializer { stddev: 0.03 } }
      batch_norm { scale: true decay: 0.997 epsilon: 0.001 }
    }
"""
MODEL = f"""
ssd {{
  num_classes: 2
  encode_background_as_zeros: true
  normalize_loss_by_num_matches: true
  box_coder {{ faster_rcnn_box_coder {{}} }}
  matcher {{ argmax_matcher {{ matched_threshold: 0.5 unmatched_threshold: 0.5 }} }}
  similarity_calculator {{ iou_similarity {{}} }}
  image_resizer {{ fixed_shape_resizer {{ height: {SIDE} width: {SIDE} }} }}
  anchor_generator {{ multiscale_anchor_generator {{ aspect_ratios: 1.0 scales_per_octave: 1 }} }}
  box_predictor {{
    weight_shared_convolutional_box_predictor {{ depth: 16 num_layers_before_predictor: 1 {HYPERPARAMS} }}
  }}
  feature_extractor {{
    type: "TYPE" depth_multiplier: 0.125 min_depth: 8 fpn {{ additional_layer_depth: 128 }} EXTRA
    {HYPERPARAMS}
  }}
  loss {{
    classification_loss {{ weighted_sigmoid_focal {{}} }}
    localization_loss {{ weighted_smooth_l1 {{}} }}
  }}
  post_processing {{ batch_non_max_suppression {{}} score_converter: SIGMOID }}
}}
"""


def model_of(kind: str, extra: str = "") -> model_pb2.DetectionModel:
    return text_format.Parse(MODEL.replace("TYPE", kind).replace("EXTRA", extra), model_pb2.DetectionModel())


def trainer_of(detector: fields.Detector, model: model_pb2.DetectionModel, *frozen: str) -> Trainer:
    batch = published.batch(model, detector.num_classes, side=SIDE)
    plan = FreezePlan.compute(detector, FreezeRequest(freeze=frozen))
    dataset = tf.data.Dataset.from_tensors(batch).repeat()
    return Trainer(detector, plan, optimizers.Adam(schedules.constant(1e-3)), dataset)


def mean_loss(trainer: Trainer, steps: int) -> float:
    trainer.reset_means()
    return float(trainer.train(tf.constant(steps))[fields.TOTAL_LOSS])


@pytest.mark.slow
@pytest.mark.by_turns
@pytest.mark.parametrize("override", [False, True])
@pytest.mark.parametrize("kind", resnet.ROWS)
def test_loss_falls(kind: str, override: bool):
    model = model_of(kind, f"override_base_feature_extractor_hyperparams: {str(override).lower()}")
    detector = build_detector(model)
    trainer = trainer_of(detector, model)
    first = mean_loss(trainer, 2)
    mean_loss(trainer, 8)
    last = mean_loss(trainer, 2)
    assert np.isfinite([first, last]).all() and last < first


@pytest.mark.slow
@pytest.mark.by_turns
@pytest.mark.parametrize("kind", resnet.ROWS)
def test_a_frozen_extractor_rests(kind: str):
    model = model_of(kind)
    detector = build_detector(model)
    trainer = trainer_of(detector, model, "FeatureExtractor")
    assert trainer.trained and not [name for name in trainer.trained if name.startswith("FeatureExtractor/")]
    before = {name: variable.numpy() for name, variable in detector.named_variables().items()}
    assert np.isfinite(mean_loss(trainer, 2))
    moved = {name for name, variable in detector.named_variables().items() if (variable.numpy() != before[name]).any()}
    assert moved and not [name for name in moved if name.startswith("FeatureExtractor/")]


@pytest.mark.parametrize("field", ["use_explicit_padding", "use_depthwise"])
def test_what_resnets_do_not_have_is_refused(field: str):
    with pytest.raises(UserError, match=f"feature_extractor.{field}: found true.*ssd_resnet50_v1_fpn has no such"):
        build_detector(model_of("ssd_resnet50_v1_fpn", f"{field}: true"))
