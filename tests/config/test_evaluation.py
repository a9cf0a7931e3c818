"""EvalConfig -> metrics."""

from __future__ import annotations

import pytest

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
    with pytest.raises(UserError, match="'coco_mask_metrics' is not supported"):
        build_metrics(eval_pb2.EvalConfig(metrics_set=["coco_mask_metrics"]), LABELS)


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
    )
    assert build_style(config) == Style(0.25, 3, True, True, True, (255, 140, 0))


def test_unknown_colour():
    with pytest.raises(UserError, match="groundtruth_box_visualization_color: 'blak' .*'black'"):
        build_style(eval_pb2.EvalConfig(groundtruth_box_visualization_color="blak"))
