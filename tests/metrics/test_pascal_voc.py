"""PASCAL VOC metrics: cases worked out by hand, and a brute force that follows the definition word by word."""

from __future__ import annotations

import json

import numpy as np
import pytest

from od_finetune.metrics.pascal_voc import PascalVocMetrics, average_precision
from od_finetune.metrics.records import image_records

NAMES = {1: "cat", 2: "dog", 3: "owl"}
MAP = "PascalBoxes_Precision/mAP@0.5IOU"
CATEGORY = "PascalBoxes_PerformanceByCategory/AP@0.5IOU/"


def _measure(batch_and_detections, **options) -> dict[str, float]:
    metric = PascalVocMetrics(NAMES, **options)
    metric.update(*batch_and_detections)
    return metric.result()


@pytest.mark.parametrize(
    ("correct", "objects", "expected"),
    [
        ([1], 1, 1.0),
        ([0], 1, 0.0),
        ([], 2, 0.0),
        ([1, 0, 1], 2, 0.5 * 1 + 0.5 * 2 / 3),
        ([0, 1], 1, 0.5),
        # precision 1/1, 1/2, 1/3, 2/4, 3/5: the envelope lifts 1/2 to 3/5
        ([1, 0, 0, 1, 1], 4, 0.25 * 1 + 0.25 * 0.6 + 0.25 * 0.6),
        ([0, 1, 1], 2, 2 / 3),
        ([1], 0, -1.0),
    ],
)
def test_average_precision_by_hand(correct, objects, expected):
    order = np.random.default_rng(0).permutation(len(correct))
    scores = np.linspace(0.9, 0.1, len(correct))
    hits = np.array(correct, bool)
    assert average_precision(scores[order], hits[order], objects) == pytest.approx(expected)


def test_a_second_detection_of_a_box_is_wrong(picture, batch_of):
    scene = picture([[0, 0, 50, 50], [0, 100, 50, 150]], [0, 0], [[0, 0, 50, 50]] * 2 + [[0, 100, 50, 150]], [0] * 3,
                    [0.9, 0.8, 0.7])  # fmt: skip
    assert _measure(batch_of([scene]))[MAP] == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_overlap_below_half_is_wrong(picture, batch_of):
    scene = picture([[0, 0, 50, 100]], [0], [[0, 0, 50, 51]], [0], [0.9])
    assert _measure(batch_of([scene]))[MAP] == 1.0
    assert _measure(batch_of([scene._replace(found=[[0, 0, 50, 49]])]))[MAP] == 0.0


def test_difficult_boxes_are_neither_sought_nor_punished(picture, batch_of):
    boxes = [[0, 0, 50, 50], [0, 100, 50, 150]]
    scene = picture(boxes, [0, 0], boxes[1:] * 2 + boxes[:1], [0] * 3, [0.9, 0.8, 0.7], difficult=[False, True])
    assert _measure(batch_of([scene]))[MAP] == 1.0
    only_difficult = scene._replace(difficult=[True, True])
    assert set(_measure(batch_of([only_difficult])).values()) == {-1.0}


def test_detections_inside_a_group_are_ignored(picture, batch_of):
    boxes = [[0, 0, 90, 90], [0, 100, 50, 150]]
    scene = picture(boxes, [0, 0], [[10, 10, 30, 30], [0, 100, 50, 150]], [0, 0], [0.9, 0.8], group_of=[True, False])
    assert _measure(batch_of([scene]))[MAP] == 1.0
    assert _measure(batch_of([scene._replace(group_of=[])]))[MAP] == pytest.approx(0.25)


def test_mean_leaves_out_categories_without_objects(picture, batch_of):
    box = [[0, 0, 50, 50]]
    scenes = [picture(box, [0], box * 2, [0, 2], [0.9, 0.8]), picture(box, [1])]
    values = _measure(batch_of(scenes))
    assert values == {MAP: 0.5, CATEGORY + "cat": 1.0, CATEGORY + "dog": 0.0, CATEGORY + "owl": -1.0}
    assert json.loads(json.dumps(values, allow_nan=False)) == values


def test_nothing_seen_is_minus_one(picture, batch_of):
    assert set(PascalVocMetrics(NAMES).result().values()) == {-1.0}
    assert set(_measure(batch_of([picture()]), weighted=True).values()) == {-1.0}


def test_weighted_ranks_all_detections_as_one(picture, batch_of):
    box, other = [0, 0, 50, 50], [0, 100, 50, 150]
    scene = picture([box, other, other], [0, 0, 1], [box, other, box], [0, 0, 1], [0.9, 0.5, 0.7])
    values = _measure(batch_of([scene]), weighted=True)
    # ranked: right, wrong (a dog that is none), right; three objects
    assert values["WeightedPascalBoxes_Precision/mAP@0.5IOU"] == pytest.approx(1 / 3 + 1 / 3 * 2 / 3)
    assert values["WeightedPascalBoxes_PerformanceByCategory/AP@0.5IOU/cat"] == 1.0


def test_categories_of_one_name_stay_apart(picture, batch_of):
    metric = PascalVocMetrics({1: "cat", 2: "cat"})
    box = [[0, 0, 50, 50]]
    metric.update(*batch_of([picture(box, [0], box, [0], [0.9])]))
    assert metric.result() == {MAP: 1.0, CATEGORY + "cat (1)": 1.0, CATEGORY + "cat (2)": -1.0}


def _overlap(a, b):
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(height, 0) * max(width, 0)
    own = (a[2] - a[0]) * (a[3] - a[1])
    return inter / (own + (b[2] - b[0]) * (b[3] - b[1]) - inter), inter / own


def _brute_force(records, category):
    """Loops over all detections of a category in order of score; integrates the curve by its own definition."""
    sought = {}
    for i, r in enumerate(records):
        for j in range(len(r.boxes)):
            if r.categories[j] == category and not r.group_of[j] and not r.difficult[j]:
                sought[i, j] = False
    objects = len(sought)
    ranked = sorted(
        ((r.scores[k], i, k) for i, r in enumerate(records) for k in range(len(r.scores))
         if r.detected_categories[k] == category),
        key=lambda item: -item[0],
    )  # fmt: skip
    points, right, seen = [], 0, 0
    for _, i, k in ranked:
        r, box = records[i], records[i].detected_boxes[k]
        mine = [j for j in range(len(r.boxes)) if r.categories[j] == category]
        plain = [j for j in mine if not r.group_of[j]]
        best = max(plain, key=lambda j: _overlap(box, r.boxes[j])[0], default=None)
        near = best is not None and _overlap(box, r.boxes[best])[0] >= 0.5
        if near and r.difficult[best]:
            continue
        if near and not sought[i, best]:
            sought[i, best] = True
            right += 1
        elif any(_overlap(box, r.boxes[j])[1] >= 0.5 for j in mine if r.group_of[j]):
            continue
        seen += 1
        points.append((right / objects, right / seen))
    recalls = sorted({recall for recall, _ in points if recall > 0})
    area, before = 0.0, 0.0
    for recall in recalls:
        area += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    return area


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_brute_force(pictures_of, batch_of, seed):
    batch = batch_of(pictures_of(25, 100 + seed))
    records = list(image_records(*batch))
    expected = [_brute_force(records, category) for category in NAMES]
    values = _measure(batch)
    np.testing.assert_allclose([values[CATEGORY + name] for name in NAMES.values()], expected, atol=1e-12)
    assert values[MAP] == pytest.approx(np.mean(expected))
    assert 0.1 < values[MAP] < 0.95
