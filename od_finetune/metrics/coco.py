"""COCO's box metrics under the OD API's names, computed by hotcoco.

hotcoco (Rust, needs numpy only) gives the very numbers of pycocotools, tens of times faster;
tools/bench_coco_metrics.py compares the candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import hotcoco
import numpy as np

from od_finetune import fields
from od_finetune.metrics.coco_tables import AVERAGE, Breakdown
from od_finetune.metrics.records import ImageRecord, image_records, unique_names

PREFIX = "DetectionBoxes_"


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

    prefix = PREFIX  # of the results' names
    primary = PREFIX + AVERAGE

    def __init__(
        self,
        names: Mapping[int, str],
        per_category: bool = False,
        all_per_category: bool = False,
        super_categories: Mapping[str, Sequence[str]] | None = None,
    ):
        self._breakdown = Breakdown(unique_names(names), per_category, all_per_category, super_categories or {})
        self.reset()

    def reset(self) -> None:
        """Forgets all images."""
        self.records: list = []

    def update(self, batch: fields.Batch, detections: fields.Detections) -> None:
        """Adds the images of a batch (eager tensors or numpy)."""
        self.records.extend(image_records(batch, detections))

    def result(self) -> dict[str, float]:
        """All metrics over the images seen since the last `reset`."""
        return self._breakdown.values(self.prefix, *self.tables())

    @property
    def category_ids(self) -> list[int]:
        """Of the categories that are measured."""
        return list(self._breakdown.names)

    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """See `precision_and_recall`."""
        return precision_and_recall(self.records, self.category_ids)


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
        xywh(np.concatenate([r.boxes for r in records])),
        area=np.concatenate([r.area for r in records]),
        iscrowd=np.concatenate([r.is_crowd for r in records]),
    )
    table = hotcoco.COCOeval(truth, truth.load_res(_detection_rows(records, category_ids)), "bbox")
    table.evaluate()
    table.accumulate()
    return np.asarray(table.eval["precision"]), np.asarray(table.eval["recall"])


_EMPTY = ImageRecord(
    *(np.zeros((0, 4)), np.zeros(0, np.int64), *(np.zeros(0, bool),) * 3, np.zeros(0), np.zeros(0, np.int64)),
    *(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0)),
)


def _detection_rows(records: Sequence[ImageRecord], category_ids: Sequence[int]) -> np.ndarray:
    """`[M, 7]`: image, x, y, width, height, score, category."""
    image = np.repeat(np.arange(1, len(records) + 1), [len(r.scores) for r in records])
    categories = np.concatenate([r.detected_categories for r in records])
    boxes = xywh(np.concatenate([r.detected_boxes for r in records]))
    scores = np.concatenate([r.scores for r in records])
    return np.column_stack([image, boxes, scores, categories])[np.isin(categories, category_ids)]


def xywh(boxes: np.ndarray) -> np.ndarray:
    """`[ymin, xmin, ymax, xmax]` -> COCO's `[x, y, width, height]`."""
    return np.column_stack([boxes[:, 1], boxes[:, 0], boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]])
