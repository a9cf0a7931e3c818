from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from od_finetune import fields
from od_finetune.boxes import center_keypoints, losses
from od_finetune.boxes.center_grid import Grid
from od_finetune.boxes.center_keypoint_decode import KeypointDecoder, Maps
from od_finetune.boxes.center_keypoint_results import normalized
from od_finetune.boxes.center_keypoints import Keypoints, Predictions

NAN = np.nan
GRID = Grid(tf.constant([[32, 32, 3]]), 4, 8, 8)
FOCAL = losses.PenaltyReducedLogisticFocalLoss()
L1 = losses.L1LocalizationLoss()
TASK = Keypoints(1, [2, 0], [1.0, 2.0], FOCAL, L1)
# Of four types the task has the last but one and the first. A person, a thing, a person of weight 0, padding.
BOXES = [[[0.25, 0.25, 0.75, 0.75], [0, 0, 0.25, 0.5], [0.75, 0.5, 1, 1], [0, 0, 0, 0]]]
CLASSES = [[[0, 1], [1, 0], [0, 1], [0, 0]]]
WEIGHTS = [[1, 1, 0, 0]]
POINTS = [[[[0.3, 0.4], [0.5, 0.5], [NAN, NAN], [0.1, 0.1]],
           [[0.1, 0.1], [0.1, 0.1], [0.2, 0.2], [0.1, 0.1]],
           [[0.9, 0.9], [0.9, 0.9], [0.8, 0.8], [0.9, 0.9]],
           [[0, 0], [0, 0], [0, 0], [0, 0]]]]


def truth(points=POINTS, weights=WEIGHTS, **more):
    weights = tf.constant(weights, tf.float32)
    false = tf.zeros(tf.shape(weights), tf.bool)
    return fields.Groundtruth(tf.constant(BOXES, tf.float32), tf.constant(CLASSES, tf.float32), weights,
                              tf.constant([3]), false, false, false, weights,
                              keypoints=tf.constant(points, tf.float32), **more)


def test_labels_are_those_of_the_class_that_are_known():
    labels = center_keypoints.select(truth(), 1, [2, 0], GRID)
    np.testing.assert_array_equal(labels.weights, [[[0, 1], [0, 0], [0, 0], [0, 0]]])
    np.testing.assert_allclose(labels.points[0, 0], [[0, 0], [2.4, 3.2]], rtol=1e-6)
    np.testing.assert_allclose(labels.points[0, 1], [[1.6, 1.6], [0.8, 0.8]], rtol=1e-6)


@pytest.mark.parametrize("static", [False, True])
def test_heat_map_by_hand(static):
    labels = center_keypoints.select(truth(weights=[[1, 1, 0.5, 0]]), 1, [2, 0], GRID)
    heat = center_keypoints.heat_map(labels, GRID.place(tf.constant(BOXES)), [1.0, 2.0], GRID, static).numpy()[0]
    assert heat.shape == (8, 8, 2)
    assert heat[2, 3, 1] == 1 and heat[6, 6, 0] == 0.5 and heat[7, 7, 1] == 0.5
    # 4 x 4 cells: radius (-11.2 + sqrt(11.2^2 + 53.76)) / 2 = 1.08, sigma 0.5, twice that for the second type.
    assert heat[2, 4, 1] == pytest.approx(np.exp(-0.5)) and heat[4, 3, 1] == pytest.approx(np.exp(-2.0))
    # 2 x 4 cells: radius below 1, sigma a sixth.
    assert heat[6, 7, 0] == pytest.approx(0.5 * np.exp(-18)) and heat[0, 0, 0] < 1e-6


def test_boxes_with_an_unknown_keypoint_teach_nothing():
    labels = center_keypoints.select(truth(), 1, [2, 0], GRID)
    known = center_keypoints.known_cells(labels, GRID.place(tf.constant(BOXES)), GRID).numpy()[0]
    expected = np.ones([8, 8, 2])
    expected[0:2, 0:4], expected[6:8, 4:8] = 0, 0  # the thing, the person of weight 0
    expected[2:6, 2:6, 0] = 0  # the person, whose first type is not labelled
    np.testing.assert_array_equal(known, expected)


def test_cells_around():
    around = center_keypoints.cells_around(tf.constant([[2.9, 7.1]]), 1, GRID)
    cells = {tuple(c) for c, inside in zip(around.cells[0].numpy(), around.inside[0].numpy(), strict=True) if inside}
    assert cells == {(2, 7), (1, 7), (3, 7), (2, 6)} and around.cells.shape == (1, 5, 2)
    assert center_keypoints.cells_around(tf.zeros([1, 2]), 3, GRID).cells.shape == (1, 29, 2)
    far = center_keypoints.cells_around(tf.constant([[-0.5, 3.0]]), 0, GRID)
    np.testing.assert_array_equal(far.cells, [[[0, 0]]])
    assert far.inside.numpy() == 0


def focal(probability, target):
    if target == 1:
        return -((1 - probability) ** 2) * np.log(probability)
    return -((1 - target) ** 4) * probability**2 * np.log(1 - probability)


def predictions(offsets, regressions, depths=None):
    return Predictions([tf.zeros([1, 8, 8, 2])], [tf.constant(offsets, tf.float32)],
                       [tf.constant(regressions, tf.float32)], depths)


def test_losses_by_hand():
    offsets, regressions = np.zeros([1, 8, 8, 2]), np.zeros([1, 8, 8, 4])
    offsets[0, 2, 3] = [0.5, 0]  # of the keypoint at (2.4, 3.2)
    regressions[0, 4, 4] = [9, 9, -2, -2]  # from the centre's cell (4, 4) it is (-1.6, -0.8)
    task = TASK._replace(weight=2.0, offset_weight=3.0, regression_weight=5.0, heat_weight=7.0)
    found = task.losses(predictions(offsets, regressions), truth(), GRID)
    assert found.offset.numpy() == pytest.approx(2 * 3 * (0.1 + 0.2), rel=1e-5)
    assert found.regression.numpy() == pytest.approx(2 * 5 * (0.4 + 1.2), rel=1e-5)
    # The cells that are known; in those of the second type there is a Gaussian of deviation 1 around (2, 3).
    heat = (64 - 8 - 8 - 16) * focal(0.5, 0)
    for y, x in np.ndindex(8, 8):
        if not (y < 2 and x < 4) and not (y >= 6 and x >= 4):
            heat += focal(0.5, np.exp(-((y - 2) ** 2 + (x - 3) ** 2) / 2))
    assert found.heat.numpy() == pytest.approx(2 * 7 * heat, rel=1e-5)
    assert found.depth is None


@pytest.mark.parametrize("seed", range(3))
def test_decoding_gives_back_what_was_encoded(seed):
    """Perfect maps: heat from the targets, offsets and regressions as the losses ask for them."""
    random = np.random.default_rng(seed)
    points = np.full([1, 4, 4, 2], NAN)
    points[0, 0, [2, 0]] = random.uniform(0.3, 0.7, [2, 2])
    labels = center_keypoints.select(truth(points), 1, [2, 0], GRID)
    placed = labels.points.numpy()[0, 0]
    heat = center_keypoints.heat_map(labels, GRID.place(tf.constant(BOXES)), [1.0, 1.0], GRID).numpy().clip(1e-4, 0.999)
    offsets, regressions = np.zeros([1, 8, 8, 4]), np.zeros([1, 8, 8, 4])
    for kind, (y, x) in enumerate(placed):
        offsets[0, int(y), int(x), 2 * kind:2 * kind + 2] = y % 1, x % 1
    regressions[0, 4, 4] = (placed - 4 + random.uniform(-0.3, 0.3, [2, 2])).reshape(-1)
    assert TASK.losses(predictions(offsets, regressions), truth(points), GRID).offset.numpy() < 1e-5
    maps = Maps(tf.constant(np.log(heat / (1 - heat)), tf.float32), tf.constant(offsets, tf.float32),
                tf.constant(regressions, tf.float32))
    found = KeypointDecoder([1.0, 1.0])(maps, tf.constant([[[4, 4]]]), GRID.place(tf.constant(BOXES))[:, :1])
    np.testing.assert_allclose(normalized(found, GRID).points[0, 0], points[0, 0, [2, 0]], atol=1e-5)
    np.testing.assert_allclose(found.scores, 0.999, rtol=1e-3)


def test_two_outputs_are_averaged_and_padding_has_no_heat_loss():
    one = predictions(np.zeros([1, 8, 8, 2]), np.zeros([1, 8, 8, 4]))
    two = Predictions(*(None if x is None else list(x) * 2 for x in one))
    single, double = TASK.losses(one, truth(), GRID), TASK.losses(two, truth(), GRID)
    np.testing.assert_allclose(single[:3], double[:3], rtol=1e-6)
    padded = Grid(tf.constant([[1, 1, 3]]), 4, 8, 8)  # one cell is valid, and unknown
    assert TASK.losses(one, truth(weights=[[0, 1, 0, 0]]), padded).heat.numpy() == 0


@pytest.mark.parametrize("per_type", [False, True])
def test_offsets_are_learnt_around_a_keypoint_within_the_grid(per_type):
    """A keypoint in the corner cell: two of the five cells of a radius of 1 are outside."""
    points = np.full([1, 4, 4, 2], NAN)
    points[0, 0, 0] = [0.05, 0.025]  # (0.4, 0.2), of the task's second type
    maps = np.zeros([1, 8, 8, 4 if per_type else 2])
    maps[..., -2:] = [0.4, 0.2]
    maps[0, 1, 0, -2:] = [-0.6, 1.2]  # wrong by 1 in x
    found = TASK._replace(radius=1).losses(predictions(maps, np.zeros([1, 8, 8, 4])), truth(points), GRID)
    # In the cell (0, 1) the target is (0.4, -0.8): wrong by 1; in (1, 0) (-0.6, 0.2): wrong by 1.
    assert found.offset.numpy() == pytest.approx(2 / 3, rel=1e-5)


def test_regression_around_the_centre():
    maps = np.zeros([1, 8, 8, 4])
    for y, x in [(4, 4), (3, 4), (5, 4), (4, 3), (4, 5)]:
        maps[0, y, x, 2:] = [2.4 - y, 3.2 - x]
    maps[0, 4, 5, 2] += 1
    found = TASK._replace(radius=1).losses(predictions(np.zeros([1, 8, 8, 2]), maps), truth(), GRID)
    assert found.regression.numpy() == pytest.approx(1 / 5, rel=1e-5)


@pytest.mark.parametrize("per_type", [False, True])
def test_depth_by_hand(per_type):
    points = np.array(POINTS)
    points[0, 0, 2] = [0.5, 0.5]
    depths, weights = np.full([1, 4, 4], 5.0), np.full([1, 4, 4], 0.5)
    depths[0, 0, 2] = NAN
    truth_ = truth(points, keypoint_depths=tf.constant(depths, tf.float32),
                   keypoint_depth_weights=tf.constant(weights, tf.float32))
    maps = np.zeros([1, 8, 8, 2 if per_type else 1])
    maps[0, 2, 3] = 3 if not per_type else [100, 3]
    depth = [tf.constant(maps, tf.float32)]
    found = TASK._replace(depth_weight=4.0).losses(
        predictions(np.zeros([1, 8, 8, 2]), np.zeros([1, 8, 8, 4]), depth), truth_, GRID)
    assert found.depth.numpy() == pytest.approx(4 * 0.5 * 2)  # the weights sum to less than 1, which is what counts


def test_nothing_labelled_costs_nothing_but_heat_and_has_finite_gradients():
    points = np.full([1, 4, 4, 2], NAN)
    maps = [tf.zeros([1, 8, 8, 2]), tf.zeros([1, 8, 8, 4])]
    with tf.GradientTape() as tape:
        tape.watch(maps)
        found = TASK.losses(Predictions([maps[0]], [maps[0]], [maps[1]]), truth(points), GRID)
        total = tf.add_n(found[:3])
    assert found.offset.numpy() == 0 and found.regression.numpy() == 0
    assert all(np.isfinite(gradient).all() for gradient in tape.gradient(total, maps))


def test_traced_with_unknown_sizes():
    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, None, None, 2]),
                                                   tf.TensorSpec([None, None, None, 4]),
                                                   tf.TensorSpec([None, None, 4, 2])])
    def run(maps, regressions, points):
        grid = Grid(GRID.true_shapes, 4, tf.shape(maps)[1], tf.shape(maps)[2])
        return TASK._replace(radius=2).losses(Predictions([maps], [maps], [regressions]),
                                              truth()._replace(keypoints=points), grid)[:3]

    maps, regressions = tf.random.stateless_normal([1, 8, 8, 2], [1, 2]), tf.ones([1, 8, 8, 4])
    eager = TASK._replace(radius=2).losses(Predictions([maps], [maps], [regressions]), truth(), GRID)[:3]
    np.testing.assert_allclose(run(maps, regressions, tf.constant(POINTS, tf.float32)), eager, rtol=1e-5)
