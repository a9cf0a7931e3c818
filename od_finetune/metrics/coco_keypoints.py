"""COCO's keypoint metrics of one class under the OD API's names, computed by hotcoco.

Keypoints match by their object keypoint similarity (https://cocodataset.org/#keypoints-eval): the mean over labelled
keypoints of `exp(-d^2 / (2 area (2 sigma)^2))`, `d` the distance and `sigma` the keypoint's tolerance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import hotcoco
import numpy as np

from od_finetune import fields
from od_finetune.errors import UserError
from od_finetune.metrics.coco import xywh
from od_finetune.metrics.coco_tables import AVERAGE, Summary, average
from od_finetune.metrics.records import ImageRecord, image_records

PREFIX = "Keypoints_"
DEFAULT_SIGMA = 0.05
COCO_SIGMAS: dict[str, float] = {
    "nose": 0.026, "left_eye": 0.025, "right_eye": 0.025, "left_ear": 0.035, "right_ear": 0.035,
    "left_shoulder": 0.079, "right_shoulder": 0.079, "left_elbow": 0.072, "right_elbow": 0.072,
    "left_wrist": 0.062, "right_wrist": 0.062, "left_hip": 0.107, "right_hip": 0.107, "left_knee": 0.087,
    "right_knee": 0.087, "left_ankle": 0.089, "right_ankle": 0.089,
}  # fmt: skip
"""Those of COCO's people."""

_ALL, _MEDIUM, _LARGE = range(3)
# COCO has no small people, and one limit, of 20 detections. The names of recalls are the OD API's, which took those
# that boxes have in the same places: AR@10 and AR@100 are at similarities of 0.5 and 0.75.
SUMMARIES = (
    Summary(AVERAGE, limit=0),
    Summary("Precision/mAP@.50IOU", threshold=0, limit=0),
    Summary("Precision/mAP@.75IOU", threshold=5, limit=0),
    Summary("Precision/mAP (medium)", area=_MEDIUM, limit=0),
    Summary("Precision/mAP (large)", area=_LARGE, limit=0),
    Summary("Recall/AR@1", recall=True, limit=0),
    Summary("Recall/AR@10", recall=True, threshold=0, limit=0),
    Summary("Recall/AR@100", recall=True, threshold=5, limit=0),
    Summary("Recall/AR@100 (medium)", recall=True, area=_MEDIUM, limit=0),
    Summary("Recall/AR@100 (large)", recall=True, area=_LARGE, limit=0),
)


class KeypointRecord(NamedTuple):
    """Objects and detections of one class in one image, in its original pixels."""

    boxes: np.ndarray  # float64 [n, 4], ymin, xmin, ymax, xmax
    keypoints: np.ndarray  # float64 [n, K, 3]: x, y, and 2 where labelled, else all 0
    is_crowd: np.ndarray  # bool [n]
    area: np.ndarray  # float64 [n]
    detected_keypoints: np.ndarray  # float64 [d, K, 3], as `keypoints`
    scores: np.ndarray  # float64 [d]


class CocoKeypointMetrics:
    """Average precision and recall of the keypoints of one class.

    Args:
      category_id: the class's label id (1-based).
      category_name: which the metrics' names end with.
      keypoints: name -> place among all keypoints of ground truth and detections, of those that the class has.
      sigmas: name -> tolerance; 0.05 for those it leaves out, as in the OD API.
    """

    def __init__(
        self,
        category_id: int,
        category_name: str,
        keypoints: Mapping[str, int],
        sigmas: Mapping[str, float],
    ):
        self._id = category_id
        self._name = category_name
        self._places = list(keypoints.values())
        self._sigmas = [float(sigmas.get(name, DEFAULT_SIGMA)) for name in keypoints]
        self.primary = self._full(AVERAGE)
        self.reset()

    def _full(self, name: str) -> str:
        return f"{PREFIX}{name} ByCategory/{self._name}"

    def reset(self) -> None:
        """Forgets all images."""
        self._records: list[KeypointRecord] = []

    def update(self, batch: fields.Batch, detections: fields.Detections) -> None:
        """Adds the images of a batch (eager tensors or numpy).

        Raises:
          UserError: ground truth or detections have no keypoints, or fewer than the label map says.
        """
        for values, whose, remedy in (
            (batch.groundtruth.keypoints, "the records that are read", "set num_keypoints of eval_input_reader"),
            (detections.keypoints, "the model", "take the metric out, or give the model a keypoint task"),
        ):
            found = 0 if values is None else int(values.shape[-2])
            if found <= max(self._places):
                raise UserError(
                    f"coco_keypoint_metrics of {self._name!r}: {whose} has {found} keypoints, expected at least "
                    f"{max(self._places) + 1} as the label map says; {remedy}"
                )
        for i, record in enumerate(image_records(batch, detections)):
            self._records.append(self._record(batch, detections, i, record))

    def _record(
        self, batch: fields.Batch, detections: fields.Detections, i: int, record: ImageRecord
    ) -> KeypointRecord:
        mine, found = record.categories == self._id, np.flatnonzero(record.detected_categories == self._id)
        rows = record.rows[mine]
        size = np.asarray(batch.original_shapes)[i]
        points = np.asarray(batch.groundtruth.keypoints[i])[rows][:, self._places]
        labelled = np.isfinite(points).all(axis=-1)
        if batch.groundtruth.keypoint_visibilities is not None:
            labelled &= np.asarray(batch.groundtruth.keypoint_visibilities[i])[rows][:, self._places].astype(bool)
        detected = np.asarray(detections.keypoints[i])[found][:, self._places]
        return KeypointRecord(
            boxes=record.boxes[mine],
            keypoints=_pixels(points, labelled, size),
            is_crowd=record.is_crowd[mine],
            area=record.area[mine],
            detected_keypoints=_pixels(detected, np.isfinite(detected).all(axis=-1), size),
            scores=record.scores[found],
        )

    def result(self) -> dict[str, float]:
        """All metrics over the images seen since the last `reset`."""
        precision, recall = precision_and_recall(self._records, self._sigmas)
        return {self._full(s.name): average(s, precision, recall, slice(None)) for s in SUMMARIES}


def _pixels(points: np.ndarray, labelled: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Normalised `[n, K, 2]` (y, x) -> COCO's `[n, K, 3]` (x, y, visibility)."""
    xy = points[..., ::-1].astype(np.float64) * np.asarray(size[:2])[::-1]
    return np.concatenate([np.where(labelled[..., None], xy, 0.0), 2.0 * labelled[..., None]], axis=-1)


def precision_and_recall(records: Sequence[KeypointRecord], sigmas: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """COCO's tables: precision `[10 similarities, 101 recalls, 1, 3 sizes, 1]` and recall `[10, 1, 3, 1]`."""
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for i, record in enumerate(records, 1):
        for box, points, crowd, area in zip(
            xywh(record.boxes), record.keypoints, record.is_crowd, record.area, strict=True
        ):
            entry = {"id": len(truth) + 1, "image_id": i, "category_id": 1, "bbox": box.tolist(), "area": float(area)}
            labelled = int((points[:, 2] > 0).sum())
            truth.append(
                entry | {"iscrowd": int(crowd), "keypoints": points.ravel().tolist(), "num_keypoints": labelled}
            )
        for points, score in zip(record.detected_keypoints, record.scores, strict=True):
            found.append({"image_id": i, "category_id": 1, "keypoints": points.ravel().tolist(), "score": float(score)})
    names = [str(i) for i in range(len(sigmas))]
    dataset = hotcoco.COCO(
        {
            "images": [{"id": i + 1} for i in range(max(1, len(records)))],
            "categories": [{"id": 1, "name": "1", "keypoints": names}],
            "annotations": truth,
        }
    )
    table = hotcoco.COCOeval(dataset, dataset.load_res(found), "keypoints")
    table.params.kpt_oks_sigmas = list(sigmas)
    table.evaluate()
    table.accumulate()
    return np.asarray(table.eval["precision"]), np.asarray(table.eval["recall"])
