from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from od_finetune import fields
from od_finetune.boxes import center_tracking, losses
from od_finetune.boxes.center_grid import Grid
from od_finetune.boxes.center_tracking import TemporalOffsets, Tracks

GRID = Grid(tf.constant([[16, 16, 3], [8, 16, 3]]), 4, 4, 4)
BOXES = [[[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0, 0, 0, 0]], [[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]]
CELLS = [(0, 1, 1), (0, 3, 3), (1, 1, 2)]


def truth(**more):
    weights = tf.constant([[1, 0.5, 0], [1, 0, 0]], tf.float32)
    false = tf.zeros([2, 3], tf.bool)
    return fields.Groundtruth(tf.constant(BOXES, tf.float32), tf.ones([2, 3, 1]), weights, tf.constant([2, 1]),
                              false, false, false, weights, **more)


def test_track_loss_by_hand():
    maps = np.full([2, 4, 4, 2], 7.0, np.float32)
    for place, embedding in zip(CELLS, [[1, 0], [0, 0], [0, 2]], strict=True):
        maps[place] = embedding
    classifier = tf.constant([[1.0, 0, 0], [0, 1, 0]])

    def classify(embeddings):
        return embeddings @ classifier

    task = Tracks(losses.SoftmaxClassificationLoss(), 3, weight=2.0)
    ids = tf.constant([[0, 2, 1], [1, 0, 0]])
    loss = task.losses([maps, maps], classify, truth(track_ids=ids), GRID)
    right = [np.log(np.e + 2) - 1, np.log(3), np.log(np.e**2 + 2) - 2]
    assert loss.numpy() == pytest.approx(2 * (right[0] + 0.5 * right[1] + right[2]) / 3, rel=1e-5)
    sigmoid = task._replace(loss=losses.SigmoidClassificationLoss())
    on_no_track = sigmoid.losses([maps], classify, truth(track_ids=tf.constant([[0, -1, 1], [3, 0, 0]])), GRID)
    assert on_no_track.numpy() == pytest.approx(2 * (np.log1p(np.exp(-1)) + 2 * np.log(2)) / 3, rel=1e-5)


def test_embeddings_have_length_1():
    maps = np.zeros([1, 2, 2, 2], np.float32)
    maps[0, 1, 0] = [3, 4]
    found = center_tracking.embeddings_at(maps, tf.constant([[[1, 0], [0, 0]]]))
    np.testing.assert_allclose(found, [[[0.6, 0.8], [0, 0]]], rtol=1e-6)


def test_temporal_offset_loss_by_hand():
    maps = np.zeros([2, 4, 4, 2], np.float32)
    maps[CELLS[1]] = [0.5, -1]
    offsets = tf.constant([[[0.1, 0.2], [0.5, 1], [9, 9]], [[3, 3], [9, 9], [9, 9]]])
    flags = tf.constant([[1.0, 1, 1], [0, 0, 0]])
    loss = TemporalOffsets(losses.L1LocalizationLoss(), weight=3.0).losses(
        [maps, maps], truth(temporal_offsets=offsets, track_match_flags=flags), GRID)
    assert loss.numpy() == pytest.approx(3 * (0.3 + 0.5 * 2) / 3, rel=1e-5)
