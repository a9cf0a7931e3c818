"""Properties of the deterministic geometry: image and boxes move together."""

from __future__ import annotations

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
    """A black image with one white rectangle per channel of whole pixels, and these rectangles as boxes."""
    height, width = draw(sides), draw(sides)
    image, boxes = np.zeros([height, width, 3], np.float32), []
    for channel in range(3):
        top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        bottom, right = draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))
        image[top:bottom, left:right, channel] = 255.0
        boxes.append([top / height, left / width, bottom / height, right / width])
    return Sample(tf.constant(image), tf.constant(boxes, tf.float32), {s.CLASSES: tf.range(1, 4)})


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


@given(samples())
@settings(max_examples=25, deadline=None)
def test_flips_and_turns(sample: Sample) -> None:
    for function, order in ((geometry.flip_horizontally, 2), (geometry.flip_vertically, 2), (geometry.rotate90, 4)):
        moved = sample
        for _ in range(order):
            moved = function(moved)
            assert_boxes_match_image(moved)
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


@given(samples(), st.data())
@settings(max_examples=40, deadline=None)
def test_pad(sample: Sample, data: st.DataObject) -> None:
    height, width = sample.image.shape[:2]
    offset = [data.draw(st.integers(0, 5)), data.draw(st.integers(0, 5))]
    size = [height + offset[0] + data.draw(st.integers(0, 5)), width + offset[1] + data.draw(st.integers(0, 5))]
    padded = geometry.pad(sample, tf.constant(offset), tf.constant(size), tf.constant([9.0, 8.0, 7.0]))
    assert padded.image.shape[:2] == size
    assert_boxes_match_image(padded)
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
