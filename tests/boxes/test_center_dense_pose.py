from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from center import masks_of, truth

from od_finetune.boxes import center_dense_pose, losses
from od_finetune.boxes.center_dense_pose import DensePose
from od_finetune.boxes.center_grid import Grid
from od_finetune.boxes.center_masks import Masks

GRID = Grid(tf.constant([[16, 16, 3]]), 4, 4, 4)
SIGMOID, L1 = losses.SigmoidClassificationLoss(), losses.L1LocalizationLoss()
LN2 = np.log(2)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_sampling_is_what_an_enlarged_map_holds(factor):
    maps = np.random.default_rng(0).normal(size=[2, 3, 5, 2]).astype(np.float32)
    enlarged = tf.image.resize(maps, [3 * factor, 5 * factor]).numpy()
    places = np.random.default_rng(1).uniform(0, 1, [2, 50, 2]).astype(np.float32) * [3, 5]
    places[0, 0], places[0, 1] = 0, [3, 5]  # a corner, and beyond the last pixel
    pixels = np.minimum(np.floor(places * factor).astype(int), [3 * factor - 1, 5 * factor - 1])
    expected = np.stack([enlarged[image][tuple(pixels[image].T)] for image in range(2)])
    sampled = center_dense_pose.sample_upsampled(tf.constant(maps), tf.constant(places, tf.float32), factor)
    np.testing.assert_allclose(sampled, expected, atol=1e-5)


def dense_truth(weights=((1, 1, 0),)):
    coords = np.zeros([1, 3, 2, 4])
    coords[0, 0] = [[0.3, 0.55, 0.25, 0.75], [0.9, 0.1, 0.5, 0.5]]  # cells (1, 2) and (3, 0)
    coords[0, 1] = [[1.0, 1.0, 0, 1], [9, 9, 9, 9]]  # the lower right corner; padding
    return truth(weights, dense_pose_num_points=tf.constant([[2, 1, 2]]),
                 dense_pose_part_ids=tf.constant([[[2, 0], [1, 0], [0, 0]]]),
                 dense_pose_surface_coords=tf.constant(coords, tf.float32))


DENSE = DensePose(0, SIGMOID, L1, num_parts=3, weight=2.0, part_weight=3.0, coordinate_weight=5.0, upsample=False)


def test_dense_pose_losses_by_hand():
    parts, coordinates = np.zeros([1, 4, 4, 3], np.float32), np.zeros([1, 4, 4, 6], np.float32)
    parts[0, 1, 2] = [0, 0, 4]
    coordinates[0, 1, 2, 4:] = [0.25, 0.5]  # of the part 2: u wrong by 0.25
    coordinates[0, 3, 0, 2:] = 9  # of other parts
    coordinates[0, 3, 0, :2] = [0.5, 0]  # of the part 0: u wrong by 0.5
    coordinates[0, 3, 3, 2:4] = [0, 0]  # of the part 1: u wrong by 1
    part, coordinate = DENSE.losses([parts], [coordinates], dense_truth(), GRID)
    assert part.numpy() == pytest.approx(6 * (8 * LN2 + np.log1p(np.exp(-4))) / 3, rel=1e-5)
    assert coordinate.numpy() == pytest.approx(10 * 1.75 / 3, rel=1e-5)
    part, coordinate = DENSE.losses([parts] * 2, [coordinates] * 2, dense_truth(((0.5, 0, 0),)), GRID)
    assert part.numpy() == pytest.approx(6 * 0.5 * (5 * LN2 + np.log1p(np.exp(-4))) / 2, rel=1e-5)
    assert coordinate.numpy() == pytest.approx(10 * 0.5 * 0.75 / 2, rel=1e-5)


def test_dense_pose_of_the_input_resolution():
    coordinates = np.zeros([1, 4, 4, 6], np.float32)
    coordinates[0, 1, 2, 4:] = [0.25, 0.75]
    upsampled = DENSE._replace(upsample=True)
    _, coordinate = upsampled.losses([np.zeros([1, 4, 4, 3], np.float32)], [coordinates],
                                     dense_truth(((1, 0, 0),)), GRID)
    # The first point is in the pixel (4, 8): an eighth less than half a cell up and left of the middle of its cell.
    assert coordinate.numpy() == pytest.approx(10 * ((1 - 0.625**2) * 1 + 1) / 2, rel=1e-5)


def test_dense_pose_without_points():
    part, coordinate = DENSE.losses([np.zeros([1, 4, 4, 3], np.float32)], [np.zeros([1, 4, 4, 6], np.float32)],
                                    dense_truth(((0, 0, 0),)), GRID)
    assert part.numpy() == 0 and coordinate.numpy() == 0


def test_dense_pose_within_boxes():
    parts, coordinates = np.zeros([1, 4, 4, 3], np.float32), np.zeros([1, 4, 4, 6], np.float32)
    parts[0, :, :2, 1], parts[0, :, 2:, 2] = 5, 5
    coordinates[0, ..., 2:4], coordinates[0, ..., 4:] = [0.1, 0.2], [0.3, 0.4]
    masks = np.ones([1, 2, 4, 4], np.float32)
    masks[0, :, 0] = 0
    boxes = tf.constant([[[0, 0, 1, 1], [0, 0, 1, 1.0]]])
    found, surface = DENSE._replace(class_id=1).decode(
        tf.constant(parts), tf.constant(coordinates), tf.constant(masks), boxes, tf.constant([[1, 0]]), GRID)
    np.testing.assert_array_equal(found[0, 0], [[0] * 4, *[[2, 2, 3, 3]] * 3])
    np.testing.assert_array_equal(found[0, 1], masks[0, 1])  # of another class
    np.testing.assert_allclose(surface[0, 0, 1], [[0.1, 0.2]] * 2 + [[0.3, 0.4]] * 2, rtol=1e-6)
    assert not surface[0, 0, 0].numpy().any() and not surface[0, 1].numpy().any()


def test_traced_with_unknown_sizes():
    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, None, None, 3]),
                                                   tf.TensorSpec([None, None, None, 6]),
                                                   tf.TensorSpec([None, None, 4])])
    def run(parts, coordinates, boxes):
        grid = Grid(GRID.true_shapes, 4, tf.shape(parts)[1], tf.shape(parts)[2])
        classes = tf.zeros(tf.shape(boxes)[:2], tf.int32)
        masks = Masks(SIGMOID, height=5, width=6).decode(parts, boxes, classes, grid)
        groundtruth = dense_truth()._replace(masks=masks_of((0, 0, 8, 8), (0, 0, 4, 4), (0, 0, 0, 0)),
                                             classes=tf.zeros([1, 3, 3]))
        return (*DENSE.decode(parts, coordinates, masks, boxes, classes, grid),
                *DENSE.losses([parts], [coordinates], groundtruth, grid),
                Masks(SIGMOID).losses([parts], groundtruth, grid))

    masks, surface, *losses_ = run(tf.zeros([1, 4, 4, 3]), tf.zeros([1, 4, 4, 6]), tf.ones([1, 7, 4]))
    assert masks.shape == (1, 7, 5, 6) and surface.shape == (1, 7, 5, 6, 2) and np.isfinite(losses_).all()
