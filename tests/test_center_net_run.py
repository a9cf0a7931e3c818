"""A whole run with a CenterNet: trained, frozen, evaluated, exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tensorflow as tf

from od_finetune import experiment

MODEL = """{ num_classes: 4 feature_extractor { type: "mobilenet_v2_fpn_sep_conv" depth_multiplier: 0.1 }
  image_resizer { keep_aspect_ratio_resizer { min_dimension: 64 max_dimension: 64 pad_to_max_dimension: true } }
  use_depthwise: true
  object_center_params {
    classification_loss { penalty_reduced_logistic_focal_loss {} } max_box_predictions: 20
    center_head_params { num_filters: 8 kernel_sizes: 3 }
  }
  object_detection_task { localization_loss { l1_localization_loss {} } } }"""


@pytest.mark.slow
def test_run(tiny_config: Path, tmp_path: Path):
    overrides = (
        f"model.center_net={MODEL}",
        "train_config.freeze_variables=MobilenetV2/(Conv|expanded_conv(_[1-5])?)/",
        "train_config.learning_rate_multiplier=",
        "train_config.fine_tune_checkpoint=",
        "train_config.fine_tune_checkpoint_type=",
    )
    run, export = str(tmp_path / "run"), str(tmp_path / "export")
    options = experiment.Options(str(tiny_config), run, overrides, export_dir=export)
    assert experiment.train_and_evaluate(options) == 0
    plan = json.loads((tmp_path / "run" / "freeze_plan.json").read_text())
    assert plan["frozen_parameters"] > 0 and plan["trained_parameters"] > 0
    loaded = tf.saved_model.load(str(tmp_path / "export" / "saved_model"))
    detections = loaded.signatures["serving_default"](input_tensor=tf.zeros([1, 48, 64, 3], tf.uint8))
    assert detections["detection_boxes"].shape == (1, 20, 4)
