"""A whole run of a Faster R-CNN: trained, frozen, evaluated, exported, its costs planned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import two_stage

from od_finetune import experiment
from od_finetune.config import pipeline
from od_finetune.config.detector import build_detector
from od_finetune.planning import plans
from od_finetune.planning.depth_costs import DepthCosts

RESIZER = "keep_aspect_ratio_resizer { min_dimension: 64 max_dimension: 96 }"
OVERRIDES = (
    f"model={{faster_rcnn {{ {two_stage.TEXT} }}}}",
    "model.faster_rcnn.num_classes=4",
    f"model.faster_rcnn.image_resizer={{ {RESIZER} }}",
    "train_config.fine_tune_checkpoint=",
    "train_config.fine_tune_checkpoint_type=",
    "train_config.freeze_variables=FirstStageFeatureExtractor/.*/(conv1|block1)/",
)


@pytest.mark.slow
@pytest.mark.by_turns
def test_run(tiny_config: Path, tmp_path: Path):
    run, export = str(tmp_path / "run"), str(tmp_path / "export")
    with two_stage.tiny_table():
        options = experiment.Options(str(tiny_config), run, OVERRIDES, export_dir=export)
        assert experiment.train_and_evaluate(options) == 0
        plan = json.loads((tmp_path / "run" / "freeze_plan.json").read_text())
        assert plan["frozen_parameters"] > 0 and plan["trained_parameters"] > 0
        detector = build_detector(pipeline.load(tmp_path / "export" / "pipeline.config").model)
    checkpoint = tf.train.load_checkpoint(tf.train.latest_checkpoint(run))
    assert checkpoint.get_variable_to_shape_map()
    loaded = tf.saved_model.load(str(tmp_path / "export" / "saved_model"))
    images = np.random.RandomState(0).randint(0, 256, [1, 70, 120, 3]).astype(np.uint8)
    found = loaded.signatures["serving_default"](input_tensor=tf.constant(images))
    assert found["detection_boxes"].shape == (1, 5, 4) and found["raw_detection_boxes"].shape == (1, 6, 4)
    assert detector.num_classes == 4


@pytest.mark.slow
@pytest.mark.by_turns
def test_costs_of_depths(tiny_config: Path):
    with two_stage.tiny_table():
        prepared = plans.prepare(str(tiny_config), OVERRIDES, restore=False)
    costs = DepthCosts.compute(prepared)
    by_name = {row.depth.name: row for row in costs.rows}
    assert {"none", "block3/unit_1", "rpn", "block4/unit_1"} <= set(by_name)
    assert by_name["block3/unit_1"].cost.backward_flops < by_name["none"].cost.backward_flops
    # The second stage, which runs within the losses, counts as well.
    assert any(name.startswith("SecondStageFeatureExtractor/") for name in costs.forward_flops)
