"""Resizers: sizes, true shapes, padding, interpolation."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.models import image_resizers as resizers

IMAGE = np.random.RandomState(0).randint(0, 256, (12, 20, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("resizer", "shape", "true_shape"),
    [
        (resizers.FixedShape(8, 6), (8, 6, 3), (8, 6, 3)),
        (resizers.FixedShape(8, 6, grayscale=True), (8, 6, 1), (8, 6, 1)),
        (resizers.KeepAspectRatio(24, 100), (24, 40, 3), (24, 40, 3)),
        (resizers.KeepAspectRatio(24, 30), (18, 30, 3), (18, 30, 3)),
        (resizers.KeepAspectRatio(24, 30, pad_to_max=True), (30, 30, 3), (18, 30, 3)),
        (resizers.KeepAspectRatio(24, 30, pad_to_max=True, grayscale=True), (30, 30, 1), (18, 30, 1)),
        (resizers.Identity(), (12, 20, 3), (12, 20, 3)),
        (resizers.ConditionalShape(True, 10), (6, 10, 3), (6, 10, 3)),
        (resizers.ConditionalShape(True, 30), (12, 20, 3), (12, 20, 3)),
        (resizers.ConditionalShape(False, 24), (24, 40, 3), (24, 40, 3)),
        (resizers.ConditionalShape(False, 10), (12, 20, 3), (12, 20, 3)),
        (resizers.PadToMultiple(16), (16, 32, 3), (12, 20, 3)),
    ],
)
def test_sizes(resizer, shape, true_shape):
    resized, true = resizer(tf.constant(IMAGE))
    assert resized.dtype == tf.float32 and resized.shape == shape
    assert tuple(true.numpy()) == true_shape
    assert resizer.channels == shape[2]
    assert resizer.static_size in ((None, None), shape[:2])
    outside = np.ones(shape, bool)
    outside[: true_shape[0], : true_shape[1]] = False
    assert not resized.numpy()[outside].any()
    spec = tf.TensorSpec([2, None, None, 3], tf.uint8)
    traced = tf.function(lambda images: resizer(images), input_signature=[spec])
    batch, batch_true = traced(np.stack([IMAGE, IMAGE]))
    np.testing.assert_array_equal(batch[1], resized)
    np.testing.assert_array_equal(batch_true, true)


@pytest.mark.parametrize("method", sorted(resizers.METHODS))
def test_methods_halve_a_constant_image(method):
    resized, _ = resizers.FixedShape(6, 10, method)(np.full((12, 20, 3), 7, np.uint8))
    np.testing.assert_allclose(resized, 7.0, atol=1e-4)


def test_bilinear_samples_at_corners_as_in_tf1():
    column = tf.reshape(tf.constant([0.0, 10.0]), [2, 1, 1])
    resized, _ = resizers.FixedShape(4, 1)(column)
    np.testing.assert_allclose(resized[:, 0, 0], [0.0, 5.0, 10.0, 10.0])


def test_padding_has_its_own_value_in_each_channel():
    resizer = resizers.KeepAspectRatio(12, 20, pad_to_max=True, pad_value=(1.0, 2.0, 3.0))
    resized, _ = resizer(tf.constant(IMAGE))
    np.testing.assert_array_equal(resized[:12], IMAGE.astype(np.float32))
    np.testing.assert_array_equal(resized[12:], np.broadcast_to([1.0, 2.0, 3.0], (8, 20, 3)))


@pytest.mark.parametrize(
    ("resizer", "height", "width"),
    [(resizers.Identity(), 3, 5), (resizers.PadToMultiple(4, pad_value=(9.0,) * 3), 4, 8)],
)
def test_only_what_a_batch_is_filled_up_with_is_zeroed(resizer, height, width):
    _, true_shape = resizer(tf.ones([3, 5, 3]))
    larger = tf.constant([8, 8, 3])
    seen = resizers.zero_beyond(resizer, tf.ones([2, 8, 8, 3]), tf.stack([true_shape, larger])).numpy()
    assert seen[0, :height, :width].all() and seen[0].sum() == 3 * height * width
    assert seen[1].all()
