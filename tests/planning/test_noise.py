"""The noise that training steps are traced with, to know their costs."""

from __future__ import annotations

from od_finetune.config import pipeline
from od_finetune.config.detector import build_detector
from od_finetune.planning import plans


def test_it_has_what_the_input_reader_loads(tiny_config):
    overrides = [f"train_input_reader.{each}" for each in (
        "load_instance_masks=true", "num_keypoints=5", "load_keypoint_depth_features=true", "max_number_of_boxes=7",
    )]  # fmt: skip
    plain, loaded = (pipeline.load(tiny_config, each) for each in ([], overrides))
    detector = build_detector(plain.model)
    assert plans.noise(detector, plain).groundtruth.masks is None
    groundtruth = plans.noise(detector, loaded).groundtruth
    assert groundtruth.masks.shape == (2, 7, 96, 96)
    assert groundtruth.keypoints.shape == (2, 7, 5, 2)
    assert groundtruth.keypoint_visibilities.shape == groundtruth.keypoint_depths.shape == (2, 7, 5)
