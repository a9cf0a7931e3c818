"""COCO metrics: hand-made cases, and equality with pycocotools."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.metrics.coco import CocoDetectionMetrics, precision_and_recall
from od_finetune.metrics.coco_tables import SUMMARIES
from od_finetune.metrics.records import image_records

NAMES = {1: "cat", 2: "dog", 3: "owl"}
MAP = "DetectionBoxes_Precision/mAP"


def _measure(batch_and_detections, **options) -> dict[str, float]:
    metric = CocoDetectionMetrics(NAMES, **options)
    metric.update(*batch_and_detections)
    return metric.result()


def test_names_are_those_of_the_od_api(picture, batch_of):
    values = _measure(batch_of([picture()]))
    assert list(values) == [
        "DetectionBoxes_Precision/mAP",
        "DetectionBoxes_Precision/mAP@.50IOU",
        "DetectionBoxes_Precision/mAP@.75IOU",
        "DetectionBoxes_Precision/mAP (small)",
        "DetectionBoxes_Precision/mAP (medium)",
        "DetectionBoxes_Precision/mAP (large)",
        "DetectionBoxes_Recall/AR@1",
        "DetectionBoxes_Recall/AR@10",
        "DetectionBoxes_Recall/AR@100",
        "DetectionBoxes_Recall/AR@100 (small)",
        "DetectionBoxes_Recall/AR@100 (medium)",
        "DetectionBoxes_Recall/AR@100 (large)",
    ]
    assert CocoDetectionMetrics.primary in values


def test_overlap_of_seven_tenths_passes_five_thresholds(picture, batch_of):
    """IoU 0.7 counts at 0.50, 0.55, 0.60, 0.65 and (0.7 - rounding) not at 0.75; boxes are tall, to catch a swap."""
    scene = picture([[10, 20, 50, 40]], [0], [[10, 20, 39, 40]], [0], [0.9])  # 29 of 40 rows: IoU 0.725
    values = _measure(batch_of([scene]))
    assert values[MAP + "@.50IOU"] == pytest.approx(1.0)
    assert values[MAP + "@.75IOU"] == 0.0
    assert values[MAP] == pytest.approx(0.5)
    assert values["DetectionBoxes_Recall/AR@1"] == pytest.approx(0.5)
    # 40 x 20 pixels of the original image are small, whatever the network's input was.
    assert values[MAP + " (small)"] == pytest.approx(0.5)
    assert values[MAP + " (medium)"] == values[MAP + " (large)"] == -1


def test_area_of_the_record_decides_the_size(picture, batch_of):
    scene = picture([[0, 0, 90, 90]], [0], [[0, 0, 90, 90]], [0], [0.9], area=[900.0])
    values = _measure(batch_of([scene]))
    assert values[MAP + " (small)"] == pytest.approx(1.0)
    assert values[MAP + " (medium)"] == -1


def test_crowd_absorbs_detections(picture, batch_of):
    boxes, found = [[0, 0, 90, 100], [0, 150, 20, 180]], [[0, 0, 40, 50], [40, 50, 80, 95], [0, 150, 20, 180]]
    scene = picture(boxes, [0, 0], found, [0] * 3, [0.9, 0.8, 0.7])
    assert _measure(batch_of([scene._replace(crowd=[True, False])]))[MAP] == pytest.approx(1.0)
    assert _measure(batch_of([scene]))[MAP] < 0.3


def test_images_with_the_same_source_id_are_all_counted(picture, batch_of):
    scene = picture([[0, 0, 50, 50]], [0], [[0, 0, 50, 50]], [0], [0.9])
    missed = scene._replace(found=[], found_classes=[], scores=[])
    values = _measure(batch_of([scene, missed]))
    assert values["DetectionBoxes_Recall/AR@100"] == pytest.approx(0.5)


def test_nothing_to_measure_is_minus_one_and_nothing_found_is_zero(picture, batch_of):
    box = [[0, 0, 50, 50]]
    assert set(_measure(batch_of([picture()])).values()) == {-1.0}
    assert set(_measure(batch_of([picture(found=box, found_classes=[0], scores=[0.5])])).values()) == {-1.0}
    assert set(CocoDetectionMetrics(NAMES).result().values()) == {-1.0}
    values = _measure(batch_of([picture(box, [0])]), per_category=True)
    assert values[MAP] == values["DetectionBoxes_PerformanceByCategory/mAP/cat"] == 0.0
    assert values["DetectionBoxes_PerformanceByCategory/mAP/dog"] == -1.0


def test_per_category_and_super_category(pictures_of, batch_of):
    options = dict(all_per_category=True, super_categories={"mammal": ["cat", "dog"]})
    values = _measure(batch_of(pictures_of(20, 1)), **options)
    by_category = [values[f"DetectionBoxes_PerformanceByCategory/mAP/{name}"] for name in NAMES.values()]
    assert np.mean(by_category) == pytest.approx(values[MAP])
    assert values["DetectionBoxes_PerformanceBySuperCategory/mammal"] == pytest.approx(np.mean(by_category[:2]))
    assert values["DetectionBoxes_Precision mAP ByCategory/owl"] == by_category[2]
    assert "DetectionBoxes_Recall AR@100 (small) ByCategory/dog" in values
    assert len(values) == 12 * 4 + 3 + 1
    assert json.loads(json.dumps(values, allow_nan=False)) == values


def test_batches_of_tensors_add_up_and_reset_forgets(pictures_of, batch_of):
    pictures = pictures_of(9, 2)
    metric = CocoDetectionMetrics(NAMES)
    for part in (pictures[:4], pictures[4:]):
        batch, detections = batch_of(part)
        metric.update(
            batch._replace(groundtruth=tf.nest.map_structure(_tensor, batch.groundtruth)),
            detections._replace(boxes=tf.constant(detections.boxes), scores=tf.constant(detections.scores)),
        )
    assert metric.result() == _measure(batch_of(pictures))
    metric.reset()
    assert metric.result()[MAP] == -1


def _tensor(value):
    return None if value is None else tf.constant(value)


def _pycocotools(records, category_ids):
    """The tables of the reference implementation from the same records."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def xywh(box):
        return [box[1], box[0], box[3] - box[1], box[2] - box[0]]

    truth, rows = [], []
    for image, record in enumerate(records, 1):
        for box, label, crowd, area in zip(record.boxes, record.categories, record.is_crowd, record.area, strict=True):
            entry = {"id": len(truth) + 1, "image_id": image, "category_id": int(label), "bbox": xywh(box)}
            truth.append(entry | {"area": area, "iscrowd": int(crowd)})
        for box, label, score in zip(record.detected_boxes, record.detected_categories, record.scores, strict=True):
            rows.append([image, *xywh(box), score, label])
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": i + 1} for i in range(len(records))],
            "categories": [{"id": i} for i in category_ids],
            "annotations": truth,
        }
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(np.array(rows)), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.eval["precision"], run.eval["recall"], run.stats


@pytest.mark.parametrize("distinct_scores", [True, False])
def test_equal_to_pycocotools(pictures_of, batch_of, distinct_scores):
    pictures = pictures_of(60, 3, distinct_scores=distinct_scores)
    records = list(image_records(*batch_of(pictures)))
    precision, recall, stats = _pycocotools(records, list(NAMES))
    ours = precision_and_recall(records, list(NAMES))
    np.testing.assert_allclose(ours[0], precision, atol=1e-12)
    np.testing.assert_allclose(ours[1], recall, atol=1e-12)
    values = _measure(batch_of(pictures))
    np.testing.assert_allclose([values["DetectionBoxes_" + s.name] for s in SUMMARIES], stats, atol=1e-12)
    assert 0.1 < values[MAP] < 0.9
