from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from od_finetune import fields
from od_finetune.boxes import losses
from od_finetune.boxes.center_deepmac import DeepMasks
from od_finetune.boxes.center_grid import Grid

GRID = Grid(tf.constant([[20, 20, 3], [20, 10, 3]]), 4, 5, 5)
SIGMOID = losses.SigmoidClassificationLoss()
TASK = DeepMasks(SIGMOID, mask_size=3)
LN2 = np.log(2)


def truth(masks, boxes, classes=((0, 1),), weights=((1, 1),)):
    weights = tf.constant(weights, tf.float32)
    false = tf.zeros(tf.shape(weights), tf.bool)
    return fields.Groundtruth(tf.constant(boxes, tf.float32), tf.one_hot(tf.constant(classes), 3), weights,
                              tf.constant([2]), false, false, false, weights, masks=tf.constant(masks, tf.uint8))


def embeddings():
    """Of pixels: the row and the column. Of instances: ten times the row plus the column."""
    rows, columns = np.mgrid[0:5, 0:5].astype(np.float32)
    return np.stack([np.stack([rows, columns], -1)] * 2), np.stack([(10 * rows + columns)[..., None]] * 2)


def test_inputs_of_the_mask_network():
    boxes = tf.constant([[[0.0, 0, 5, 5], [1.25, 2.5, 3.75, 5]], [[0, 0, 2.5, 2.5], [0, 0, 0, 0]]])
    inputs, centers = TASK.head_inputs(*embeddings(), boxes, GRID)
    assert inputs.shape == (4, 3, 3, 4) and centers.shape == (4, 1)
    np.testing.assert_allclose(centers[:, 0], [22, 23, 11, 0])
    np.testing.assert_allclose(inputs[0, ..., 2], [[0] * 3, [2] * 3, [4] * 3])
    np.testing.assert_allclose(inputs[1, ..., 2], [[1] * 3, [2] * 3, [3] * 3])
    np.testing.assert_allclose(inputs[1, ..., 3], [[2, 3, 4]] * 3)
    np.testing.assert_allclose(inputs[:, 0, :, 0], np.full([4, 3], -1))
    np.testing.assert_allclose(inputs[:, 0, :, 1], [[-1, 0, 1]] * 4)
    without, _ = TASK._replace(use_xy=False).head_inputs(*embeddings(), boxes, GRID)
    np.testing.assert_allclose(without, inputs[..., 2:])


def test_inputs_at_full_resolution():
    boxes = tf.constant([[[0.0, 0, 5, 5]], [[1.25, 2.5, 3.75, 5]]])
    inputs, centers = TASK._replace(full_resolution=True).head_inputs(*embeddings(), boxes, GRID)
    assert inputs.shape == (2, 5, 5, 4)
    np.testing.assert_allclose(centers[:, 0], [22, 23])
    np.testing.assert_allclose(inputs[1, :, 0, 0], [-0.5, -0.25, 0, 0.25, 0.5])
    np.testing.assert_allclose(inputs[1, 0, :, 1], [-0.75, -0.5, -0.25, 0, 0.25])
    np.testing.assert_allclose(inputs[..., 2:], embeddings()[0])


def masks():
    drawn = np.zeros([1, 2, 20, 20])
    drawn[0, 0, :, :10], drawn[0, 1, 10:, 10:] = 1, 1
    return drawn


def test_loss_by_hand():
    """Two objects: the left half of the first one's box is its mask, all of the second one's."""
    grid = GRID._replace(true_shapes=GRID.true_shapes[:1])
    groundtruth = truth(masks(), [[[0, 0, 1, 1], [0.5, 0.5, 1, 1]]])
    logits = np.zeros([2, 3, 3], np.float32)
    # Samples of the first are in the columns 0, 9.5 (half covered) and 19; of the second in the rows 9.5, 14.25, 19.
    logits[0, :, 0], logits[1, 1:, 1:] = 2, 3
    first = (3 * np.log1p(np.exp(-2)) + 6 * LN2) / 9
    second = (4 * np.log1p(np.exp(-3)) + 5 * LN2) / 9
    loss = TASK._replace(weight=5.0).losses([logits, logits], groundtruth, grid)
    assert loss.numpy() == pytest.approx(5 * (first + second) / 2, rel=1e-5)
    only = TASK._replace(class_ids=(1, 2)).losses([logits], groundtruth, grid)
    assert only.numpy() == pytest.approx(second, rel=1e-5)
    none = TASK._replace(class_ids=(2,)).losses([logits], groundtruth, grid)
    assert none.numpy() == 0
    weighted = TASK.losses([logits], groundtruth._replace(weights=tf.constant([[1.0, 0.5]])), grid)
    assert weighted.numpy() == pytest.approx((first + 0.5 * second) / 1.5, rel=1e-5)


def test_dice_is_summed_by_itself():
    grid = GRID._replace(true_shapes=GRID.true_shapes[:1])
    groundtruth = truth(masks(), [[[0, 0, 1, 1], [0.5, 0.5, 1, 1]]], weights=((1, 0),))
    task = TASK._replace(loss=losses.DiceClassificationLoss())
    loss = task.losses([np.zeros([2, 3, 3], np.float32)], groundtruth, grid)
    assert loss.numpy() == pytest.approx(1 - 2 * 4.5 * 0.5 / (4.5 + 4.5), rel=1e-5)


def test_loss_at_full_resolution():
    grid = GRID._replace(true_shapes=GRID.true_shapes[:1])
    groundtruth = truth(masks(), [[[0, 0, 1, 1], [0.5, 0.5, 1, 1]]])
    loss = TASK._replace(full_resolution=True).losses([np.zeros([2, 5, 5], np.float32)], groundtruth, grid)
    assert loss.numpy() == pytest.approx(LN2, rel=1e-5)


def test_decode():
    boxes = tf.constant([[[0.0, 0, 5, 5], [1, 1, 2, 1.8]]])
    logits = np.zeros([2, 3, 3], np.float32)
    logits[0, 0, 0] = np.log(3)
    drawn = TASK.decode(logits, boxes, GRID)
    assert drawn.shape == (1, 2, 3, 3)
    np.testing.assert_allclose(drawn[0, 0, 0], [0.75, 0.5, 0.5])
    whole = np.full([2, 5, 5], -9.0, np.float32)
    whole[:, :, 2:] = 9
    drawn = TASK._replace(full_resolution=True, crop_size=4).decode(whole, boxes, GRID)
    assert drawn.shape == (1, 2, 4, 4)
    np.testing.assert_allclose(np.round(drawn[0, 0, 0]), [0, 0, 1, 1])
    np.testing.assert_allclose(np.round(drawn[0, 1]), np.zeros([4, 4]))


def test_gradients_reach_the_embeddings():
    pixels, instances = (tf.constant(x) for x in embeddings())
    boxes = tf.constant([[[0.0, 0, 5, 5]], [[1.25, 1, 3.75, 2.5]]])
    with tf.GradientTape() as tape:
        tape.watch([pixels, instances])
        inputs, centers = TASK.head_inputs(pixels, instances, boxes, GRID)
        total = tf.reduce_sum(inputs) + tf.reduce_sum(centers)
    gradients = tape.gradient(total, [pixels, instances])
    assert gradients[0].numpy().sum() == pytest.approx(2 * 2 * 9, rel=1e-5)
    assert np.argwhere(gradients[1].numpy()).tolist() == [[0, 2, 2, 0], [1, 2, 1, 0]]
