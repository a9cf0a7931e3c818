"""One evaluated image as plain numpy, the common ground of all box metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from od_finetune import fields

UNDEFINED = -1.0
"""Value of a metric that has nothing to measure, e.g. precision of a category without ground truth.

It is COCO's convention. Unlike NaN it is valid JSON, and it compares as worse than any real value."""


class ImageRecord(NamedTuple):
    """Ground truth and detections of one image; boxes are `[ymin, xmin, ymax, xmax]` in its original pixels."""

    boxes: np.ndarray  # float64 [n, 4]
    categories: np.ndarray  # int64 [n], label ids (1-based)
    is_crowd: np.ndarray  # bool [n]
    difficult: np.ndarray  # bool [n]
    group_of: np.ndarray  # bool [n]
    area: np.ndarray  # float64 [n], pixels; of the record where it gives one, else of the box
    rows: np.ndarray  # int64 [n], where each stands in the batch's ground truth: a box of two classes stands here twice
    detected_boxes: np.ndarray  # float64 [d, 4]
    detected_categories: np.ndarray  # int64 [d], label ids (1-based)
    scores: np.ndarray  # float64 [d]


def image_records(batch: fields.Batch, detections: fields.Detections) -> Iterator[ImageRecord]:
    """Cuts a batch (eager tensors or numpy) into images, without padding.

    A box with several classes (`classes` is k-hot) counts once for each class.
    """
    truth = fields.Groundtruth(*(None if value is None else np.asarray(value) for value in batch.groundtruth))
    counts = np.asarray(detections.num_detections)
    found = [np.asarray(value) for value in (detections.boxes, detections.classes, detections.scores)]
    for i, shape in enumerate(np.asarray(batch.original_shapes)):
        scale = np.tile(shape[:2], 2).astype(np.float64)
        real, kept = int(truth.num_boxes[i]), int(counts[i])
        row, label = np.nonzero(truth.classes[i, :real] >= 0.5)
        boxes = truth.boxes[i, row].astype(np.float64) * scale
        area = truth.area[i, row].astype(np.float64)
        yield ImageRecord(
            boxes=boxes,
            categories=label + 1,
            is_crowd=truth.is_crowd[i, row].astype(bool),
            difficult=truth.difficult[i, row].astype(bool),
            group_of=truth.group_of[i, row].astype(bool),
            area=np.where(area > 0, area, np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)),
            rows=row,
            detected_boxes=found[0][i, :kept].astype(np.float64) * scale,
            detected_categories=found[1][i, :kept].astype(np.int64) + 1,
            scores=found[2][i, :kept].astype(np.float64),
        )


def unique_names(names: Mapping[int, str]) -> dict[int, str]:
    """Category names fit as parts of metric names: a name that several ids share gets its id appended."""
    shared = Counter(names.values())
    return {i: name if shared[name] == 1 else f"{name} ({i})" for i, name in sorted(names.items())}
