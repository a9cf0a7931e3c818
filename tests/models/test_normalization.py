"""From pixel values to what a pretrained network wants."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.models.normalization import IMAGENET, IMAGENET_MEANS, SYMMETRIC


@pytest.mark.parametrize(
    ("normalize", "expected"),
    [
        (SYMMETRIC, [-1.0, 0.0, 1.0]),
        (IMAGENET_MEANS, [-123.68, 127.5 - 116.779, 255 - 103.939]),
        (IMAGENET, [-0.485 / 0.229, (0.5 - 0.456) / 0.224, (1.0 - 0.406) / 0.225]),
    ],
)
def test_values_of_red_green_and_blue(normalize, expected):
    np.testing.assert_allclose(normalize(tf.constant([[[0.0, 127.5, 255.0]]]))[0, 0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalize", [IMAGENET, IMAGENET_MEANS])
def test_grey_images_stay_as_they_are_where_channels_differ(normalize):
    grey = tf.constant([[[7], [200]]], tf.uint8)
    np.testing.assert_array_equal(normalize(grey), tf.cast(grey, tf.float32))
    assert normalize(grey).shape == (1, 2, 1)


def test_the_pixel_that_becomes_a_value():
    pixel = IMAGENET.inverse((0.0, 0.0, 0.0))
    np.testing.assert_allclose(IMAGENET(tf.constant([[pixel]]))[0, 0], [0.0] * 3, atol=1e-6)
