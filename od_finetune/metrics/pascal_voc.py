"""PASCAL VOC's average precision, as of VOC 2010: the area under the interpolated precision-recall curve.

Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010, and the 2010 development kit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from od_finetune import fields
from od_finetune.metrics.records import UNDEFINED, ImageRecord, image_records, unique_names


class _Judged(NamedTuple):
    """Detections of one category that count, and how many objects there were to find."""

    scores: np.ndarray  # float64 [d]
    correct: np.ndarray  # bool [d]
    objects: int


class PascalVocMetrics:
    """AP at one IoU threshold per category and its mean, under the OD API's names.

    Each detection, best score first, belongs to the ground-truth box of its category that it overlaps most. It is
    correct if the overlap reaches the threshold and the box was not found before; it is ignored if that box is
    `difficult`, or if it lies in a `group_of` box and is not correct. Difficult and group-of boxes need not be found.
    A category without boxes to find has AP -1 and does not enter the mean; without any such box the mean is -1.

    Args:
      names: category name by label id (1-based).
      weighted: ranks the detections of all categories as one (the OD API's `weighted_pascal_voc_detection_metrics`),
        so that frequent categories weigh more in the mean.
      iou_threshold: the overlap that makes a detection correct.
    """

    def __init__(self, names: Mapping[int, str], weighted: bool = False, iou_threshold: float = 0.5):
        self._names = unique_names(names)
        self._weighted = weighted
        self._iou_threshold = iou_threshold
        self._prefix = "WeightedPascalBoxes_" if weighted else "PascalBoxes_"
        self.primary = f"{self._prefix}Precision/mAP@{iou_threshold}IOU"
        self.reset()

    def reset(self) -> None:
        """Forgets all images."""
        self._records: list[ImageRecord] = []

    def update(self, batch: fields.Batch, detections: fields.Detections) -> None:
        """Adds the images of a batch (eager tensors or numpy)."""
        self._records.extend(image_records(batch, detections))

    def result(self) -> dict[str, float]:
        """All metrics over the images seen since the last `reset`."""
        judged = {i: judge_category(self._records, i, self._iou_threshold) for i in self._names}
        precisions = {i: average_precision(*j) for i, j in judged.items()}
        found = [i for i, j in judged.items() if j.objects]
        if not found:
            mean = UNDEFINED
        elif self._weighted:
            mean = average_precision(
                np.concatenate([judged[i].scores for i in found]),
                np.concatenate([judged[i].correct for i in found]),
                sum(judged[i].objects for i in found),
            )
        else:
            mean = float(np.mean([precisions[i] for i in found]))
        label = f"{self._prefix}PerformanceByCategory/AP@{self._iou_threshold}IOU/"
        return {self.primary: mean} | {label + name: precisions[i] for i, name in self._names.items()}


def average_precision(scores: np.ndarray, correct: np.ndarray, objects: int) -> float:
    """Area under the precision-recall curve, precision made non-increasing from the right.

    Args:
      scores: float `[d]`, in any order. Ties keep their order.
      correct: bool `[d]`.
      objects: how many objects there were to find; 0 gives -1.
    """
    if not objects:
        return UNDEFINED
    hits = np.cumsum(correct[np.argsort(-scores, kind="stable")])
    precision = hits / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.diff(hits / objects, prepend=0.0)
    return float(np.sum(steps * envelope))


def judge_category(records: Sequence[ImageRecord], category: int, iou_threshold: float) -> _Judged:
    """Decides for every detection of a category whether it is correct; drops the ignored ones."""
    scores, correct, objects = [np.zeros(0)], [np.zeros(0, bool)], 0
    for record in records:
        mine, theirs = record.categories == category, record.detected_categories == category
        theirs &= np.all(record.detected_boxes[:, 2:] > record.detected_boxes[:, :2], axis=1)  # no empty boxes
        sought = mine & ~record.group_of
        objects += int(np.sum(sought & ~record.difficult))
        order = np.argsort(-record.scores[theirs], kind="stable")
        detected = record.detected_boxes[theirs][order]
        hit, counts = _judge_image(
            detected,
            record.boxes[sought],
            record.difficult[sought],
            record.boxes[mine & record.group_of],
            iou_threshold,
        )
        scores.append(record.scores[theirs][order][counts])
        correct.append(hit[counts])
    return _Judged(np.concatenate(scores), np.concatenate(correct), objects)


def _judge_image(
    detected: np.ndarray, boxes: np.ndarray, difficult: np.ndarray, groups: np.ndarray, iou_threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Detections best first -> whether each is correct, whether each counts (bool `[d]` both)."""
    hit, counts = np.zeros(len(detected), bool), np.ones(len(detected), bool)
    if len(boxes) and len(detected):
        overlap = _intersection(detected, boxes)
        union = _area(detected)[:, None] + _area(boxes)[None, :] - overlap
        overlap = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
        best = overlap.argmax(axis=1)
        near = overlap[np.arange(len(detected)), best] >= iou_threshold
        counts = ~(near & difficult[best])
        claimed = np.where(near & counts)[0]
        # Of the detections that claim a box, the first in order, i.e. the best, gets it.
        hit[claimed[np.unique(best[claimed], return_index=True)[1]]] = True
    if len(groups) and len(detected):
        inside = _intersection(detected, groups).max(axis=1) >= iou_threshold * _area(detected)
        counts &= hit | ~inside
    return hit, counts


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)


def _intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Areas `[len(a), len(b)]`."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.prod(np.maximum(high - low, 0.0), axis=2)
