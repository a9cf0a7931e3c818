from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from od_finetune.boxes import box_ops

UNIT = st.floats(0.0, 1.0, width=32, allow_subnormal=False)
BOX = st.tuples(UNIT, UNIT, UNIT, UNIT).map(
    lambda b: [min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3])])
BOXES = st.lists(BOX, min_size=1, max_size=4).map(lambda boxes: np.array(boxes, np.float32))
fast = settings(max_examples=25, deadline=None)

A = np.array([[0.0, 0.0, 2.0, 2.0]], np.float32)
B = np.array([[1.0, 1.0, 2.0, 3.0], [4.0, 4.0, 5.0, 5.0], [0.0, 0.0, 2.0, 2.0]], np.float32)


def test_pairwise_overlaps_by_hand():
    np.testing.assert_allclose(box_ops.pairwise_intersection(A, B), [[1.0, 0.0, 4.0]])
    np.testing.assert_allclose(box_ops.pairwise_iou(A, B), [[0.2, 0.0, 1.0]], rtol=1e-6)
    np.testing.assert_allclose(box_ops.pairwise_ioa(A, B), [[0.5, 0.0, 1.0]])


def test_giou_of_boxes_apart_is_negative():
    # Hull 25, union 4 + 1, no overlap.
    assert box_ops.giou(A[0], B[1]).numpy() == pytest.approx(-0.8)
    assert box_ops.giou(A[0], A[0]).numpy() == pytest.approx(1.0)


def test_empty_boxes_overlap_nothing():
    empty = np.zeros((1, 4), np.float32)
    assert box_ops.pairwise_iou(empty, empty).numpy().tolist() == [[0.0]]
    assert box_ops.pairwise_ioa(A, empty).numpy().tolist() == [[0.0]]


@fast
@given(BOXES, BOXES)
def test_iou_is_symmetric_and_bounded(a, b):
    iou = box_ops.pairwise_iou(a, b).numpy()
    np.testing.assert_allclose(iou, box_ops.pairwise_iou(b, a).numpy().T, atol=1e-6)
    assert (iou >= 0).all() and (iou <= 1 + 1e-5).all()


@fast
@given(BOXES)
def test_centers_round_trip(boxes):
    np.testing.assert_allclose(box_ops.from_center(*box_ops.to_center(boxes)), boxes, atol=1e-6)


@fast
@given(BOXES, BOX.filter(lambda w: w[2] - w[0] > 0.01 and w[3] - w[1] > 0.01))
def test_clipped_boxes_lie_inside_the_window(boxes, window):
    window = np.array(window, np.float32)
    clipped = box_ops.clip_to_window(boxes * 3 - 1, window)
    relative = box_ops.change_coordinate_frame(clipped, window).numpy()
    assert (relative >= -1e-4).all() and (relative <= 1 + 1e-4).all()


def test_a_window_per_image():
    boxes = np.tile(np.array([0.0, 0.0, 1.0, 1.0], np.float32), (2, 1, 1))
    windows = np.array([[0, 0, 0.5, 1], [0, 0, 1, 0.25]], np.float32)
    np.testing.assert_allclose(box_ops.clip_to_window(boxes, windows)[:, 0], windows)
    half = np.tile(np.array([0.0, 0.0, 0.25, 0.25], np.float32), (2, 1, 1))
    np.testing.assert_allclose(box_ops.change_coordinate_frame(half, windows)[:, 0],
                               [[0, 0, 0.5, 0.25], [0, 0, 0.25, 1]])


def test_normalize_takes_height_then_width():
    np.testing.assert_allclose(box_ops.normalize(np.array([10.0, 20, 30, 40], np.float32), 100, 200),
                               [0.1, 0.1, 0.3, 0.2])
