from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from od_finetune import fields
from od_finetune.boxes import center_decode, center_targets, losses
from od_finetune.boxes.center_grid import Grid, count_real, gather_cells, gather_channels
from od_finetune.boxes.center_objects import Boxes, ObjectCenters

GRID = Grid(tf.constant([[32, 40, 3], [20, 16, 3]]), 4, 8, 10)  # 8 x 10 cells; the second image fills 5 x 4 of them
FOCAL = losses.PenaltyReducedLogisticFocalLoss()
L1 = losses.L1LocalizationLoss()


def truth(boxes, classes, weights):
    """Padded to what is given; all else as it is without a reader for it."""
    boxes, weights = tf.constant(boxes, tf.float32), tf.constant(weights, tf.float32)
    false = tf.zeros(tf.shape(weights), tf.bool)
    return fields.Groundtruth(boxes, tf.constant(classes, tf.float32), weights,
                              tf.math.count_nonzero(weights, axis=1, dtype=tf.int32), false, false, false, weights * 0)


def test_grid_places_relative_to_the_true_part():
    boxes = tf.constant([[[0, 0, 1, 1], [0.25, 0.5, 0.5, 0.75]]] * 2, tf.float32)
    placed = GRID.place(boxes)
    np.testing.assert_allclose(placed, [[[0, 0, 8, 10], [2, 5, 4, 7.5]], [[0, 0, 5, 4], [1.25, 2, 2.5, 3]]])
    np.testing.assert_allclose(GRID.normalize(placed), boxes)
    np.testing.assert_allclose(GRID.windows(boxes)[1], [[0, 0, 0.625, 0.4], [0.15625, 0.2, 0.3125, 0.3]])
    points = tf.constant([[[0.5, 0.5]], [[0.5, 0.5]]])
    np.testing.assert_allclose(GRID.place(points), [[[4, 5]], [[2.5, 2]]])
    np.testing.assert_allclose(GRID.place(points[:, :, None])[:, :, 0], [[[4, 5]], [[2.5, 2]]])


def test_a_cell_with_a_single_true_pixel_is_valid():
    valid = Grid(tf.constant([[5, 12, 3]]), 4, 3, 3).valid().numpy()[0, ..., 0]
    np.testing.assert_array_equal(valid, [[1, 1, 1], [1, 1, 1], [0, 0, 0]])


def test_points_on_and_beyond_the_edges_have_a_cell():
    cells = GRID.cells(tf.constant([[7.9, 0.0], [8.0, 10.0], [-3.0, 99.0]]))
    np.testing.assert_array_equal(cells, [[7, 0], [7, 9], [0, 9]])


def test_gather():
    maps = tf.reshape(tf.range(2 * 3 * 4 * 6), [2, 3, 4, 6])
    cells = tf.constant([[[0, 0], [2, 3]], [[1, 2], [1, 2]]])
    np.testing.assert_array_equal(gather_cells(maps, cells)[:, :, 0], [[0, 66], [72 + 36, 72 + 36]])
    channels = tf.constant([[0, 2], [1, 0]])
    np.testing.assert_array_equal(gather_channels(maps, cells, channels, 2),
                                  [[[0, 1], [70, 71]], [[110, 111], [108, 109]]])
    np.testing.assert_array_equal(gather_channels(maps, cells, channels, 6), gather_cells(maps, cells))


def test_objects_are_counted_by_weight_and_never_none():
    assert count_real(tf.constant([[0.5, 0.0], [2.0, 0.0]])).numpy() == 2
    assert count_real(tf.zeros([2, 3])).numpy() == 1


def test_radius_by_hand():
    # 10 x 10, IoU 0.7: moved (20 + sqrt(400 - 400 * 3 / 17)) / 2, shrunk (40 + sqrt(1600 - 480)) / 2, and the smallest,
    # grown: (-28 + sqrt(784 + 336)) / 2.
    assert center_targets.gaussian_radius(10.0, 10.0, 0.7).numpy() == pytest.approx((1120**0.5 - 28) / 2, rel=1e-5)
    sigmas = center_targets.gaussian_sigma(tf.constant([10.0, 1.0, 0.0]), tf.constant([10.0, 1.0, 0.0]), 0.7)
    np.testing.assert_allclose(sigmas, [(2 * 2 + 1) / 6, 1 / 6, 1 / 6], rtol=1e-6)


@pytest.mark.parametrize("static", [False, True])
def test_heat_map_by_hand(static):
    points = tf.constant([[[1.5, 2.9], [1.0, 4.2], [6, 6]], [[0, 0], [7.5, 9.5], [0, 0]]])
    channels = tf.constant([[[1, 0], [1, 0], [0, 1.0]], [[0, 1], [0, 1], [0, 0]]])
    weights = tf.constant([[1, 1, 0.5], [1, 0, 0]])
    heat = center_targets.heat_map(points, tf.ones([2, 3]), channels, weights, GRID, static).numpy()
    assert heat.shape == (2, 8, 10, 2)
    assert heat[0, 1, 2, 0] == 1 and heat[0, 1, 4, 0] == 1
    assert heat[0, 1, 3, 0] == pytest.approx(np.exp(-0.5))  # halfway between two: the higher, not the sum
    assert heat[0, 3, 1, 0] == pytest.approx(np.exp(-2.5))
    assert heat[0, 6, 6, 1] == 0.5 and heat[0, 6, 5, 1] == pytest.approx(0.5 * np.exp(-0.5))
    assert heat[1, 0, 0, 1] == 1 and heat[1, 7, 9, 1] < 1e-20  # of weight 0
    assert not heat[1, ..., 0].any()


def test_heat_map_of_two_labels_on_one_object():
    args = tf.constant([[[3.0, 3.0]]]), tf.ones([1, 1]), tf.constant([[[1.0, 0.0, 1.0]]]), tf.ones([1, 1])
    grid = GRID._replace(true_shapes=GRID.true_shapes[:1])
    heat = center_targets.heat_map(*args, grid).numpy()
    np.testing.assert_array_equal(heat[0, 3, 3], [1, 0, 1])
    heat = center_targets.heat_map(*args, grid, static=True).numpy()
    np.testing.assert_array_equal(heat[0, 3, 3], [1, 0, 0])


def test_heat_map_of_no_object():
    heat = center_targets.heat_map(tf.zeros([2, 0, 2]), tf.zeros([2, 0]), tf.zeros([2, 0, 3]), tf.zeros([2, 0]), GRID)
    assert heat.shape == (2, 8, 10, 3) and not heat.numpy().any()


def test_box_targets_by_hand():
    # In a cell's middle, two in one cell, and one without height on the lower edge.
    boxes = tf.constant([[[1, 1, 4, 6], [1, 2, 4.5, 5], [8, 4, 8, 6]]], tf.float32)
    targets = center_targets.box_targets(boxes, GRID)
    np.testing.assert_array_equal(targets.cells, [[[2, 3], [2, 3], [7, 5]]])
    np.testing.assert_allclose(targets.sizes, [[[3, 5], [3.5, 3], [0, 2]]])
    np.testing.assert_allclose(targets.offsets, [[[0.5, 0.5], [0.75, 0.5], [1, 0]]])
    heat = center_targets.box_heat_map(boxes, tf.ones([1, 3, 1]), tf.ones([1, 3]), GRID).numpy()
    assert np.argwhere(heat == 1).tolist() == [[0, 2, 3, 0], [0, 7, 5, 0]]


def test_centers_from_keypoints_by_hand():
    keypoints = tf.constant([[[[2.0, 2], [6, 2], [4, 8]], [[0, 0], [0, 0], [0, 0]]]])
    weights = tf.constant([[[1.0, 1, 0], [0, 0, 0]]])
    grid = GRID._replace(true_shapes=GRID.true_shapes[:1])
    heat = center_targets.keypoint_center_heat_map(keypoints, weights, [1.0, 3.0, 1.0], tf.ones([1, 2, 1]),
                                                   tf.ones([1, 2]), grid).numpy()[0, ..., 0]
    assert heat[5, 2] == 1 and (heat == 1).sum() == 1  # (2 + 3 * 6) / 4; the object without keypoints is left out
    # Mean distance (3 + 3 * 1) / 4 = 1.5: as a box of 3 x 3, whose radius is below 1.
    assert heat[5, 3] == pytest.approx(np.exp(-0.5 * 36))


def focal(probability, target):
    if target == 1:
        return -((1 - probability) ** 2) * np.log(probability)
    return -((1 - target) ** 4) * probability**2 * np.log(1 - probability)


def test_center_loss_by_hand():
    """One object of weight 1, one of weight 0, padding; two outputs of the network."""
    grid = Grid(tf.constant([[8, 4, 3]]), 4, 2, 2)
    groundtruth = truth([[[0, 0, 0.5, 1], [0, 0, 0, 0]]], [[[1, 0], [0, 0]]], [[1, 0]])
    logits = [tf.zeros([1, 2, 2, 2]), tf.fill([1, 2, 2, 2], -2.0)]
    # The cells (0, 0), where the object is, and (1, 0) are valid; the Gaussian of a box of one cell is a sixth of it.
    near, p = np.exp(-0.5 * 36), 1 / (1 + np.exp(2))
    expected = (sum(focal(q, 1) + focal(q, near) + 2 * focal(q, 0) for q in (0.5, p))) / 2
    task = ObjectCenters(FOCAL, weight=3.0)
    assert task.losses(logits, groundtruth, grid).numpy() == pytest.approx(3 * expected, rel=1e-5)
    labelled = task.losses(logits, groundtruth, grid, tf.constant([[1.0, 0.0]])).numpy()
    assert labelled == pytest.approx(3 * (expected - focal(0.5, 0) - focal(p, 0)), rel=1e-5)


def test_center_loss_is_per_object_of_the_batch():
    grid = Grid(tf.constant([[8, 8, 3]] * 2), 4, 2, 2)
    one = truth([[[0, 0, 1, 1]], [[0, 0, 0, 0]]], [[[1]], [[0]]], [[1], [0]])
    two = truth([[[0, 0, 1, 1]], [[0, 0, 1, 1]]], [[[1]], [[1]]], [[1], [1]])
    logits = tf.zeros([2, 2, 2, 1])
    task = ObjectCenters(FOCAL)
    first = task.losses([logits[:1]], truth([[[0, 0, 1, 1]]], [[[1]]], [[1]]), grid._replace(
        true_shapes=grid.true_shapes[:1])).numpy()
    assert task.losses([logits], two, grid).numpy() == pytest.approx(first, rel=1e-6)
    assert task.losses([logits], one, grid).numpy() == pytest.approx(first + 4 * focal(0.5, 0), rel=1e-6)


def test_box_losses_by_hand():
    groundtruth = truth([[[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0, 0, 0, 0]], [[0, 0, 1, 1], [0] * 4, [0] * 4]],
                        np.zeros([2, 3, 2]), [[1, 0.5, 0], [0, 0, 0]])
    sizes = np.zeros([2, 8, 10, 2], np.float32)
    offsets = np.full([2, 8, 10, 2], 0.25, np.float32)
    sizes[0, 2, 2] = [3, 5]  # of the first box, 4 x 5 cells with its centre at (2, 2.5)
    losses_ = Boxes(L1, weight=2.0).losses([sizes, sizes], [offsets, offsets], groundtruth, GRID)
    # Second box: 4 x 5 with its centre at (6, 7.5), of half the weight; divided by two objects.
    np.testing.assert_allclose(losses_, [2 * 0.1 * (1 + 0.5 * 9) / 2, 2 * (0.5 + 0.5 * 0.5) / 2], rtol=1e-6)


def test_loss_without_any_object_is_finite_and_has_a_gradient():
    groundtruth = truth(np.zeros([2, 2, 4]), np.zeros([2, 2, 1]), np.zeros([2, 2]))
    logits = tf.zeros([2, 8, 10, 1])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = ObjectCenters(FOCAL).losses([logits], groundtruth, GRID)
    assert np.isfinite(loss) and np.isfinite(tape.gradient(loss, logits)).all()
    boxes = Boxes(L1).losses([tf.ones([2, 8, 10, 2])], [tf.ones([2, 8, 10, 2])], groundtruth, GRID)
    np.testing.assert_array_equal(boxes, [0, 0])


def test_peaks():
    heat = np.zeros([1, 4, 5, 2], np.float32)
    heat[0, 1, 1, 0], heat[0, 1, 2, 0], heat[0, 1, 2, 1], heat[0, 3, 4, 0] = 0.9, 0.8, 0.7, 0.5
    peaks = center_decode.top_peaks(heat, 3)
    np.testing.assert_allclose(peaks.scores, [[0.9, 0.7, 0.5]])  # 0.8 is beside 0.9; 0.7 is on another channel
    np.testing.assert_array_equal(peaks.cells, [[[1, 1], [1, 2], [3, 4]]])
    np.testing.assert_array_equal(peaks.channels, [[0, 1, 0]])
    np.testing.assert_allclose(center_decode.top_peaks(heat, 2, kernel=1).scores, [[0.9, 0.8]])
    np.testing.assert_allclose(center_decode.top_peaks(heat, 2, kernel=5).scores, [[0.9, 0.7]])
    per_channel = center_decode.top_peaks_per_channel(heat, 2)
    np.testing.assert_allclose(per_channel.scores, [[[0.9, 0.5], [0.7, 0]]])
    np.testing.assert_array_equal(per_channel.cells[:, :, 0], [[[1, 1], [1, 2]]])
    np.testing.assert_array_equal(per_channel.channels, [[[0, 0], [1, 1]]])


def test_more_peaks_than_cells():
    heat = np.full([1, 1, 2, 1], 0.5, np.float32)
    peaks = center_decode.top_peaks(heat, 4)
    np.testing.assert_allclose(peaks.scores, [[0.5, 0.5, 0, 0]])
    assert peaks.cells.shape == (1, 4, 2)
    assert center_decode.top_peaks_per_channel(heat, 3).scores.shape == (1, 1, 3)


def test_boxes_of_negative_size_are_points_and_all_are_clipped_to_the_grid():
    sizes, offsets = np.zeros([1, 4, 5, 2], np.float32), np.full([1, 4, 5, 2], 0.5, np.float32)
    sizes[0, 1, 1], sizes[0, 3, 4] = [-3, 1], [3, 9]
    boxes = center_decode.boxes_at(tf.constant([[[1, 1], [3, 4]]]), sizes, offsets)
    np.testing.assert_allclose(boxes, [[[1.5, 1, 1.5, 2], [2, 0, 4, 5]]])


def maps_of(groundtruth, grid):
    """What a perfect network would predict."""
    boxes = grid.place(groundtruth.boxes)
    heat = center_targets.box_heat_map(boxes, groundtruth.classes, groundtruth.weights, grid).numpy()
    targets = center_targets.box_targets(boxes, grid)
    sizes, offsets = np.zeros([2, *heat.shape[:3], 2], np.float32)
    for image, row in np.argwhere(groundtruth.weights.numpy() > 0):
        y, x = targets.cells.numpy()[image, row]
        sizes[image, y, x], offsets[image, y, x] = targets.sizes[image, row], targets.offsets[image, row]
    return np.log(np.clip(heat, 1e-6, 1 - 1e-6)) - np.log1p(-np.clip(heat, 1e-6, 1 - 1e-6)), sizes, offsets


@pytest.mark.parametrize("seed", range(5))
def test_decoding_gives_back_what_was_encoded(seed):
    random = np.random.default_rng(seed)
    grid = Grid(tf.constant([[64, 64, 3], [48, 64, 3]]), 4, 16, 16)
    centers = np.array([[0.3, 0.3], [0.3, 0.7], [0.7, 0.3], [0.7, 0.7]]) + random.uniform(-0.1, 0.1, [2, 4, 2])
    halves = random.uniform(0.05, 0.2, [2, 4, 2])
    boxes = np.concatenate([centers - halves, centers + halves], axis=-1)  # no two in one cell
    classes = np.eye(4)[np.stack([random.permutation(4) for _ in range(2)])]  # no two on one heat map
    groundtruth = truth(boxes, classes, [[1, 1, 1, 1], [1, 1, 0, 0]])
    logits, sizes, offsets = maps_of(groundtruth, grid)
    heat, peaks = ObjectCenters(FOCAL, max_detections=6).decode(tf.constant(logits), grid)
    found = center_decode.detections(peaks, heat, center_decode.boxes_at(peaks.cells, sizes, offsets), grid)
    for image, count in enumerate([4, 2]):
        assert (found.scores[image].numpy()[:count] > 0.99).all() and (found.scores[image].numpy()[count:] < 0.9).all()
        for box, label in zip(boxes[image][:count], classes[image].argmax(-1), strict=False):
            row = found.classes[image].numpy()[:count].tolist().index(label)
            np.testing.assert_allclose(found.boxes[image, row], box, atol=1e-5)


def test_detections():
    grid = Grid(tf.constant([[8, 16, 3]]), 4, 4, 4)  # the upper half of the grid
    logits = np.full([1, 4, 4, 2], -200.0, np.float32)
    logits[0, 1, 3, 1], logits[0, 3, 3, 0] = 0, 9  # the second in the padding
    heat, peaks = ObjectCenters(FOCAL, max_detections=3).decode(tf.constant(logits), grid)
    boxes = center_decode.boxes_at(peaks.cells, tf.fill([1, 4, 4, 2], 2.0), tf.zeros([1, 4, 4, 2]))
    found = center_decode.detections(peaks, heat, boxes, grid)
    assert found.num_detections.numpy().tolist() == [1]
    np.testing.assert_allclose(found.boxes[0, 0], [0, 0.5, 1, 1])
    np.testing.assert_allclose(found.multiclass_scores[0, 0], [0, 0.5])
    assert found.classes[0, 0] == 1 and found.anchor_indices[0, 0] == 7


def test_traced_with_unknown_sizes():
    """As an exported detector or a dataset of mixed sizes has them."""

    @tf.function(autograph=False, input_signature=[
        tf.TensorSpec([None, None, None, 2]), tf.TensorSpec([None, None, None, 2]), tf.TensorSpec([None, 3], tf.int32)])
    def run(logits, maps, true_shapes):
        grid = Grid(true_shapes, 4, tf.shape(logits)[1], tf.shape(logits)[2])
        groundtruth = truth([[[0, 0, 0.5, 0.5]]], [[[1, 0]]], [[1]])
        heat, peaks = ObjectCenters(FOCAL, max_detections=7).decode(logits, grid)
        found = center_decode.detections(peaks, heat, center_decode.boxes_at(peaks.cells, maps, maps), grid)
        return (ObjectCenters(FOCAL).losses([logits], groundtruth, grid),
                *Boxes(L1).losses([maps], [maps], groundtruth, grid), found.boxes)

    *losses_, boxes = run(tf.zeros([1, 2, 2, 2]), tf.zeros([1, 2, 2, 2]), tf.constant([[8, 8, 3]]))
    assert np.isfinite(losses_).all() and boxes.shape == (1, 7, 4)
