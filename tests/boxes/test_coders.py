from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from od_finetune.boxes.coders import FasterRcnnCoder, KeypointCoder, MeanStddevCoder, SquareCoder

ANCHOR = np.array([[0.1, 0.1, 0.3, 0.5]], np.float32)
BOX = np.array([[0.2, 0.3, 0.6, 0.5]], np.float32)
SIDE = st.floats(0.0625, 0.875, width=32)
BOXES = st.tuples(SIDE, SIDE, SIDE, SIDE).map(
    lambda v: np.array([[v[0], v[1], v[0] + v[2], v[1] + v[3]]], np.float32))


def test_faster_rcnn_code_by_hand():
    # Anchor: centre (0.2, 0.3), size 0.2 x 0.4. Box: centre (0.4, 0.4), size 0.4 x 0.2.
    expected = [[10 * 1.0, 10 * 0.25, 5 * np.log(2.0), 5 * np.log(0.5)]]
    np.testing.assert_allclose(FasterRcnnCoder().encode(BOX, ANCHOR), expected, rtol=1e-5)


def test_mean_stddev_code_by_hand():
    np.testing.assert_allclose(MeanStddevCoder(0.1).encode(BOX, ANCHOR), [[1.0, 2.0, 3.0, 0.0]], atol=1e-5)


def test_square_code_by_hand():
    side = np.sqrt(0.08)
    np.testing.assert_allclose(SquareCoder().encode(BOX, ANCHOR), [[10 * 0.2 / side, 10 * 0.1 / side, 0.0]], atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(BOXES, BOXES)
@pytest.mark.parametrize("coder", [FasterRcnnCoder(), MeanStddevCoder(), KeypointCoder(2), FasterRcnnCoder(1, 2, 3, 4)])
def test_decode_undoes_encode(coder, box, anchor):
    codes = coder.encode(box, anchor)
    assert codes.shape == (1, coder.code_size)
    np.testing.assert_allclose(coder.decode(codes, anchor), box, atol=1e-4)


def test_square_coder_returns_a_square_of_the_same_area_and_centre():
    decoded = SquareCoder().decode(SquareCoder().encode(BOX, ANCHOR), ANCHOR).numpy()[0]
    assert (decoded[0] + decoded[2], decoded[1] + decoded[3]) == pytest.approx((0.8, 0.8))
    assert decoded[2] - decoded[0] == pytest.approx(np.sqrt(0.08)) == pytest.approx(decoded[3] - decoded[1])


def test_keypoints_round_trip_and_are_nan_when_unknown():
    coder = KeypointCoder(2)
    keypoints = np.array([[[0.2, 0.3], [0.5, 0.1]]], np.float32)
    codes = coder.encode(BOX, ANCHOR, keypoints)
    np.testing.assert_allclose(codes[0, 4:], [0.0, 0.0, 10 * 0.3 / 0.2, 10 * -0.2 / 0.4], atol=1e-4)
    np.testing.assert_allclose(coder.decode_keypoints(codes, ANCHOR), keypoints, atol=1e-6)
    assert np.isnan(coder.encode(BOX, ANCHOR)[:, 4:]).all()


def test_a_batch_against_one_set_of_anchors():
    boxes = np.tile(BOX, (3, 1, 1))
    np.testing.assert_allclose(FasterRcnnCoder().encode(boxes, ANCHOR)[2], FasterRcnnCoder().encode(BOX, ANCHOR))


def test_a_degenerate_box_has_a_finite_code():
    assert np.isfinite(FasterRcnnCoder().encode(np.zeros((1, 4), np.float32), ANCHOR)).all()
