from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from center import masks_of, truth

from od_finetune.boxes import center_masks, losses
from od_finetune.boxes.center_grid import Grid
from od_finetune.boxes.center_masks import Masks

GRID = Grid(tf.constant([[16, 16, 3]]), 4, 4, 4)
SIGMOID = losses.SigmoidClassificationLoss()
LN2 = np.log(2)


def test_mask_targets_by_hand():
    """Two overlapping objects of one class, one of another, an object of both, padding."""
    masks = masks_of((0, 0, 8, 8), (4, 4, 12, 10), (8, 0, 16, 4), (12, 12, 16, 16), (0, 0, 16, 16))
    classes = tf.constant([[[1, 0], [1, 0], [0, 1], [1, 1], [0, 0.0]]])
    targets = center_masks.mask_targets(masks, classes, 4, 4).numpy()[0]
    np.testing.assert_array_equal(targets[..., 0], [[1, 1, 0, 0], [1, 1, 0.5, 0], [0, 1, 0.5, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(targets[..., 1], [[0] * 4, [0] * 4, [1, 0, 0, 0], [1, 0, 0, 1]])


def test_mask_targets_of_no_object():
    targets = center_masks.mask_targets(tf.zeros([2, 0, 16, 16], tf.uint8), tf.zeros([2, 0, 3]), 4, 4)
    assert targets.shape == (2, 4, 4, 3) and not targets.numpy().any()


def test_mask_loss_is_per_cell_that_is_no_padding():
    grid = GRID._replace(true_shapes=tf.constant([[8, 16, 3]]))
    logits = np.zeros([1, 4, 4, 2], np.float32)
    logits[0, 0, 0, 0], logits[0, 3, 3] = 2, 50
    task = Masks(SIGMOID, weight=3.0)
    loss = task.losses([tf.constant(logits), tf.constant(logits)],
                       truth(masks=masks_of((0, 0, 8, 8), (0, 0, 4, 4), (0, 0, 0, 0))), grid)
    assert loss.numpy() == pytest.approx(3 * (np.log1p(np.exp(-2)) + 15 * LN2) / 8, rel=1e-5)
    dice = Masks(losses.DiceClassificationLoss()).losses(
        [tf.constant(logits)], truth(masks=masks_of((0, 0, 8, 8), (0, 0, 4, 4), (0, 0, 0, 0))), grid)
    p = 1 / (1 + np.exp(-2))
    first, second = 2 * (p + 1.5) / (p + 3.5 + 4), 2 * 0.5 / (4 + 1)
    assert dice.numpy() == pytest.approx((2 - first - second) / 8, rel=1e-5)


def test_masks_within_boxes():
    """The second image has its true part in the upper half."""
    grid = Grid(tf.constant([[16, 16, 3], [8, 16, 3]]), 4, 4, 4)
    logits = np.full([2, 4, 4, 2], -9.0, np.float32)
    logits[0, :2, :, 1], logits[1, :, 2:, 0] = 9, 9
    boxes = tf.constant([[[0, 0, 1, 1], [0, 0, 1, 1]], [[0, 0, 1, 1], [0, 0.5, 0.5, 1]]])
    found = Masks(SIGMOID, height=4, width=4).decode(logits, boxes, tf.constant([[1, 0], [0, 1]]), grid)
    assert found.shape == (2, 2, 4, 4) and found.dtype == tf.float32
    np.testing.assert_array_equal(found[0, 0], [[1] * 4, [1] * 4, [0] * 4, [0] * 4])
    assert not found[0, 1].numpy().any() and not found[1, 1].numpy().any()
    np.testing.assert_array_equal(found[1, 0], [[0, 0, 1, 1]] * 4)


def test_mask_threshold():
    logits, boxes = tf.zeros([1, 4, 4, 1]), tf.constant([[[0.0, 0, 1, 1]]])
    zero = tf.zeros([1, 1], tf.int32)
    assert Masks(SIGMOID, height=2, width=2, threshold=0.5).decode(logits, boxes, zero, GRID).numpy().all()
    assert not Masks(SIGMOID, height=2, width=2, threshold=0.6).decode(logits, boxes, zero, GRID).numpy().any()
