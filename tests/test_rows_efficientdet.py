"""EfficientDets of every version, as narrow as they can be: one batch is learnt, a frozen extractor stays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format

from od_finetune import fields
from od_finetune.config import extractors
from od_finetune.config.detector import build_detector
from od_finetune.protos import model_pb2
from od_finetune.training import optimizers, probe, schedules
from od_finetune.training.freeze import FreezePlan, FreezeRequest
from od_finetune.training.trainer import Trainer

# B2 to B5 are of the same kind as B1.
KINDS = [f"ssd_efficientnet-{version}_bifpn_keras" for version in ("b0", "b1", "b6", "b7")]
MODEL = """ssd {{
  num_classes: 3
  add_background_class: false
  image_resizer {{ keep_aspect_ratio_resizer {{ min_dimension: 64 max_dimension: 64 pad_to_max_dimension: true }} }}
  feature_extractor {{
    type: "{kind}" depth_multiplier: 0.1 min_depth: 8 {pyramid}
    conv_hyperparams {{ force_use_bias: true activation: SWISH batch_norm {{ scale: true decay: 0.9 }} }}
  }}
  box_coder {{ faster_rcnn_box_coder {{}} }}
  matcher {{ argmax_matcher {{ force_match_for_each_row: true }} }}
  similarity_calculator {{ iou_similarity {{}} }}
  box_predictor {{
    weight_shared_convolutional_box_predictor {{
      depth: 8 num_layers_before_predictor: 1 use_depthwise: true class_prediction_bias_init: -4.6
      conv_hyperparams {{ force_use_bias: true activation: SWISH batch_norm {{ scale: true decay: 0.9 }} }}
    }}
  }}
  anchor_generator {{ multiscale_anchor_generator {{ aspect_ratios: [1.0, 2.0, 0.5] }} }}
  loss {{
    localization_loss {{ weighted_smooth_l1 {{}} }}
    classification_loss {{ weighted_sigmoid_focal {{ alpha: 0.25 gamma: 1.5 }} }}
  }}
  normalize_loss_by_num_matches: true
  post_processing {{ batch_non_max_suppression {{}} score_converter: SIGMOID }}
}}"""


def detector_of(kind, pyramid="bifpn { num_iterations: 1 num_filters: 8 }"):
    detector = build_detector(text_format.Parse(MODEL.format(kind=kind, pyramid=pyramid), model_pb2.DetectionModel()))
    detector.build()
    return detector


def test_every_version_is_a_row():
    kinds = {kind for kind in extractors.TABLE if kind.startswith("ssd_efficientnet-")}
    assert kinds == {f"ssd_efficientnet-b{version}_bifpn_keras" for version in range(8)}


@pytest.mark.slow
@pytest.mark.by_turns
@pytest.mark.parametrize("kind", KINDS)
def test_one_batch_is_learnt(kind):
    detector = detector_of(kind)
    dataset = tf.data.Dataset.from_tensors(probe.random_batch(2, (64, 64), 3, max_boxes=3)).repeat()
    plan = FreezePlan.compute(detector, FreezeRequest())
    trainer = Trainer(detector, plan, optimizers.Momentum(schedules.constant(0.02), 0.9), dataset)
    totals = []
    for _ in range(4):  # a NaN would be an error
        totals.append(float(trainer.train(tf.constant(8))[fields.TOTAL_LOSS]))
        trainer.reset_means()
    assert all(map(math.isfinite, totals)) and totals[-1] < 0.8 * totals[0], totals


@pytest.mark.slow
@pytest.mark.by_turns
@pytest.mark.parametrize("options", [{"freeze": ("FeatureExtractor",)}, {"freeze_through": "neck"}])
def test_a_frozen_extractor_stays(options):
    detector = detector_of(KINDS[1])
    dataset = tf.data.Dataset.from_tensors(probe.random_batch(2, (64, 64), 3, max_boxes=3)).repeat()
    plan = FreezePlan.compute(detector, FreezeRequest(**options))
    assert {detector.part(name) for name in plan.trainable} == {"head"}
    before = {name: variable.numpy() for name, variable in detector.named_variables().items()}
    trainer = Trainer(detector, plan, optimizers.Momentum(schedules.constant(0.02), 0.9), dataset)
    trainer.train(tf.constant(2))
    variables = detector.named_variables()
    moved = {name for name, value in before.items() if not np.array_equal(value, variables[name])}
    assert moved and {detector.part(name) for name in moved} == {"head"}
