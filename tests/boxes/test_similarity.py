from __future__ import annotations

import numpy as np

from od_finetune.boxes import similarity

BOXES = np.array([[[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 1.0]]], np.float32)
ANCHORS = np.array([[0.0, 0.0, 1.0, 2.0], [3.0, 3.0, 4.0, 4.0], [0.0, 0.0, 2.0, 2.0]], np.float32)


def test_iou_and_ioa():
    np.testing.assert_allclose(similarity.iou_similarity(BOXES, ANCHORS), [[[0.5, 0, 1], [0.5, 0, 0.25]]])
    np.testing.assert_allclose(similarity.ioa_similarity(BOXES, ANCHORS), [[[1, 0, 1], [0.5, 0, 0.25]]])


def test_negative_squared_distance():
    np.testing.assert_allclose(similarity.neg_sq_dist_similarity(BOXES, ANCHORS), [[[-1, -26, 0], [-1, -36, -2]]])


def test_thresholded_iou_gives_the_boxes_score():
    scores = np.array([[0.7, 0.4]], np.float32)
    compare = similarity.ThresholdedIouSimilarity(0.5)
    np.testing.assert_allclose(compare(BOXES, ANCHORS, scores), [[[0, 0, 0.7], [0, 0, 0]]])
    np.testing.assert_allclose(similarity.ThresholdedIouSimilarity(0.2)(BOXES, ANCHORS), [[[1, 0, 1], [1, 0, 1]]])
