"""The noise that training steps are traced with, to know their costs."""

from __future__ import annotations

import tensorflow as tf

from od_finetune.config import pipeline
from od_finetune.config.detector import build_detector
from od_finetune.planning import plans


def test_it_has_the_bank_that_the_input_reader_loads(tiny_config):
    overrides = ["train_input_reader.load_context_features=true"]
    plain, loaded = (pipeline.load(tiny_config, each) for each in ([], overrides))
    detector = build_detector(plain.model)
    assert plans.noise(detector, loaded).context is None  # which a run refuses
    detector.context_size = (4, 6)
    assert plans.noise(detector, plain).context is None
    features, size = plans.noise(detector, loaded).context
    assert features.shape == (2, 4, 6) and size.numpy().tolist() == [4, 4]


def test_it_has_what_the_input_reader_loads(tiny_config):
    overrides = [f"train_input_reader.{each}" for each in (
        "load_instance_masks=true", "num_keypoints=5", "load_keypoint_depth_features=true", "max_number_of_boxes=7",
        "load_dense_pose=true", "load_track_id=true",
    )]  # fmt: skip
    plain, loaded = (pipeline.load(tiny_config, each) for each in ([], overrides))
    detector = build_detector(plain.model)
    bare = plans.noise(detector, plain).groundtruth
    assert bare.masks is bare.track_ids is bare.dense_pose_num_points is None
    groundtruth = plans.noise(detector, loaded).groundtruth
    assert groundtruth.masks.shape == (2, 7, 96, 96)
    assert groundtruth.keypoints.shape == (2, 7, 5, 2)
    assert groundtruth.keypoint_visibilities.shape == groundtruth.keypoint_depths.shape == (2, 7, 5)
    assert groundtruth.track_ids.shape == groundtruth.dense_pose_num_points.shape == (2, 7)
    *each, points = groundtruth.dense_pose_part_ids.shape
    assert each == [2, 7] and groundtruth.dense_pose_surface_coords.shape == (2, 7, points, 4)
    assert int(tf.reduce_max(groundtruth.dense_pose_num_points)) == points > 0
