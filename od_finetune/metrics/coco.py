"""COCO's box metrics under the OD API's names, computed by hotcoco.

hotcoco (Rust, needs numpy only) gives the very numbers of pycocotools, tens of times faster;
tools/bench_coco_metrics.py compares the candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import hotcoco
import numpy as np

from od_finetune import fields
from od_finetune.metrics.records import UNDEFINED, ImageRecord, image_records, unique_names

PREFIX = "DetectionBoxes_"
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)


class _Summary(NamedTuple):
    """Which part of the precision or recall table a metric averages."""

    name: str
    recall: bool = False
    threshold: int | None = None  # index into IoU 0.50, 0.55 .. 0.95; None: all
    area: int = _ALL
    limit: int = 2  # index into 1, 10, 100 detections per image


SUMMARIES = (
    _Summary("Precision/mAP"),
    _Summary("Precision/mAP@.50IOU", threshold=0),
    _Summary("Precision/mAP@.75IOU", threshold=5),
    _Summary("Precision/mAP (small)", area=_SMALL),
    _Summary("Precision/mAP (medium)", area=_MEDIUM),
    _Summary("Precision/mAP (large)", area=_LARGE),
    _Summary("Recall/AR@1", recall=True, limit=0),
    _Summary("Recall/AR@10", recall=True, limit=1),
    _Summary("Recall/AR@100", recall=True),
    _Summary("Recall/AR@100 (small)", recall=True, area=_SMALL),
    _Summary("Recall/AR@100 (medium)", recall=True, area=_MEDIUM),
    _Summary("Recall/AR@100 (large)", recall=True, area=_LARGE),
)


class CocoDetectionMetrics:
    """Average precision and recall of boxes as COCO defines them (https://cocodataset.org/#detection-eval).

    Images count by their place in the evaluation, so records that share a source id stay apart. Crowd boxes absorb
    detections without penalty; `small` is below 32^2, `large` above 96^2 pixels of the record's area. A metric
    without ground truth to measure is -1.

    Args:
      names: category name by label id (1-based); detections of other ids count for nothing.
      per_category: adds `DetectionBoxes_PerformanceByCategory/mAP/<name>`.
      all_per_category: adds every summary per category, e.g. `DetectionBoxes_Precision mAP@.50IOU ByCategory/<name>`,
        besides the former.
      super_categories: name -> category names; adds `DetectionBoxes_PerformanceBySuperCategory/<name>`, the mean
        mAP of those of its categories that have ground truth.
    """

    primary = PREFIX + SUMMARIES[0].name

    def __init__(
        self,
        names: Mapping[int, str],
        per_category: bool = False,
        all_per_category: bool = False,
        super_categories: Mapping[str, Sequence[str]] | None = None,
    ):
        self._names = unique_names(names)
        self._per_category = per_category or all_per_category
        self._all_per_category = all_per_category
        self._super_categories = dict(super_categories or {})
        self.reset()

    def reset(self) -> None:
        """Forgets all images."""
        self._records: list[ImageRecord] = []

    def update(self, batch: fields.Batch, detections: fields.Detections) -> None:
        """Adds the images of a batch (eager tensors or numpy)."""
        self._records.extend(image_records(batch, detections))

    def result(self) -> dict[str, float]:
        """All metrics over the images seen since the last `reset`."""
        precision, recall = precision_and_recall(self._records, list(self._names))
        every = slice(None)
        values = {s.name: _mean(s, precision, recall, every) for s in SUMMARIES}
        by_category = {
            name: {s.name: _mean(s, precision, recall, slice(k, k + 1)) for s in SUMMARIES}
            for k, name in enumerate(self._names.values())
        }
        if self._per_category:
            values |= {f"PerformanceByCategory/mAP/{name}": v["Precision/mAP"] for name, v in by_category.items()}
        if self._all_per_category:
            for summary in SUMMARIES:
                label = summary.name.replace("/", " ") + " ByCategory/"
                values |= {label + name: v[summary.name] for name, v in by_category.items()}
        for group, members in self._super_categories.items():
            known = [by_category[m]["Precision/mAP"] for m in members if by_category[m]["Precision/mAP"] > UNDEFINED]
            values[f"PerformanceBySuperCategory/{group}"] = float(np.mean(known)) if known else UNDEFINED
        return {PREFIX + name: value for name, value in values.items()}


def precision_and_recall(records: Sequence[ImageRecord], category_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """COCO's tables; -1 where a category has no ground truth of that size.

    Returns:
      precision `[10 IoU thresholds, 101 recalls, categories, 4 sizes, 3 limits]` and recall `[10, categories, 4, 3]`;
      sizes are all, small, medium, large; limits are 1, 10 and 100 detections per image and category.
    """
    if not records:
        records = [_EMPTY]
    images = [{"id": i} for i in range(1, len(records) + 1)]
    truth = hotcoco.COCO.from_arrays(
        images,
        [{"id": int(i), "name": str(i)} for i in category_ids],
        np.repeat(np.arange(1, len(records) + 1), [len(r.boxes) for r in records]),
        np.concatenate([r.categories for r in records]).astype(np.int64),
        _xywh(np.concatenate([r.boxes for r in records])),
        area=np.concatenate([r.area for r in records]),
        iscrowd=np.concatenate([r.is_crowd for r in records]),
    )
    table = hotcoco.COCOeval(truth, truth.load_res(_detection_rows(records, category_ids)), "bbox")
    table.evaluate()
    table.accumulate()
    return np.asarray(table.eval["precision"]), np.asarray(table.eval["recall"])


_EMPTY = ImageRecord(
    *(np.zeros((0, 4)), np.zeros(0, np.int64), *(np.zeros(0, bool),) * 3, np.zeros(0)),
    *(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0)),
)


def _detection_rows(records: Sequence[ImageRecord], category_ids: Sequence[int]) -> np.ndarray:
    """`[M, 7]`: image, x, y, width, height, score, category."""
    image = np.repeat(np.arange(1, len(records) + 1), [len(r.scores) for r in records])
    categories = np.concatenate([r.detected_categories for r in records])
    boxes = _xywh(np.concatenate([r.detected_boxes for r in records]))
    scores = np.concatenate([r.scores for r in records])
    return np.column_stack([image, boxes, scores, categories])[np.isin(categories, category_ids)]


def _xywh(boxes: np.ndarray) -> np.ndarray:
    """`[ymin, xmin, ymax, xmax]` -> COCO's `[x, y, width, height]`."""
    return np.column_stack([boxes[:, 1], boxes[:, 0], boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]])


def _mean(summary: _Summary, precision: np.ndarray, recall: np.ndarray, categories: slice) -> float:
    """Mean over the defined entries of a table, -1 where there is none."""
    thresholds = slice(None) if summary.threshold is None else slice(summary.threshold, summary.threshold + 1)
    if summary.recall:
        values = recall[thresholds, categories, summary.area, summary.limit]
    else:
        values = precision[thresholds, :, categories, summary.area, summary.limit]
    values = values[values > UNDEFINED]
    return float(values.mean()) if values.size else UNDEFINED
