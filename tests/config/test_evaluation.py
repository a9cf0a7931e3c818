"""EvalConfig -> metrics."""

from __future__ import annotations

import pytest
from google.protobuf import text_format

from od_finetune.config.evaluation import ELSEWHERE, TABLE, build_metrics, build_style
from od_finetune.data.label_map import Label, LabelMap
from od_finetune.errors import UserError
from od_finetune.protos import eval_pb2
from od_finetune.visualization import Style

LABELS = LabelMap((Label(1, "n01", "cat"), Label(2, "n02", "dog")))


def test_coco_is_the_default():
    (metric,) = build_metrics(eval_pb2.EvalConfig(), LABELS)
    assert metric.primary == "DetectionBoxes_Precision/mAP"


@pytest.mark.parametrize("name", TABLE)
def test_every_row_builds_a_metric_with_its_primary(name):
    config = eval_pb2.EvalConfig(metrics_set=[name, name])
    (metric,) = build_metrics(config, LABELS)
    assert metric.primary in metric.result()


def test_order_and_per_category_options():
    config = eval_pb2.EvalConfig(
        metrics_set=["pascal_voc_detection_metrics", "coco_detection_metrics"],
        include_metrics_per_category=True,
        super_categories={"mammal": "cat, dog"},
    )
    pascal, coco = build_metrics(config, LABELS)
    assert pascal.primary == "PascalBoxes_Precision/mAP@0.5IOU"
    names = coco.result()
    assert "DetectionBoxes_PerformanceByCategory/mAP/cat" in names
    assert "DetectionBoxes_PerformanceBySuperCategory/mammal" in names


def test_unknown_metric_names_the_nearest():
    with pytest.raises(UserError, match=r"metrics_set: 'coco_detection_metric' .*'coco_detection_metrics'"):
        build_metrics(eval_pb2.EvalConfig(metrics_set=["coco_detection_metric"]), LABELS)


def test_metric_of_the_od_api_that_is_missing_here_is_refused():
    assert not ELSEWHERE & set(TABLE)
    with pytest.raises(UserError, match="'lvis_mask_metrics' is not supported"):
        build_metrics(eval_pb2.EvalConfig(metrics_set=["lvis_mask_metrics"]), LABELS)


def test_super_category_of_an_unknown_category():
    with pytest.raises(UserError, match=r"super_categories\['mammal'\]: 'dgo' .*'dog'"):
        build_metrics(eval_pb2.EvalConfig(super_categories={"mammal": "cat,dgo"}), LABELS)


def test_style_defaults_are_those_of_the_config():
    assert build_style(eval_pb2.EvalConfig()) == Style()


def test_style_takes_every_field():
    config = eval_pb2.EvalConfig(
        min_score_threshold=0.25,
        max_num_boxes_to_visualize=3,
        skip_scores=True,
        skip_labels=True,
        visualize_groundtruth_boxes=True,
        groundtruth_box_visualization_color="DarkOrange",
        keypoint_edge=[eval_pb2.KeypointEdge(start=0, end=2), eval_pb2.KeypointEdge(start=2, end=1)],
    )
    assert build_style(config) == Style(0.25, 3, True, True, True, (255, 140, 0), ((0, 2), (2, 1)))


def test_unknown_colour():
    with pytest.raises(UserError, match="groundtruth_box_visualization_color: 'blak' .*'black'"):
        build_style(eval_pb2.EvalConfig(groundtruth_box_visualization_color="blak"))


PEOPLE = LabelMap((Label(1, "/m/1", "person", ((0, "nose"), (2, "tail"))), Label(2, "n02", "dog")), "map.pbtxt")


def _keypoints(text: str, labels: LabelMap = PEOPLE):
    return build_metrics(text_format.Parse(text, eval_pb2.EvalConfig()), labels)


@pytest.mark.parametrize("name", ["person", "/m/1"])
def test_parameterized_keypoint_metrics_come_after_the_others(name):
    sigmas = "keypoint_label_to_sigmas { key: 'tail' value: 0.1 }"
    boxes, points = _keypoints(f"parameterized_metric {{ coco_keypoint_metrics {{ class_label: '{name}' {sigmas} }} }}")
    assert boxes.primary == "DetectionBoxes_Precision/mAP"
    assert points.primary == "Keypoints_Precision/mAP ByCategory/person"


def test_keypoint_metrics_of_all_classes_that_have_keypoints():
    (points,) = _keypoints("metrics_set: 'coco_keypoint_metrics'")
    assert points.primary == "Keypoints_Precision/mAP ByCategory/person"
    with pytest.raises(UserError, match="coco_keypoint_metrics needs a class with keypoints, and label map"):
        _keypoints("metrics_set: 'coco_keypoint_metrics'", LABELS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", r"parameterized_metric\[0\]: is empty, expected coco_keypoint_metrics"),
        ("coco_keypoint_metrics { class_label: 'persn' }", r"class_label: 'persn' is no known class; did you mean"),
        ("coco_keypoint_metrics { class_label: 'dog' }", "class_label: map.pbtxt has no keypoints .* for 'dog'"),
        (
            "coco_keypoint_metrics { class_label: 'person' keypoint_label_to_sigmas { key: 'noes' value: 0.1 } }",
            "keypoint_label_to_sigmas: 'noes' is no known keypoint; did you mean 'nose'",
        ),
        (
            "coco_keypoint_metrics { class_label: 'person' keypoint_label_to_sigmas { key: 'nose' } }",
            r"keypoint_label_to_sigmas\['nose'\] is 0.0, expected more than 0",
        ),
    ],
)
def test_bad_keypoint_metrics(text, expected):
    with pytest.raises(UserError, match=expected):
        _keypoints(f"parameterized_metric {{ {text} }}")
