"""Whole runs with a feature pyramid and with EfficientNet-Lite: trained, frozen, evaluated, exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tensorflow as tf

from od_finetune import experiment

WITHOUT_CHECKPOINT = ("train_config.fine_tune_checkpoint=", "train_config.fine_tune_checkpoint_type=")
PYRAMID = (
    "model.ssd.feature_extractor.num_layers=5",
    "model.ssd.feature_extractor.use_depthwise=true",
    "model.ssd.feature_extractor.fpn={additional_layer_depth: 32}",
    "model.ssd.anchor_generator={multiscale_anchor_generator { aspect_ratios: [1.0, 2.0] }}",
    "model.ssd.box_predictor={weight_shared_convolutional_box_predictor { depth: 8 num_layers_before_predictor: 1 "
    "use_depthwise: true conv_hyperparams { activation: RELU_6 batch_norm {} } }}",
)
RUNS = {
    "ssd_mobilenet_v2_fpn_keras": ("MobilenetV2/Conv/", PYRAMID),
    "ssd_efficientnet_lite0": ("EfficientnetLite0/(stem|block_0)/", ()),
    "ssd_efficientnet_lite0_fpn": ("EfficientnetLite0/(stem|block_0)/", PYRAMID),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_run(tiny_config: Path, tmp_path: Path, kind: str):
    frozen, overrides = RUNS[kind]
    overrides = (f"model.ssd.feature_extractor.type={kind}", f"train_config.freeze_variables={frozen}",
                 *WITHOUT_CHECKPOINT, *overrides)  # fmt: skip
    run, export = str(tmp_path / "run"), str(tmp_path / "export")
    options = experiment.Options(str(tiny_config), run, overrides, export_dir=export)
    assert experiment.train_and_evaluate(options) == 0
    rows = json.loads((tmp_path / "run" / "freeze_plan.json").read_text())["variables"]
    still = {row["name"] for row in rows if not row["trainable"]}
    assert any(frozen.split("/")[0] in name for name in still) and len(still) < len(rows)
    loaded = tf.saved_model.load(str(tmp_path / "export" / "saved_model"))
    detections = loaded.signatures["serving_default"](input_tensor=tf.zeros([1, 96, 96, 3], tf.uint8))
    assert detections["detection_boxes"].shape == (1, 50, 4)
