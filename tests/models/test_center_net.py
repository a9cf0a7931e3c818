"""A small CenterNet with every task: what it predicts, learns and finds, and how its variables are called."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format

from od_finetune import fields
from od_finetune.boxes.nms import MulticlassNms, NmsOptions
from od_finetune.checkpoints.plan import RestorePlan, RestoreRequest, Status, Target
from od_finetune.checkpoints.source import open_source
from od_finetune.config.detector import build_detector
from od_finetune.errors import UserError
from od_finetune.export import checkpoint_tf2
from od_finetune.models.detectors.center_net import _suppressed
from od_finetune.models.keras_names import Numbering
from od_finetune.protos import model_pb2
from od_finetune.training import optimizers, schedules
from od_finetune.training.freeze import FreezePlan, FreezeRequest
from od_finetune.training.trainer import Trainer

NARROW = "{ num_filters: 8 kernel_sizes: 3 }"
FOCAL = "{ penalty_reduced_logistic_focal_loss { alpha: 2 beta: 4 } }"
L1 = "{ l1_localization_loss { } }"
BOXES = f"""center_net {{
  num_classes: 3
  feature_extractor {{ type: "hourglass_10" }}
  image_resizer {{ keep_aspect_ratio_resizer {{ min_dimension: 64 max_dimension: 64 pad_to_max_dimension: true }} }}
  object_center_params {{
    classification_loss {FOCAL} max_box_predictions: 5 center_head_params {NARROW}
  }}
  object_detection_task {{
    localization_loss {L1} scale_head_params {NARROW} offset_head_params {NARROW}
  }}
}}"""
LABEL_MAP = """item { id: 1 name: "cup" } item { id: 2 name: "person"
  keypoints { id: 0 label: "nose" } keypoints { id: 1 label: "left" } keypoints { id: 2 label: "right" } }
item { id: 3 name: "dog" keypoints { id: 3 label: "tail" } }"""
MORE = f"""center_net {{
  keypoint_estimation_task {{
    task_name: "pose" keypoint_class_name: "person" per_keypoint_offset: true predict_depth: true
    offset_peak_radius: 1 rescore_instances: true keypoint_label_to_std {{ key: "nose" value: 0.5 }}
    loss {{ classification_loss {FOCAL} localization_loss {L1} }}
    heatmap_head_params {NARROW} offset_head_params {NARROW} regress_head_params {NARROW}
  }}
  keypoint_estimation_task {{
    task_name: "tail" keypoint_class_name: "dog" per_keypoint_offset: true
    loss {{ classification_loss {FOCAL} localization_loss {L1} }}
  }}
  mask_estimation_task {{
    classification_loss {{ weighted_sigmoid {{ }} }} mask_height: 6 mask_width: 7 mask_head_params {NARROW}
  }}
  densepose_estimation_task {{
    class_id: 1 num_parts: 4
    loss {{ classification_loss {{ weighted_softmax {{ }} }} localization_loss {L1} }}
  }}
  track_estimation_task {{
    num_track_ids: 10 reid_embed_size: 12 num_fc_layers: 2 classification_loss {{ weighted_softmax {{ }} }}
  }}
  temporal_offset_task {{ localization_loss {L1} }}
}}"""
LOSSES = {
    "object_center", "box/scale", "box/offset", "segmentation/heatmap", "densepose/heatmap", "densepose/regression",
    "track/reid", "track/offset", "pose/keypoint/heatmap", "pose/keypoint/offset", "pose/keypoint/regression",
    "pose/keypoint/depth", "tail/keypoint/heatmap", "tail/keypoint/offset", "tail/keypoint/regression",
}  # fmt: skip


def model(*texts: str) -> model_pb2.DetectionModel:
    built = model_pb2.DetectionModel()
    for text in texts:
        text_format.Merge(text, built)
    return built


def groundtruth() -> fields.Groundtruth:
    """A cup, a person and a dog in an image, and one place for another object."""
    draws = np.random.default_rng(0)
    uniform = lambda *shape: tf.constant(draws.random((1, 4, *shape), np.float32))  # noqa: E731
    no = tf.zeros([1, 4], tf.bool)
    return fields.Groundtruth(
        boxes=tf.constant([[[0.1, 0.1, 0.4, 0.3], [0.2, 0.5, 0.9, 0.8], [0.6, 0.1, 0.9, 0.4], [0.0] * 4]]),
        classes=tf.one_hot([[0, 1, 2, -1]], 3),
        weights=tf.constant([[1.0, 1.0, 1.0, 0.0]]),
        num_boxes=tf.constant([3]),
        is_crowd=no, difficult=no, group_of=no, area=tf.zeros([1, 4]),
        masks=tf.constant(draws.integers(0, 2, (1, 4, 64, 64)).astype(np.uint8)),
        keypoints=uniform(4, 2),
        keypoint_visibilities=tf.ones([1, 4, 4], tf.bool),
        keypoint_depths=uniform(4),
        keypoint_depth_weights=tf.ones([1, 4, 4]),
        dense_pose_num_points=tf.constant([[0, 2, 0, 0]]),
        dense_pose_part_ids=tf.ones([1, 4, 2], tf.int32),
        dense_pose_surface_coords=uniform(2, 4),
        track_ids=tf.constant([[3, 1, 9, 0]]),
        temporal_offsets=uniform(2),
        track_match_flags=tf.ones([1, 4]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """The detector with all tasks, and what it makes of an image twice as wide as high."""
    path = tmp_path_factory.mktemp("labels") / "labels.pbtxt"
    path.write_text(LABEL_MAP)
    message = model(BOXES, MORE)
    message.center_net.keypoint_label_map_path = str(path)
    detector = build_detector(message)
    detector.build()

    @tf.function(autograph=False)
    def run(images):
        inputs, shapes = detector.preprocess(images)
        predictions = detector.predict(inputs, shapes)
        return predictions, detector.losses(predictions, groundtruth()), detector.postprocess(predictions, shapes)

    return detector, *run(tf.random.stateless_uniform([1, 32, 64, 3], [0, 1]) * 255.0)


def test_every_task_has_predictions_losses_and_detections(everything):
    detector, predictions, losses, found = everything
    assert predictions["object_center"][0].shape == (1, 16, 16, 3)
    assert predictions["pose/keypoint/regression"][0].shape == (1, 16, 16, 6)
    assert losses.keys() == {f"Loss/{name}" for name in LOSSES}
    assert all(np.isfinite(loss) and loss >= 0.0 for loss in losses.values())
    shapes = {name: tuple(value.shape) for name, value in found._asdict().items()}
    assert shapes["boxes"] == (1, 5, 4) and shapes["multiclass_scores"] == (1, 5, 3)
    assert shapes["keypoints"] == (1, 5, 4, 2) and shapes["keypoint_scores"] == shapes["keypoint_depths"] == (1, 5, 4)
    assert shapes["masks"] == (1, 5, 6, 7) and shapes["surface_coords"] == (1, 5, 6, 7, 2)
    assert shapes["embeddings"] == (1, 5, 12) and shapes["temporal_offsets"] == (1, 5, 2)
    assert found.anchor_indices.numpy().max() < 8 * 16  # no peak below the image's true part
    of_other_class = found.keypoint_scores.numpy()[found.classes.numpy() == 0]
    assert (of_other_class == 0.0).all()


def test_variables_have_names_parts_and_stages(everything):
    detector = everything[0]
    names = list(detector.named_variables())
    assert len(set(detector.tf2_names().values())) == len(names)
    assert {detector.part(name) for name in names} == {"backbone", "head"}
    staged = [variable for stage in detector.stages() for variable in stage.variables]
    assert sorted(staged) == sorted(names)
    assert {"hourglass_0", "stage2", "backbone"} <= {name for stage in detector.stages() for name in stage.names}
    assert [name for name in names if detector.is_class_head(name)] == [
        f"CenterNetHead/{head}_0/output/{leaf}"
        for head in ("object_center", "segmentation/heatmap")
        for leaf in ("weights", "biases")
    ]
    center = detector.named_variables()["CenterNetHead/object_center_0/output/biases"]
    np.testing.assert_allclose(center, -2.19)
    assert detector.class_layout("CenterNetHead/object_center_0/output/weights") == fields.ClassLayout(1, 3)


def test_checkpoints_of_programs_that_number_layers_otherwise(everything, tmp_path, monkeypatch):
    """The same full names are there, but of other variables."""
    detector = everything[0]
    values = {name: variable.numpy() for name, variable in detector.named_variables().items()}
    assert any(name.startswith("conv2d_35/") for name in detector.tf2_names().values())
    begin = Numbering.__init__

    def late(self):
        begin(self)
        self._created.update(conv2d=5, dense=1)

    with monkeypatch.context() as patched:
        patched.setattr(Numbering, "__init__", late)
        checkpoint_tf2.write(detector, tmp_path)
    plan = RestorePlan.compute(
        Target.of(detector), [(open_source(tmp_path / "checkpoint"), RestoreRequest(str(tmp_path), "full"))]
    )
    assert {row.status for row in plan.rows} == {Status.RESTORED}
    for row in plan.rows:
        np.testing.assert_array_equal(plan.sources[0].read(row.source), values[row.name], err_msg=row.name)


@pytest.mark.slow
def test_learns_one_image_and_freezes(everything):
    del everything  # only to share the session's warm-up
    detector = build_detector(model(BOXES))
    detector.build()
    batch = fields.Batch(
        images=tf.random.stateless_uniform([1, 64, 64, 3], [0, 2]) * 255.0,
        true_shapes=tf.constant([[64, 64, 3]]),
        groundtruth=groundtruth(),
        keys=tf.constant(["a"]),
        source_ids=tf.constant(["a"]),
        original_shapes=tf.constant([[64, 64]]),
    )
    plan = FreezePlan.compute(detector, FreezeRequest(freeze=("FeatureExtractor",)))
    dataset = tf.data.Dataset.from_tensors(batch).repeat()
    trainer = Trainer(detector, plan, optimizers.Adam(schedules.constant(5e-3)), dataset)
    before = {name: variable.numpy() for name, variable in detector.named_variables().items()}
    losses, gradients = trainer.gradients(batch)
    assert gradients.keys() == {name for name in before if detector.part(name) == "head"}
    first = float(losses[fields.TOTAL_LOSS])
    trainer.train(tf.constant(30))
    last = float(trainer.losses(batch)[fields.TOTAL_LOSS])
    assert last < 0.5 * first
    for name, variable in detector.named_variables().items():
        assert np.array_equal(variable, before[name]) == (detector.part(name) == "backbone"), name


@pytest.mark.parametrize("text, said", [
    ("num_classes: 0", "model.center_net.num_classes: found 0"),
    ('feature_extractor { type: "hourglas_10" }', "feature_extractor.type: found 'hourglas_10'.*nearest: hourglass_10"),
    ("feature_extractor { depth_multiplier: 0.5 }", "depth_multiplier: found 0.5, but hourglass_10 has no such choice"),
    ("feature_extractor { channel_means: [1, 2] }", "channel_means: found 2 values, expected 3"),
    ("feature_extractor { channel_stds: [1, 0, 2] }", "channel_stds: found 0 among"),
    ("object_center_params { center_head_params { num_filters: 3 } }", "found 2 num_filters and 1 kernel_sizes"),
    ("object_center_params { min_box_overlap_iou: 1.0 }", "min_box_overlap_iou: found 1"),
    ("object_center_params { keypoint_weights_for_center: 1 }", "keypoint_weights_for_center: found 0 keypoint_esti"),
    ("object_detection_task { localization_loss { weighted_iou {} } }", "found weighted_iou, which compares boxes"),
    ('keypoint_estimation_task { task_name: "a" }', "keypoint_label_map_path: found '', expected the label map"),
    ("densepose_estimation_task {}", "found it without mask_estimation_task"),
    ("deepmac_mask_estimation { network_type: 'fully_connected' }", "network_type: found 'fully_connected', expected"),
    ("image_resizer { keep_aspect_ratio_resizer { convert_to_grayscale: true } }", "convert_to_grayscale: true, but"),
    ("track_estimation_task { num_track_ids: 0 }", "track_estimation_task.num_track_ids: found 0"),
    ("post_processing { score_converter: SIGMOID }", "post_processing.score_converter: a CenterNet's scores"),
])  # fmt: skip
def test_what_cannot_be_built_says_why(text, said):
    with pytest.raises(UserError, match=said):
        build_detector(model(BOXES, f"center_net {{ {text} }}"))


def test_only_peaks_that_no_other_box_covers_with_nms(everything):
    del everything
    options = "iou_threshold: 0.01 max_detections_per_class: 4 max_total_detections: 4"
    nms = f"post_processing {{ batch_non_max_suppression {{ {options} }} }}"
    detector = build_detector(model(BOXES, f"center_net {{ {nms} }}"))
    cells = {"object_center": 3, "box/scale": 2, "box/offset": 2}
    maps = {name: np.zeros([1, 16, 16, width], np.float32) for name, width in cells.items()}
    maps["object_center"] -= 9.0
    for (row, column), score in {(4, 4): 3.0, (4, 7): 2.0, (12, 12): 1.0}.items():
        maps["object_center"][0, row, column, 1] = score
    maps["box/scale"] += 4.0
    predictions = {name: [tf.constant(value)] for name, value in maps.items()}
    found = detector.postprocess({**predictions, "true_shapes": tf.constant([[64, 64, 3]])}, tf.constant([[64, 64, 3]]))
    kept = found.classes[0].numpy() == 1
    boxes = found.boxes[0].numpy()[kept][:2]
    np.testing.assert_allclose(boxes, [[0.125, 0.125, 0.375, 0.375], [0.625, 0.625, 0.875, 0.875]])
    assert found.anchor_indices[0].numpy()[kept][:2].tolist() == [4 * 16 + 4, 12 * 16 + 12]


def test_what_fills_up_the_peaks_is_never_detected():
    heat = tf.constant([[[0.9], [0.8], [0.7]]])  # of three places, of which the first is a peak
    boxes = tf.constant([[[0.0, 0.0, 0.1, 0.1], [0.3, 0.3, 0.4, 0.4], [0.6, 0.6, 0.7, 0.7]]])
    places = tf.zeros([1, 3], tf.int32)
    scores = tf.constant([[0.9, 0.0, 0.0]])
    given = fields.Detections(boxes, scores, places, tf.constant([1]), heat, places, boxes, heat)
    found = _suppressed(given, MulticlassNms(NmsOptions(max_detections_per_class=3, max_total_detections=3)))
    assert found.num_detections.numpy() == [1]
    np.testing.assert_allclose(found.scores, [[0.9, 0.0, 0.0]])


def test_keypoints_alone_say_where_objects_are(tmp_path):
    """Centres are weighted means of keypoints in the targets; detected boxes enclose the keypoints."""
    (tmp_path / "labels.pbtxt").write_text(LABEL_MAP)
    task = MORE[MORE.index("keypoint_estimation_task") : MORE.index("keypoint_estimation_task", 50)]
    message = model(BOXES, f"center_net {{ {task} object_center_params {{ keypoint_weights_for_center: [1, 1, 0] }} }}")
    message.center_net.ClearField("object_detection_task")
    message.center_net.keypoint_label_map_path = str(tmp_path / "labels.pbtxt")
    detector = build_detector(message)
    sizes = {head.spec.name: head.spec.channels for head in detector.heads}
    assert sizes == {
        "object_center": 3, "pose/keypoint/heatmap": 3, "pose/keypoint/regression": 6, "pose/keypoint/offset": 6,
        "pose/keypoint/depth": 1,
    }  # fmt: skip
    maps = {name: np.zeros([1, 16, 16, width], np.float32) for name, width in sizes.items()}
    for name in ("object_center", "pose/keypoint/heatmap"):
        maps[name] -= 30.0
    maps["object_center"][0, 4, 6, 1] = 30.0
    maps["pose/keypoint/regression"][0, 4, 6] = [-2, -1, 2, 3, 1, 0]

    labels = groundtruth()
    points = np.full([1, 4, 4, 2], np.nan, np.float32)
    points[0, 1, :3] = [[4.5 / 16, 5.5 / 16], [4.5 / 16, 7.5 / 16], [0.9, 0.9]]  # the first two count
    predictions = {name: [tf.constant(value)] for name, value in maps.items()}
    predictions["true_shapes"] = tf.constant([[64, 64, 3]])
    losses = detector.losses(predictions, labels._replace(keypoints=tf.constant(points)))
    assert losses["Loss/object_center"] < 1e-3

    found = detector.postprocess(predictions, tf.constant([[64, 64, 3]]))
    assert found.classes[0, 0] == 1
    np.testing.assert_allclose(found.boxes[0, 0], np.array([2, 5, 6, 9]) / 16, atol=1e-6)
    np.testing.assert_allclose(found.keypoints[0, 0], np.array([[2, 5], [6, 9], [5, 6]]) / 16, atol=1e-6)


def test_ground_truth_that_is_not_as_a_task_needs_it(everything):
    detector, predictions, whole = *everything[:2], groundtruth()
    for wrong, said in (
        (whole._replace(keypoints=None), "loads 0 per object; set num_keypoints"),
        (whole._replace(keypoints=whole.keypoints[:, :, :2]), "loads 2 per object; set num_keypoints"),
        (whole._replace(keypoint_depths=None), "set load_keypoint_depth_features"),
    ):
        with pytest.raises(UserError, match=said):
            detector.losses(predictions, wrong)
