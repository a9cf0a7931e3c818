"""COCO metrics of masks and keypoints: hand-made cases, and equality with pycocotools."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

from od_finetune.errors import UserError
from od_finetune.metrics.coco_keypoints import COCO_SIGMAS, CocoKeypointMetrics
from od_finetune.metrics.coco_masks import CocoMaskMetrics, mask_records
from od_finetune.metrics.coco_tables import SUMMARIES

NAMES = {1: "cat", 2: "dog", 3: "owl"}
MAP = "DetectionMasks_Precision/mAP"
SIZE = 8  # of masks within boxes
FRAME = (40, 60)  # the network's input, of which the lower right is padding
TRUE = (40, 50)


def _with_masks(batch_and_detections, seed=0):
    """Ellipses in the boxes, those found with some noise at the edge."""
    batch, detections = batch_and_detections
    rng = np.random.default_rng(seed)
    count, n = batch.groundtruth.boxes.shape[:2]
    ys, xs = np.mgrid[: TRUE[0], : TRUE[1]]
    places = np.stack([ys / (TRUE[0] - 1), xs / (TRUE[1] - 1)], -1)
    masks = np.ones((count, n, *FRAME), np.uint8)  # padding holds junk
    for i in range(count):
        for j in range(int(batch.groundtruth.num_boxes[i])):
            low, high = batch.groundtruth.boxes[i, j, :2], batch.groundtruth.boxes[i, j, 2:]
            distance = (((places - (low + high) / 2) / ((high - low) / 2)) ** 2).sum(-1)
            masks[i, j, : TRUE[0], : TRUE[1]] = distance < 1
    ys, xs = np.mgrid[:SIZE, :SIZE] / (SIZE - 1) * 2 - 1
    found = 1.2 - ys**2 - xs**2 + rng.normal(0, 0.3, (*detections.boxes.shape[:2], SIZE, SIZE))
    batch = batch._replace(
        groundtruth=batch.groundtruth._replace(masks=masks),
        images=np.zeros((count, *FRAME, 3), np.float32),
        true_shapes=np.tile(np.int32([*TRUE, 3]), (count, 1)),
    )
    return batch, detections._replace(masks=found.astype(np.float32))


def _reference(kind, truth, found, images, sigmas=None):
    """pycocotools' twelve (or ten) numbers."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": images,
            "categories": [{"id": i} for i in sorted({1} if sigmas else NAMES)],
            "annotations": truth,
        }
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(found), kind)
        if sigmas:
            run.params.kpt_oks_sigmas = np.array(sigmas)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats


def _xywh(box):
    return [box[1], box[0], box[3] - box[1], box[2] - box[0]]


def test_masks_equal_pycocotools(pictures_of, batch_of):
    batch, detections = _with_masks(batch_of(pictures_of(40, 5)))
    metric = CocoMaskMetrics(NAMES, per_category=True)
    metric.update(batch, detections)
    truth, found, images = [], [], []
    for image, (record, size, masks, detected) in enumerate(mask_records(batch, detections), 1):
        images.append({"id": image, "height": size[0], "width": size[1]})
        for k, mask in enumerate(masks):
            truth.append({"id": len(truth) + 1, "image_id": image, "category_id": int(record.categories[k]),
                          "segmentation": mask, "bbox": _xywh(record.boxes[k]), "area": record.area[k],
                          "iscrowd": int(record.is_crowd[k])})  # fmt: skip
        for k, mask in enumerate(detected):
            found.append({"image_id": image, "category_id": int(record.detected_categories[k]),
                          "segmentation": mask, "score": record.scores[k]})  # fmt: skip
    values = metric.result()
    ours = [values["DetectionMasks_" + s.name] for s in SUMMARIES]
    np.testing.assert_allclose(ours, _reference("segm", truth, found, images), atol=1e-12)
    assert 0.02 < values[MAP] < 0.9
    assert list(values)[:2] == [CocoMaskMetrics.primary, "DetectionMasks_Precision/mAP@.50IOU"]
    assert "DetectionMasks_PerformanceByCategory/mAP/owl" in values


def test_masks_tell_what_boxes_do_not(picture, batch_of):
    """Left half and right half of one box: IoU of the boxes 1, of the masks 0 and 1."""
    scene = picture([[0, 0, 50, 50]], [0], [[0, 0, 50, 50]], [0], [0.9], shape=(100, 100))
    batch, detections = batch_of([scene])
    truth = np.zeros((1, 3, 100, 100), np.uint8)
    truth[0, 0, :50, :25] = 1
    batch = batch._replace(
        groundtruth=batch.groundtruth._replace(masks=truth), true_shapes=np.array([[100, 100, 3]], np.int32)
    )
    for left, expected in ((1.0, 1.0), (0.0, 0.0)):
        mask = np.full((1, 3, 2, 20), 1 - left, np.float32)
        mask[..., :10] = left
        metric = CocoMaskMetrics(NAMES)
        metric.update(batch, detections._replace(masks=mask))
        assert metric.result()[MAP + "@.75IOU"] == pytest.approx(expected)
        # 50 x 25 pixels are medium, since the record gives no area; the box would be larger
        assert metric.result()[MAP + " (medium)"] > -1 and metric.result()[MAP + " (small)"] == -1


def test_nothing_to_measure_and_what_is_missing(picture, batch_of):
    assert set(CocoMaskMetrics(NAMES).result().values()) == {-1.0}
    batch, detections = batch_of([picture([[0, 0, 50, 50]], [0])])
    with pytest.raises(UserError, match="set load_instance_masks of eval_input_reader"):
        CocoMaskMetrics(NAMES).update(batch, detections)
    batch, _ = _with_masks((batch, detections))
    with pytest.raises(UserError, match="the model predicts no masks"):
        CocoMaskMetrics(NAMES).update(batch, detections)


KEYPOINTS = {"nose": 3, "tail": 0}  # place 1 and 2 belong to other classes
SIGMAS = {"nose": 0.2}  # and 0.05 for the tail


def _with_keypoints(batch_and_detections, seed=0):
    batch, detections = batch_and_detections
    rng = np.random.default_rng(seed)
    truth = batch.groundtruth
    corners = truth.boxes.reshape(*truth.boxes.shape[:2], 2, 2)
    points = np.stack([corners[..., 0, :], corners[..., 0, :], corners[..., 1, :], corners[..., 1, :]], -2)
    labelled = rng.random(points.shape[:3]) < 0.8
    points = np.where(labelled[..., None], points, np.nan).astype(np.float32)
    corners = detections.boxes.reshape(*detections.boxes.shape[:2], 2, 2)
    found = np.stack([corners[..., 0, :], corners[..., 0, :], corners[..., 1, :], corners[..., 1, :]], -2)
    found = (found + rng.normal(0, 0.002, found.shape)).astype(np.float32)
    truth = truth._replace(keypoints=points, keypoint_visibilities=labelled)
    return batch._replace(groundtruth=truth), detections._replace(keypoints=found)


def test_keypoints_equal_pycocotools(pictures_of, batch_of):
    batch, detections = _with_keypoints(batch_of(pictures_of(60, 8)))
    metric = CocoKeypointMetrics(2, "dog", KEYPOINTS, SIGMAS)
    metric.update(batch, detections)
    truth, found = [], []
    for i, shape in enumerate(batch.original_shapes):
        scale = np.array(shape[::-1], float)
        for k in range(int(batch.groundtruth.num_boxes[i])):
            if not batch.groundtruth.classes[i, k, 1]:
                continue
            box = batch.groundtruth.boxes[i, k].astype(float) * np.tile(shape, 2)
            points = []
            for place in KEYPOINTS.values():
                y, x = batch.groundtruth.keypoints[i, k, place].astype(float)
                points += [0.0, 0.0, 0] if np.isnan(x) else [*(np.array([x, y]) * scale), 2]
            area = float(batch.groundtruth.area[i, k]) or np.prod(box[2:] - box[:2])
            truth.append({"id": len(truth) + 1, "image_id": i, "category_id": 1, "keypoints": points, "area": area,
                          "bbox": _xywh(box), "num_keypoints": sum(v > 0 for v in points[2::3]),
                          "iscrowd": int(batch.groundtruth.is_crowd[i, k])})  # fmt: skip
        for k in range(int(detections.num_detections[i])):
            if detections.classes[i, k] == 1:
                places = detections.keypoints[i, k, list(KEYPOINTS.values())].astype(float)[:, ::-1] * scale
                points = np.concatenate([places, [[2], [2]]], 1).ravel().tolist()
                found.append({"image_id": i, "category_id": 1, "keypoints": points,
                              "score": float(detections.scores[i, k])})  # fmt: skip
    images = [{"id": i} for i in range(len(batch.original_shapes))]
    values = metric.result()
    np.testing.assert_allclose(
        list(values.values()), _reference("keypoints", truth, found, images, [0.2, 0.05]), atol=1e-12
    )
    assert 0.02 < values[metric.primary] < 0.9


def test_keypoint_names_are_those_of_the_od_api():
    values = CocoKeypointMetrics(1, "person", {name: i for i, name in enumerate(COCO_SIGMAS)}, COCO_SIGMAS).result()
    assert list(values) == [
        f"Keypoints_{name} ByCategory/person"
        for name in (
            "Precision/mAP", "Precision/mAP@.50IOU", "Precision/mAP@.75IOU", "Precision/mAP (medium)",
            "Precision/mAP (large)", "Recall/AR@1", "Recall/AR@10", "Recall/AR@100", "Recall/AR@100 (medium)",
            "Recall/AR@100 (large)",
        )
    ]  # fmt: skip
    assert set(values.values()) == {-1.0}


def test_keypoints_of_another_class_or_order_do_not_count(picture, batch_of):
    box = [[10, 10, 90, 90]]
    batch, detections = batch_of([picture(box, [1], box, [1], [0.9])])
    points = np.full((1, 3, 4, 2), np.nan, np.float32)
    points[0, 0, 3], points[0, 0, 0] = [0.2, 0.3], [0.6, 0.4]
    truth = batch.groundtruth._replace(keypoints=points, keypoint_visibilities=np.isfinite(points[..., 0]))
    for swap, label, expected in ((False, 2, 1.0), (True, 2, 0.0), (False, 1, -1.0)):
        found = np.nan_to_num(points[..., ::-1, :] if swap else points)
        metric = CocoKeypointMetrics(label, NAMES[label], KEYPOINTS, SIGMAS)
        metric.update(batch._replace(groundtruth=truth), detections._replace(keypoints=found))
        assert metric.result()[metric.primary] == pytest.approx(expected)


def test_missing_or_too_few_keypoints(picture, batch_of):
    batch, detections = _with_keypoints(batch_of([picture([[0, 0, 50, 50]], [0])]))
    metric = CocoKeypointMetrics(1, "cat", {"nose": 4}, {})
    with pytest.raises(UserError, match="'cat': the records that are read has 4 keypoints, expected at least 5"):
        metric.update(batch, detections)
    metric = CocoKeypointMetrics(1, "cat", KEYPOINTS, {})
    with pytest.raises(UserError, match="set num_keypoints of eval_input_reader"):
        metric.update(batch._replace(groundtruth=batch.groundtruth._replace(keypoints=None)), detections)
    with pytest.raises(UserError, match="the model has 0 keypoints"):
        metric.update(batch, detections._replace(keypoints=None))
