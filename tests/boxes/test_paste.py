from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.boxes.paste import paste, resize_mask

BOXES = [
    [0.2, 0.3, 0.7, 0.9],
    [0.0, 0.0, 1.0, 1.0],
    [-0.3, 0.5, 0.4, 1.6],  # beyond the image
    [0.51, 0.51, 0.52, 0.52],  # between two pixels
    [1.2, 0.2, 1.5, 0.4],  # outside
]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("shape", [(7, 5), (28, 28)])
def test_is_the_inverse_of_crop_and_resize(box: list[float], shape: tuple[int, int]) -> None:
    """TensorFlow's op crops the mask to the image, the image's corners given relative to the box."""
    mask = np.random.default_rng(0).random(shape).astype(np.float32)
    size = (23, 31)
    low, high = np.array(box[:2]), np.array(box[2:])
    corners = np.concatenate([(0 - low) / (high - low), (1 - low) / (high - low)])
    values = tf.image.crop_and_resize(mask[None, ..., None], corners[None].astype(np.float32), [0], size)[0, ..., 0]
    expected = values.numpy() > 0.5
    pasted = paste(mask, np.array(box), size)
    assert pasted.dtype == np.uint8 and pasted.flags.f_contiguous
    near = np.abs(values.numpy() - 0.5) < 1e-4  # rounding decides
    np.testing.assert_array_equal(pasted.astype(bool)[~near], expected[~near])


@pytest.mark.parametrize("box", [[0.5, 0.2, 0.5, 0.4], [0.5, 0.4, 0.9, 0.2], [0.1, 0.1, 0.2, float("nan")]])
def test_a_box_without_area_covers_nothing(box: list[float]) -> None:
    assert not paste(np.ones((3, 3)), np.array(box), (9, 9)).any()


@pytest.mark.parametrize("shape", [(14, 14), (2, 1), (1, 1)])
def test_whole_box_is_covered_by_a_mask_of_ones(shape: tuple[int, int]) -> None:
    pasted = paste(np.ones(shape), np.array([0.2, 0.4, 0.6, 0.8]), (11, 11))
    rows, columns = np.nonzero(pasted)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 6, 4, 8)


def test_resize_keeps_the_ends_and_inverts_enlarging() -> None:
    mask = np.random.default_rng(1).integers(0, 2, (5, 8)).astype(np.uint8)
    large = resize_mask(mask, (13, 22))
    assert large.shape == (13, 22) and large.flags.f_contiguous
    np.testing.assert_array_equal(resize_mask(large, (5, 8)), mask)
    np.testing.assert_array_equal(large[[0, 0, -1, -1], [0, -1, 0, -1]], mask[[0, 0, -1, -1], [0, -1, 0, -1]])
    np.testing.assert_array_equal(resize_mask(mask, (5, 8)), mask)
    assert resize_mask(mask, (1, 1)).shape == (1, 1)
