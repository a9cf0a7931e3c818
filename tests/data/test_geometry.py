"""Properties of the deterministic geometry: image and boxes move together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from od_finetune.data import geometry
from od_finetune.data import sample as s
from od_finetune.data.sample import Sample

sides = st.integers(2, 12)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """A black image with one white rectangle per channel of whole pixels; these as boxes, masks, and their centres."""
    height, width = draw(sides), draw(sides)
    image, boxes = np.zeros([height, width, 3], np.float32), []
    for channel in range(3):
        top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        bottom, right = draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))
        image[top:bottom, left:right, channel] = 255.0
        boxes.append([top / height, left / width, bottom / height, right / width])
    corners = np.array(boxes, np.float32)
    points = np.stack([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, :2]], axis=1)
    dense = np.concatenate([points, np.full([3, 2, 2], 0.5)], axis=-1)
    dense[2, 1] = 0.0  # padding
    objects = {
        s.CLASSES: tf.range(1, 4),
        s.MASKS: tf.constant((image > 127).transpose(2, 0, 1).astype(np.uint8)),
        s.KEYPOINTS: tf.constant(points),
        s.KEYPOINT_VISIBILITIES: tf.ones([3, 2], tf.bool),
        s.DENSE_POSE_NUM_POINTS: tf.constant([2, 2, 1]),
        s.DENSE_POSE_PART_IDS: tf.constant([[4, 5], [4, 5], [4, 0]]),
        s.DENSE_POSE_SURFACE_COORDS: tf.constant(dense, tf.float32),
    }
    return Sample(tf.constant(image), tf.constant(corners), objects)


def boxes_in_image(sample: Sample) -> dict[int, np.ndarray]:
    """Where the white rectangles are, by class."""
    found = {}
    image = sample.image.numpy()
    for channel in range(3):
        rows, columns = np.nonzero(image[..., channel] > 127)
        if len(rows):
            corners = np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1], np.float32)
            found[channel + 1] = corners / np.tile(image.shape[:2], 2)
    return found


def assert_boxes_match_image(sample: Sample) -> None:
    expected = boxes_in_image(sample)
    actual = dict(zip(sample.objects[s.CLASSES].numpy().tolist(), sample.boxes.numpy(), strict=True))
    assert actual.keys() == expected.keys()
    for label, box in actual.items():
        np.testing.assert_allclose(box, expected[label], atol=1e-5)
    white = sample.image.numpy().transpose(2, 0, 1) > 127
    channels = sample.objects[s.CLASSES].numpy() - 1
    np.testing.assert_array_equal(sample.objects[s.MASKS], white[channels])


def assert_points(before: Sample, after: Sample, moved: Callable[[np.ndarray], np.ndarray]) -> None:
    """The points of the boxes that are left went where `moved` says or, outside of the image, away."""
    rows = after.objects[s.CLASSES].numpy() - 1
    expected = moved(before.objects[s.KEYPOINTS].numpy()[rows])
    edge = np.minimum(np.abs(expected), np.abs(expected - 1)).min(axis=-1) < 1e-4  # rounding decides
    inside = ((expected >= 0) & (expected <= 1)).all(axis=-1)
    points, labelled = after.objects[s.KEYPOINTS].numpy(), after.objects[s.KEYPOINT_VISIBILITIES].numpy()
    np.testing.assert_array_equal(labelled | edge, inside | edge)
    np.testing.assert_array_equal(np.isfinite(points).all(axis=-1), labelled)
    np.testing.assert_allclose(points[labelled], expected[labelled], atol=1e-5)
    counts = after.objects[s.DENSE_POSE_NUM_POINTS].numpy()
    for row, number in enumerate(rows):
        real = before.objects[s.DENSE_POSE_NUM_POINTS].numpy()[number]
        kept = points[row, :real][labelled[row, :real]]
        assert counts[row] == len(kept)
        coords = after.objects[s.DENSE_POSE_SURFACE_COORDS].numpy()[row]
        np.testing.assert_allclose(coords[: len(kept), :2], kept, atol=1e-5)
        np.testing.assert_array_equal(coords[len(kept) :, 2:] * (counts[row] < real), 0)


@given(samples())
@settings(max_examples=25, deadline=None)
def test_flips_and_turns(sample: Sample) -> None:
    for function, order, move in (
        (geometry.flip_horizontally, 2, lambda yx: yx * [1, -1] + [0, 1]),
        (geometry.flip_vertically, 2, lambda yx: yx * [-1, 1] + [1, 0]),
        (geometry.rotate90, 4, lambda yx: yx[..., ::-1] * [-1, 1] + [1, 0]),
    ):
        moved = sample
        for _ in range(order):
            before, moved = moved, function(moved)
            assert_boxes_match_image(moved)
            assert_points(before, moved, move)
        np.testing.assert_array_equal(moved.image, sample.image)
        np.testing.assert_allclose(moved.boxes, sample.boxes, atol=1e-6)


@given(samples(), st.data())
@settings(max_examples=40, deadline=None)
def test_crop(sample: Sample, data: st.DataObject) -> None:
    height, width = sample.image.shape[:2]
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    size = [data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))]
    cropped = geometry.crop(sample, tf.constant([top, left]), tf.constant(size))
    assert cropped.image.shape[:2] == size
    assert_boxes_match_image(cropped)
    assert_points(sample, cropped, lambda yx: (yx * [height, width] - [top, left]) / size)


@given(samples(), st.data())
@settings(max_examples=40, deadline=None)
def test_pad(sample: Sample, data: st.DataObject) -> None:
    height, width = sample.image.shape[:2]
    offset = [data.draw(st.integers(0, 5)), data.draw(st.integers(0, 5))]
    size = [height + offset[0] + data.draw(st.integers(0, 5)), width + offset[1] + data.draw(st.integers(0, 5))]
    padded = geometry.pad(sample, tf.constant(offset), tf.constant(size), tf.constant([9.0, 8.0, 7.0]))
    assert padded.image.shape[:2] == size
    assert_boxes_match_image(padded)
    assert_points(sample, padded, lambda yx: (yx * [height, width] + offset) / size)
    if offset[0]:
        np.testing.assert_allclose(padded.image[0, 0], [9.0, 8.0, 7.0])


def _one_box(box: list[float]) -> Sample:
    return Sample(tf.zeros([10, 20, 3], tf.uint8), tf.constant([box]), {s.CLASSES: tf.constant([1])})


@pytest.mark.parametrize(("threshold", "kept"), [(0.0, 1), (0.24, 1), (0.26, 0)])
def test_crop_drops_boxes_by_their_share_inside(threshold: float, kept: int) -> None:
    sample = _one_box([0.0, 0.0, 1.0, 0.4])  # the crop holds a quarter of it
    cropped = geometry.crop(sample, tf.constant([0, 6]), tf.constant([10, 14]), threshold)
    assert cropped.boxes.shape[0] == cropped.objects[s.CLASSES].shape[0] == kept


def test_box_that_only_touches_the_crop_is_dropped() -> None:
    sample = _one_box([0.0, 0.0, 1.0, 0.5])
    assert geometry.crop(sample, tf.constant([0, 10]), tf.constant([10, 10])).boxes.shape[0] == 0


def test_without_clipping_boxes_reach_beyond_the_crop() -> None:
    cropped = geometry.crop(_one_box([0.0, 0.0, 1.0, 0.75]), tf.constant([0, 10]), tf.constant([10, 10]), clip=False)
    np.testing.assert_allclose(cropped.boxes, [[0.0, -1.0, 1.0, 0.5]])


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "area", "nearest"])
def test_resize_keeps_boxes(method: str) -> None:
    resized = geometry.resize(_one_box([0.1, 0.2, 0.3, 0.4]), 5, 7, method)
    assert resized.image.shape == (5, 7, 3)
    assert resized.image.dtype == tf.float32
    np.testing.assert_allclose(resized.boxes, [[0.1, 0.2, 0.3, 0.4]])


def test_resize_takes_masks_along() -> None:
    masks = np.zeros([1, 10, 20], np.uint8)
    masks[0, 2:4, 10:] = 1
    sample = _one_box([0.2, 0.5, 0.4, 1.0])
    resized = geometry.resize(sample._replace(objects={s.MASKS: tf.constant(masks)}), 5, 10)
    expected = np.zeros([1, 5, 10], np.uint8)
    expected[0, 1, 5:] = 1
    np.testing.assert_array_equal(resized.objects[s.MASKS], expected)
    assert resized.objects[s.MASKS].dtype == tf.uint8


def test_masks_in_the_frame_of_a_padded_image() -> None:
    masks = np.zeros([2, 4, 8], np.uint8)
    masks[0, 1:3, 2:6] = 1
    placed = geometry.masks_like(tf.constant(masks), tf.zeros([10, 10, 3]), tf.constant([6, 10, 3]))
    assert placed.shape == (2, 10, 10)
    expected = np.zeros([10, 10], np.uint8)
    rows, columns = np.arange(6) * 4 // 6, np.arange(10) * 8 // 10
    expected[:6, :10] = masks[0][rows][:, columns]
    np.testing.assert_array_equal(placed[0], expected)
    np.testing.assert_array_equal(placed[1], 0)


def test_keypoints_change_places() -> None:
    points = tf.constant([[[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]])
    objects = {s.KEYPOINTS: points, s.KEYPOINT_VISIBILITIES: tf.constant([[True, False, True]])}
    moved = geometry.permute_keypoints(_one_box([0.0, 0.0, 1.0, 1.0])._replace(objects=objects), (0, 2, 1))
    np.testing.assert_allclose(moved.objects[s.KEYPOINTS], points.numpy()[:, [0, 2, 1]])
    assert moved.objects[s.KEYPOINT_VISIBILITIES].numpy().tolist() == [[True, True, False]]
