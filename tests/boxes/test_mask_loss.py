"""Mask targets, and the loss of masks."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.boxes.mask_loss import MASK, MaskLoss, mask_targets
from od_finetune.boxes.proposals import Proposals
from od_finetune.boxes.targets import Targets

IMAGE = (4, 8)


def masks_of_quarters() -> tf.Tensor:
    """Two images of two objects each; object n of image b is the column of pixels 2 * b + n."""
    masks = np.zeros([2, 2, *IMAGE], np.uint8)
    for image in range(2):
        for row in range(2):
            masks[image, row, :, 2 * image + row] = 1
    return tf.constant(masks)


def test_each_region_shows_the_mask_it_matched():
    # From pixel 0 to pixel 7 in eight steps: the very pixels.
    whole = tf.constant([[[0.0, 0.0, 4.0, 8.0]] * 2] * 2)
    targets = mask_targets(whole, tf.constant([[1, 0], [0, -1]]), masks_of_quarters(), IMAGE, (2, 8))
    columns = np.argmax(targets.numpy(), axis=-1)
    np.testing.assert_array_equal(columns[:, :, 0], [[1, 0], [2, 2]])  # what matched nothing shows something
    np.testing.assert_array_equal(targets.numpy().sum(axis=(-1, -2)), 2.0)


def test_a_crop_is_bilinear():
    masks = tf.constant([[[[0, 0, 0, 1, 1, 1, 1]] * 2]], tf.uint8)
    # Corners are pixels: of a side of 7 pixels, normalised 0 is the first and 1 the last.
    box = tf.constant([[[0.0, 7 * 2.0 / 6, 2.0, 7 * 3.0 / 6]]])
    targets = mask_targets(box, tf.constant([[0]]), masks, (2, 7), (1, 3))
    np.testing.assert_allclose(targets.numpy().ravel(), [0.0, 0.5, 1.0], atol=1e-6)


def test_without_any_object():
    nothing = tf.zeros([1, 0, 4, 4], tf.uint8)
    targets = mask_targets(tf.zeros([1, 3, 4]), tf.constant([[-1, -1, -2]]), nothing, IMAGE, (2, 2))
    np.testing.assert_array_equal(targets, np.zeros([1, 3, 2, 2]))


def targets_of(classes: list[int], weights: list[float], matches: list[int]) -> Targets:
    """Of one image; class 0 is the background."""
    one_hot = tf.one_hot([classes], 3)
    return Targets(one_hot, one_hot, tf.zeros([1, len(classes), 4]), tf.constant([weights]), tf.constant([matches]))


def test_only_the_mask_of_its_class_counts_and_only_of_objects():
    masks = tf.ones([1, 1, *IMAGE], tf.uint8)
    proposed = Proposals(tf.constant([[[0.0, 0.0, 4.0, 8.0]] * 3]), tf.constant([3]))
    logits = np.full([3, 2, 2, 2], 50.0, np.float32)  # as it should be
    logits[0, 1] = 0.0  # what counts: log(2) for every cell
    logits[1, :] = -50.0  # background
    logits[2, 1] = -50.0  # of the other class
    targets = targets_of([2, 0, 1], [1.0, 0.0, 1.0], [0, -1, 0])
    loss = MaskLoss(weight=4.0)(tf.constant(logits), proposed, targets, masks, IMAGE)
    assert {name: float(value) for name, value in loss.items()} == pytest.approx({MASK: 4.0 * np.log(2.0) / 2})


def test_shared_masks_have_no_class():
    proposed = Proposals(tf.constant([[[0.0, 0.0, 4.0, 8.0]] * 2]), tf.constant([2]))
    targets = targets_of([2, 1], [1.0, 1.0], [0, 0])
    loss = MaskLoss()(tf.zeros([2, 1, 2, 2]), proposed, targets, tf.ones([1, 1, *IMAGE], tf.uint8), IMAGE)
    assert float(loss[MASK]) == pytest.approx(np.log(2.0))


def test_no_object_no_loss():
    proposed = Proposals(tf.zeros([1, 2, 4]), tf.constant([0]))
    targets = targets_of([0, 0], [0.0, 0.0], [-1, -1])
    loss = MaskLoss()(tf.zeros([2, 1, 2, 2]), proposed, targets, tf.zeros([1, 1, 4, 4], tf.uint8), IMAGE)
    assert float(loss[MASK]) == 0.0
