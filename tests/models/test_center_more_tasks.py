"""CenterNet's tasks beyond boxes and keypoints, at a tiny width: they train, decode and name their variables."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format

from od_finetune import fields
from od_finetune.boxes.center_grid import Grid
from od_finetune.config.detector import build_detector
from od_finetune.errors import UserError
from od_finetune.models.detectors.center_net import CenterNet, _on_grid
from od_finetune.models.detectors.center_tasks import TRAINING
from od_finetune.protos import model_pb2
from od_finetune.training import probe

SMALL = "{ num_filters: 4 kernel_sizes: 3 }"
BASE = f"""center_net {{
  num_classes: 2
  feature_extractor {{ type: "hourglass_10" channel_stds: [255, 255, 255] }}
  image_resizer {{ fixed_shape_resizer {{ height: 32 width: 32 }} }}
  object_detection_task {{ localization_loss {{ l1_localization_loss {{}} }}
                           scale_head_params {SMALL} offset_head_params {SMALL} }}
  object_center_params {{ classification_loss {{ penalty_reduced_logistic_focal_loss {{}} }} max_box_predictions: 3
                          center_head_params {SMALL} }}
  %s
}}"""
MASKS = f"""mask_estimation_task {{ classification_loss {{ weighted_sigmoid {{}} }} mask_height: 6 mask_width: 5
                                    mask_head_params {SMALL} }}"""
DENSE_POSE = """densepose_estimation_task { class_id: 0 num_parts: 3
  loss { classification_loss { weighted_softmax {} } localization_loss { l1_localization_loss {} } } }"""
TRACKS = """track_estimation_task { num_track_ids: 5 reid_embed_size: 4 num_fc_layers: 2
                                    classification_loss { weighted_softmax {} } }"""
OFFSETS = "temporal_offset_task { localization_loss { l1_localization_loss {} } }"
DEEP_MASKS = """deepmac_mask_estimation { dim: 3 pixel_embedding_dim: 4 mask_size: 8 network_type: "hourglass10"
  num_init_channels: 4 allowed_masked_classes_ids: 1 classification_loss { weighted_sigmoid {} } %s }"""


def center_net(*tasks: str) -> CenterNet:
    # A later value of a field overrides an earlier one.
    return build_detector(text_format.Merge(BASE % " ".join(tasks), model_pb2.DetectionModel()))


@functools.cache
def whole() -> CenterNet:
    built = center_net(MASKS, DENSE_POSE, TRACKS, OFFSETS)
    built.build()
    return built


@functools.cache
def deep() -> CenterNet:
    built = center_net(DEEP_MASKS % "")
    built.build()
    return built


def groundtruth() -> fields.Groundtruth:
    boxes = [[[0.1, 0.1, 0.5, 0.6], [0.5, 0.4, 1, 1], [0, 0, 0, 0]], [[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]]
    masks = np.zeros([2, 3, 32, 32], np.uint8)
    masks[0, 0, 4:16, 4:20], masks[0, 1, 18:30, 14:30], masks[1, 0, 8:24, 8:24] = 1, 1, 1
    random = np.random.default_rng(0)
    weights = tf.constant([[1.0, 1, 0], [1, 0, 0]])
    false = tf.zeros([2, 3], tf.bool)
    return fields.Groundtruth(
        tf.constant(boxes, tf.float32), tf.one_hot([[0, 1, 0], [0, 0, 0]], 2) * weights[..., None], weights,
        tf.constant([2, 1]), false, false, false, weights, masks=tf.constant(masks),
        dense_pose_num_points=tf.constant([[4, 0, 0], [2, 0, 0]]),
        dense_pose_part_ids=tf.constant(random.integers(0, 3, [2, 3, 4]), tf.int32),
        dense_pose_surface_coords=tf.constant(random.uniform(0, 1, [2, 3, 4, 4]), tf.float32),
        track_ids=tf.constant([[1, 4, 0], [2, 0, 0]]),
        temporal_offsets=tf.constant(random.uniform(1, 2, [2, 3, 2]), tf.float32),
        track_match_flags=tf.constant([[1.0, 0, 0], [1, 0, 0]]),
    )


IMAGES = tf.constant(np.random.default_rng(1).uniform(0, 1, [2, 32, 32, 3]), tf.float32)
SHAPES = tf.constant([[32, 32, 3], [24, 32, 3]])
BOX_LOSSES = {"Loss/object_center", "Loss/box/scale", "Loss/box/offset"}
MORE_LOSSES = {"Loss/segmentation/heatmap", "Loss/densepose/heatmap", "Loss/densepose/regression", "Loss/track/reid",
               "Loss/track/offset"}


@pytest.mark.slow
@pytest.mark.parametrize(("tasks", "names", "statistics"), [
    pytest.param([MASKS, DENSE_POSE, TRACKS, OFFSETS], BOX_LOSSES | MORE_LOSSES, "track/classifier/fc_0",
                 marks=pytest.mark.slow),
    ([DEEP_MASKS % ""], BOX_LOSSES | {"Loss/deep_mask_estimation"}, "deepmac/Hourglass/conv/conv_block"),
])
def test_every_task_has_a_loss_that_falls(tasks, names, statistics):
    model = center_net(*tasks)
    named = model.named_variables()
    variables = [variable for variable in named.values() if variable.trainable]
    mean = named[f"CenterNetHead/{statistics}/BatchNorm/moving_mean"]
    before = mean.numpy()

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            found = model.losses(model.predict(IMAGES, SHAPES, training=True), groundtruth())
            total = tf.add_n(list(found.values()))
        for variable, gradient in zip(variables, tape.gradient(total, variables), strict=True):
            variable.assign_sub(0.03 * tf.clip_by_norm(gradient, 1.0))
        return found

    first = step()
    assert set(first) == names
    for _ in range(60):
        last = step()
    assert np.isfinite(list(last.values())).all()
    assert [name for name in names if not last[name] < first[name]] == []
    assert not np.array_equal(mean, before)


def test_deep_masks_are_probabilities():
    model = deep()
    found = tf.function(lambda: model.postprocess(model.predict(IMAGES, SHAPES), SHAPES), autograph=False)()
    masks = found.masks.numpy()
    assert masks.shape == (2, 3, 8, 8) and masks.min() >= 0 and masks.max() <= 1 and masks.std() > 0


def test_the_classifier_of_tracks_is_part_of_the_head():
    names = [name for name in whole().named_variables() if "classifier" in name]
    assert len(names) == 2 + 4 + 2
    assert {whole().part(name) for name in names} == {"head"}
    assert "CenterNetHead/track/classifier/output/weights" in whole().stages()[-1].variables
    tf2 = whole().tf2_names()
    assert tf2["CenterNetHead/track/classifier/fc_0/weights"] == "dense/kernel"
    assert tf2["CenterNetHead/track/classifier/output/biases"] == "dense_1/bias"
    node = whole().tf2_objects()["track_reid_classification_net"]
    assert node["layer_with_weights-2"] == node["layer-3"]
    assert node["layer-0"]["kernel"] == "CenterNetHead/track/classifier/fc_0/weights"


def test_the_mask_network_is_part_of_the_head():
    names = [name for name in deep().named_variables() if "deepmac" in name]
    assert len(names) == 72 and {deep().part(name) for name in names} == {"head"}
    tf2 = deep().tf2_names()
    # Keras numbers the layers of both hourglasses together.
    entry = "CenterNetHead/deepmac/Hourglass/conv/conv_block"
    assert tf2[f"{entry}/weights"].startswith("hourglass_network_1/input_conv_block/convolutional_block_")
    assert tf2[f"{entry}/BatchNorm/gamma"].endswith("/batchnorm/gamma")
    assert len(set(tf2.values())) == len(tf2)
    node = deep().tf2_objects()["_mask_net"]
    assert node["_net"]["conv_input"]["conv_block"]["conv"]["kernel"] == f"{entry}/weights"
    assert node["project_out"]["bias"] == "CenterNetHead/deepmac/output/biases"


def test_the_classifier_of_tracks_keeps_its_statistics_outside_of_training():
    model = center_net(TRACKS)
    model.build()
    mean = model.named_variables()["CenterNetHead/track/classifier/fc_0/BatchNorm/moving_mean"]
    (task,) = [task for task in model._tasks if task.modules]
    maps = {"track/reid": [tf.random.stateless_normal([2, 8, 8, 4], [1, 2])]}
    for training in (False, True):
        task.losses({**maps, TRAINING: tf.constant(training)}, groundtruth(), Grid(SHAPES, 4, 8, 8))
        assert np.array_equal(mean, np.zeros(4)) is not training


def test_only_the_maps_of_classes_depend_on_their_number():
    layouts = {name: whole().class_layout(name) for name in whole().named_variables()}
    assert {name for name, layout in layouts.items() if layout} == {
        f"CenterNetHead/{head}_0/output/{leaf}" for head in ("object_center", "segmentation/heatmap")
        for leaf in ("weights", "biases")}
    assert not any(deep().is_class_head(name) for name in deep().named_variables() if "deepmac" in name)


@pytest.mark.parametrize(("model", "missing", "field"), [
    (whole, "masks", "load_instance_masks: true"),
    (whole, "dense_pose_part_ids", "load_dense_pose: true"),
    (whole, "track_ids", "load_track_id: true"),
    (whole, "temporal_offsets", "remove the task"),
    (deep, "masks", "load_instance_masks: true"),
])
def test_what_is_not_loaded_is_named(model, missing, field):
    maps = {head.spec.name: [tf.zeros([2, 8, 8, head.spec.channels])] for head in model().heads}
    predictions = {**maps, "true_shapes": SHAPES, TRAINING: tf.constant(False)}
    with pytest.raises(UserError, match=field):
        model().losses(predictions, groundtruth()._replace(**{missing: None}))


@pytest.mark.parametrize(("tasks", "message"), [
    ([DENSE_POSE], "densepose_estimation_task: found it without mask_estimation_task"),
    ([MASKS, DEEP_MASKS % ""], "an object has one mask"),
    ([DEEP_MASKS % 'network_type: "hourglass11"'], "network_type: found 'hourglass11', expected one of: hourglass10"),
    ([DEEP_MASKS % "mask_size: 7"], "mask_size: found 7, expected a multiple of 2"),
    ([DEEP_MASKS % "dim: 0"], "dim: found 0"),
    ([DEEP_MASKS % "allowed_masked_classes_ids: 3"], "allowed_masked_classes_ids: found 3"),
    (["track_estimation_task {}"], "num_track_ids: found 0"),
    (["temporal_offset_task { localization_loss { weighted_iou {} } }"], "found weighted_iou, which compares boxes"),
])
def test_what_does_not_go_together(tasks, message):
    with pytest.raises(UserError, match=message):
        center_net(*tasks)


def test_masks_are_padded_as_the_network_pads_its_input():
    grid = Grid(tf.constant([[5, 6, 3]]), 4, 2, 2)  # 8x8 pixels, of which the image has 5x6
    masks = tf.ones([1, 1, 5, 6], tf.uint8)
    groundtruth = probe.random_batch(1, (5, 6), 1, 1, 1).groundtruth._replace(masks=masks)
    padded = _on_grid(groundtruth, grid).masks.numpy()
    assert padded.shape == (1, 1, 8, 8) and padded[0, 0, :5, :6].all() and padded.sum() == 30
