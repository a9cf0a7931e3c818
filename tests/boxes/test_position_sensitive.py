"""Pooling of position-sensitive maps."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from od_finetune.boxes.position_sensitive import pool


def test_each_bin_looks_at_its_own_channels():
    features = np.zeros([1, 4, 4, 4 * 2], np.float32)
    features[..., :] = np.arange(8)  # bin n: channels 2n and 2n + 1
    pooled = pool(tf.constant(features), tf.constant([[[0.0, 0.0, 1.0, 1.0]]]), (2, 2), (4, 4))
    np.testing.assert_allclose(pooled, [[np.mean([0, 2, 4, 6]), np.mean([1, 3, 5, 7])]])


def test_each_bin_looks_at_its_own_place():
    # Bin n sees 1 only where it should be, a quarter of the image each.
    features = np.zeros([1, 8, 8, 4], np.float32)
    for row in range(2):
        for column in range(2):
            features[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4, 2 * row + column] = 1.0
    boxes = tf.constant([[[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 3 / 7, 3 / 7]]])
    pooled = pool(tf.constant(features), boxes, (2, 2), (4, 4)).numpy().ravel()
    # Two points a side: the outer one is well within the bin, the inner one between the last cell and the next.
    assert pooled[0] == 0.75 * 0.75
    assert pooled[1] == 0.25  # the whole box is where the first bin alone sees something


def test_regions_of_a_batch_and_uneven_bins():
    features = np.zeros([2, 3, 3, 3 * 1 * 1], np.float32)
    features[1] = 1.0
    boxes = tf.tile(tf.constant([[[0.0, 0.0, 1.0, 1.0]]]), [2, 2, 1])
    np.testing.assert_allclose(pool(tf.constant(features), boxes, (3, 1), (6, 2)), [[0.0], [0.0], [1.0], [1.0]])
