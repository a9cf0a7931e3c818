"""COCO's mask metrics under the OD API's names, computed by hotcoco.

An image's masks are kept as run-length code, a few hundred bytes each, in the frame of the original image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import hotcoco
import numpy as np

from od_finetune import fields
from od_finetune.boxes.paste import paste, resize_mask
from od_finetune.errors import UserError
from od_finetune.metrics.coco import CocoDetectionMetrics, xywh
from od_finetune.metrics.coco_tables import AVERAGE
from od_finetune.metrics.records import ImageRecord, image_records

PREFIX = "DetectionMasks_"
_CHOSEN = "metrics_set holds coco_mask_metrics, but"

Rle = dict[str, Any]
"""COCO's run-length code: {"size": [height, width], "counts": bytes}."""


class MaskRecord(NamedTuple):
    """Masks of one image beside its boxes, those of `record.boxes` and of `record.detected_boxes`."""

    record: ImageRecord
    size: tuple[int, int]  # height and width of the original image
    masks: list[Rle]
    detected_masks: list[Rle]


class CocoMaskMetrics(CocoDetectionMetrics):
    """Average precision and recall of instance masks, as `CocoDetectionMetrics` of boxes in all else.

    Sizes go by the record's area where it gives one, else by the mask's own.

    Args:
      names: category name by label id (1-based); detections of other ids count for nothing.
      per_category, all_per_category, super_categories: as `CocoDetectionMetrics`, under `DetectionMasks_...`.
    """

    prefix = PREFIX
    primary = PREFIX + AVERAGE

    def update(self, batch: fields.Batch, detections: fields.Detections) -> None:
        """Adds the images of a batch (eager tensors or numpy).

        Raises:
          UserError: ground truth or detections have no masks.
        """
        if batch.groundtruth.masks is None:
            raise UserError(f"{_CHOSEN} the records' masks are not read; set load_instance_masks of eval_input_reader")
        if detections.masks is None:
            raise UserError(f"{_CHOSEN} the model predicts no masks; take it out, or give the model a mask head")
        self.records.extend(mask_records(batch, detections))

    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """See `precision_and_recall`."""
        return precision_and_recall(self.records, self.category_ids)


def mask_records(batch: fields.Batch, detections: fields.Detections) -> list[MaskRecord]:
    """The images of a batch with masks in the frame of the original image."""
    shapes, true_shapes = np.asarray(batch.original_shapes), np.asarray(batch.true_shapes)
    given = np.asarray(batch.groundtruth.area)
    records = []
    for i, record in enumerate(image_records(batch, detections)):
        size = (int(shapes[i][0]), int(shapes[i][1]))
        masks = _truth(batch.groundtruth.masks[i], record.rows, true_shapes[i], size)
        area = np.where(given[i][record.rows] > 0, record.area, [hotcoco.mask.area(mask) for mask in masks])
        boxes = np.asarray(detections.boxes[i])
        within = np.asarray(detections.masks[i])
        found = [
            hotcoco.mask.encode(paste(mask, box, size))
            for mask, box in zip(within[: len(record.scores)], boxes[: len(record.scores)], strict=True)
        ]
        records.append(MaskRecord(record._replace(area=area), size, masks, found))
    return records


def _truth(masks: Any, rows: np.ndarray, true_shape: np.ndarray, size: tuple[int, int]) -> list[Rle]:
    """Encodes masks `[N, H, W]` of the network's frame, each once though a box of two classes needs it twice."""
    codes = {
        row: hotcoco.mask.encode(resize_mask(np.asarray(masks[row])[: true_shape[0], : true_shape[1]], size))
        for row in dict.fromkeys(rows.tolist())
    }
    return [codes[row] for row in rows.tolist()]


def precision_and_recall(records: Sequence[MaskRecord], category_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """COCO's tables as `coco.precision_and_recall`, of masks."""
    boxes = [record.record for record in records]
    truth = hotcoco.COCO.from_arrays(
        [{"id": i, "height": r.size[0], "width": r.size[1]} for i, r in enumerate(records, 1)] or [{"id": 1}],
        [{"id": int(i), "name": str(i)} for i in category_ids],
        np.repeat(np.arange(1, len(records) + 1), [len(r.boxes) for r in boxes]).astype(np.int64),
        np.concatenate([np.zeros(0, np.int64), *(r.categories for r in boxes)]),
        xywh(np.concatenate([np.zeros((0, 4)), *(r.boxes for r in boxes)])),
        area=np.concatenate([np.zeros(0), *(r.area for r in boxes)]),
        iscrowd=np.concatenate([np.zeros(0, bool), *(r.is_crowd for r in boxes)]),
        segmentation=[mask for record in records for mask in record.masks],
    )
    known = set(category_ids)
    # Without a box in it, the area of a detection is that of its mask.
    found = [
        {"image_id": i, "category_id": int(category), "segmentation": mask, "score": float(score)}
        for i, record in enumerate(records, 1)
        for mask, category, score in zip(
            record.detected_masks, record.record.detected_categories, record.record.scores, strict=True
        )
        if int(category) in known
    ]
    table = hotcoco.COCOeval(truth, truth.load_res(found), "segm")
    table.evaluate()
    table.accumulate()
    return np.asarray(table.eval["precision"]), np.asarray(table.eval["recall"])
