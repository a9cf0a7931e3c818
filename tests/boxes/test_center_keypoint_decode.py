from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.boxes import center_keypoint_decode as decode
from od_finetune.boxes import center_keypoint_results as results
from od_finetune.boxes.center_grid import Grid
from od_finetune.boxes.center_keypoint_decode import KeypointDecoder, Maps
from od_finetune.boxes.center_keypoint_results import Found
from od_finetune.errors import UserError

LOW = -20.0


def logit(probability):
    return np.log(probability / (1 - probability))


def maps(peaks, guesses, size=20, depths=None, per_type=False):
    """Two types; `peaks` {(y, x, type): probability}, `guesses` {(y, x): [y0, x0, y1, x1]}; offsets of a quarter."""
    heat, regressions = np.full([1, size, size, 2], LOW), np.zeros([1, size, size, 4])
    for place, probability in peaks.items():
        heat[(0, *place)] = logit(probability)
    for place, steps in guesses.items():
        regressions[(0, *place)] = steps
    offsets = np.full([1, size, size, 2], 0.25)
    if per_type:
        offsets = np.concatenate([offsets, offsets + 0.5], axis=-1)
    return Maps(*(None if x is None else tf.constant(x, tf.float32) for x in (heat, offsets, regressions, depths)))


CENTER = tf.constant([[[10, 10]]])
BOX = tf.constant([[[5.0, 5, 15, 15]]])
# The first type has peaks at 1.8 and 3.9 from the guess (8.25, 8.25), the second none near (12, 12).
PEAKS = {(7, 7, 0): 0.4, (11, 11, 0): 0.9, (0, 0, 0): 0.3, (19, 19, 1): 0.9}
GUESSES = {(10, 10): [-1.75, -1.75, 2, 2]}
GENTLE = KeypointDecoder([1.0, 1.0])


def decoded(decoder=GENTLE, boxes=BOX, **more):
    return decoder.check(boxes is not None)(maps(PEAKS, GUESSES, **more), CENTER, boxes)


def test_snaps_to_the_nearest_peak_or_stays():
    found = decoded()
    np.testing.assert_allclose(found.points, [[[[7.25, 7.25], [12, 12]]]])
    np.testing.assert_allclose(found.scores, [[[0.4, 0.1]]], rtol=1e-5)
    assert found.depths is None
    np.testing.assert_allclose(decoded(GENTLE._replace(unmatched_score=0.03)).scores[0, 0, 1], 0.03)


def test_offsets_per_type():
    found = KeypointDecoder([1.0, 1.0])(
        maps({(7, 7, 0): 0.4, (12, 12, 1): 0.8}, GUESSES, per_type=True), CENTER, BOX)
    np.testing.assert_allclose(found.points, [[[[7.25, 7.25], [12.75, 12.75]]]])


@pytest.mark.parametrize(("changes", "point", "score"), [
    ({"threshold": 0.5, "search_scale": 0.5}, 11.25, 0.9),  # the near one is no candidate
    ({"threshold": 0.5}, 8.25, 0.1),  # and the other is farther than 0.3 * 1.2 * 10
    ({"search_scale": 0.1}, 8.25, 0.1),
    ({"box_scale": 0.5, "search_scale": 1.0}, 8.25, 0.1),  # (7.25, 7.25) is not within 7.5..12.5
    ({"ranking": decode.SCORE_DISTANCE_RATIO, "distance_offset": 0.001}, 7.25, 0.4),
    ({"ranking": decode.SCORE_DISTANCE_RATIO, "distance_offset": 5.0}, 11.25, 0.9),
    ({"ranking": decode.SCORE_SCALED_DISTANCE_RATIO, "distance_multiplier": 0.0001}, 7.25, 0.4),
    ({"ranking": decode.SCORE_SCALED_DISTANCE_RATIO, "distance_multiplier": 0.5}, 11.25, 0.9),
])
def test_options(changes, point, score):
    found = decoded(GENTLE._replace(**changes))
    np.testing.assert_allclose(found.points[0, 0, 0], [point, point])
    np.testing.assert_allclose(found.scores[0, 0, 0], score, rtol=1e-5)


def test_gaussian_ranking_is_also_the_score():
    # The box's sigma is (2 * 2 + 1) / 6 (see the radius of 10 x 10), times 1.5 and 2.
    decoder = KeypointDecoder([1.5, 1.0], ranking=decode.GAUSSIAN_WEIGHTED, std_dev_multiplier=2.0)
    found = decoded(decoder)
    sigma = 5 / 6 * 1.5 * 2
    near, far = 0.4 * np.exp(-2 / (2 * sigma**2)), 0.9 * np.exp(-18 / (2 * sigma**2))
    assert near > far
    np.testing.assert_allclose(found.points[0, 0, 0], [7.25, 7.25])
    np.testing.assert_allclose(found.scores[0, 0, 0], near, rtol=1e-5)
    found = decoded(decoder._replace(std_dev_multiplier=8.0, search_scale=1.0))
    np.testing.assert_allclose(found.points[0, 0, 0], [11.25, 11.25])
    np.testing.assert_allclose(found.scores[0, 0, 0], 0.9 * np.exp(-18 / (32 * sigma**2)), rtol=1e-5)


def test_without_boxes_any_candidate_will_do():
    found = decoded(boxes=None)
    np.testing.assert_allclose(found.points, [[[[7.25, 7.25], [19.25, 19.25]]]])


@pytest.mark.parametrize("channels", [1, 2])
def test_depths_of_the_peaks(channels):
    depths = np.zeros([1, 20, 20, channels])
    depths[0, 7, 7, 0] = 3.5
    found = decoded(depths=depths)
    np.testing.assert_allclose(found.depths, [[[3.5, 0]]])


def test_objects_and_images_are_independent():
    both = [maps(PEAKS, GUESSES), maps({(3, 3, 0): 0.7}, {(3, 3): [0.5, 0.5, 1, 1]})]
    batch = Maps(*(None if x[0] is None else tf.concat(x, 0) for x in zip(*both, strict=True)))
    cells = tf.constant([[[10, 10], [3, 3]]] * 2)
    boxes = tf.constant([[[5.0, 5, 15, 15], [1, 1, 5, 5]]] * 2)
    found = GENTLE(batch, cells, boxes)
    np.testing.assert_allclose(found.points[0, 0], decoded().points[0, 0])
    np.testing.assert_allclose(found.points[0, 1], [[3, 3], [3, 3]])  # nothing near: the regression of 0
    np.testing.assert_allclose(found.points[1, 1], [[3.25, 3.25], [4, 4]])


def test_argmax():
    decoder = KeypointDecoder([1.0, 1.0], ranking=decode.GAUSSIAN_WEIGHTED_CONST, argmax=True, denominator_ratio=0.5)
    found = decoded(decoder)
    # Of the first type, exp(-d^2 / (20 * 0.5)) in whole cells from (8.25, 8.25); of the second (19, 19) is outside.
    near, far = 0.4 * np.exp(-2 * 1.25**2 / 10), 0.9 * np.exp(-2 * 2.75**2 / 10)
    assert near > far
    np.testing.assert_allclose(found.points[0, 0], [[7.25, 7.25], [12.25, 12.25]])
    np.testing.assert_allclose(found.scores[0, 0, 0], near, rtol=1e-4)
    assert found.scores[0, 0, 1] < 1e-6
    wide = decoded(decoder._replace(denominator_ratio=5.0), per_type=True)
    np.testing.assert_allclose(wide.points[0, 0], [[11.25, 11.25], [12.75, 12.75]])


def test_argmax_scores_are_the_best_of_all_objects():
    decoder = KeypointDecoder([1.0, 1.0], ranking=decode.GAUSSIAN_WEIGHTED_CONST, argmax=True, denominator_ratio=0.5)
    guesses = {(10, 10): [-3, -3, 2, 2], (9, 9): [-1, -1, 1, 1]}  # the second guesses (8, 8), the first (7, 7)
    found = decoder(maps({(7, 7, 0): 0.8}, guesses), tf.constant([[[10, 10], [9, 9]]]), tf.tile(BOX, [1, 2, 1]))
    np.testing.assert_allclose(found.points[0, :, 0], [[7.25, 7.25]] * 2)
    np.testing.assert_allclose(found.scores[0, :, 0], [0.8, 0.8], rtol=1e-5)


@pytest.mark.parametrize(("decoder", "has_boxes", "message"), [
    (GENTLE._replace(ranking="nearest"), True, "candidate_ranking_mode is 'nearest'"),
    (GENTLE._replace(ranking=decode.GAUSSIAN_WEIGHTED_CONST), True, "argmax_postprocessing: false"),
    (GENTLE._replace(argmax=True), True, "argmax_postprocessing: true it must be gaussian_weighted_const"),
    (GENTLE._replace(ranking=decode.GAUSSIAN_WEIGHTED), False, "object_detection_task"),
])
def test_fields_that_do_not_go_together(decoder, has_boxes, message):
    with pytest.raises(UserError, match=message):
        decoder.check(has_boxes)


def test_tasks_are_merged_into_their_places():
    people = Found(tf.ones([1, 2, 2, 2]), tf.ones([1, 2, 2]), tf.fill([1, 2, 2], 4.0))
    dogs = Found(tf.fill([1, 2, 1, 2], 2.0), tf.fill([1, 2, 1], 0.5))
    merged = results.merge([(results.for_class(people, tf.constant([[True, False]])), [3, 0]),
                            (results.for_class(dogs, tf.constant([[False, True]])), [2])], 4)
    np.testing.assert_array_equal(merged.points[0, ..., 0], [[1, 0, 0, 1], [0, 0, 2, 0]])
    np.testing.assert_array_equal(merged.scores[0], [[1, 0, 0, 1], [0, 0, 0.5, 0]])
    np.testing.assert_array_equal(merged.depths[0], [[4, 0, 0, 4], [0, 0, 0, 0]])


def test_normalized_and_clipped():
    grid = Grid(tf.constant([[40, 80, 3]]), 4, 20, 20)  # 10 x 20 cells of it are true
    found = Found(tf.constant([[[[5.0, 5], [12, -2]]]]), tf.constant([[[0.9, 0.8]]]))
    open_ = results.normalized(found, grid)
    np.testing.assert_allclose(open_.points, [[[[0.5, 0.25], [1.2, -0.1]]]])
    np.testing.assert_allclose(open_.scores, [[[0.9, 0.8]]])
    clipped = results.normalized(found, grid, clip=True)
    np.testing.assert_allclose(clipped.points, [[[[0.5, 0.25], [1, 0]]]])
    np.testing.assert_allclose(clipped.scores, [[[0.9, 0]]])


def test_rescore_by_hand():
    scores, keypoints = tf.constant([[0.8, 0.6, 0.5]]), tf.constant([[[0.5, 0.1, 0.7], [0.5, 0.1, 0.7], [0, 0, 0]]])
    wanted = tf.constant([[True, False, True]])
    np.testing.assert_allclose(results.rescore(scores, keypoints, wanted, 0.2), [[0.8 * 0.6, 0.6, 0]], rtol=1e-6)
    np.testing.assert_allclose(results.rescore(scores, keypoints, wanted)[0, 0], 0.8 * 1.3 / 3, rtol=1e-6)


def test_enclosing_boxes():
    boxes = results.enclosing_boxes(tf.constant([[[[1.0, 5], [3, 2], [2, 9]]]]))
    np.testing.assert_array_equal(boxes, [[[1, 2, 3, 9]]])


def test_traced_with_unknown_sizes():
    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, None, None, 2]),
                                                   tf.TensorSpec([None, None, None, 4]),
                                                   tf.TensorSpec([None, None, 2], tf.int32),
                                                   tf.TensorSpec([None, None, 4])])
    def run(two, four, cells, boxes):
        argmax = KeypointDecoder([1.0, 1.0], ranking=decode.GAUSSIAN_WEIGHTED_CONST, argmax=True)
        return [decoder(Maps(two, two, four), cells, boxes)[:2] for decoder in (GENTLE, argmax)]

    for points, scores in run(tf.zeros([2, 5, 4, 2]), tf.zeros([2, 5, 4, 4]), tf.zeros([2, 3, 2], tf.int32),
                              tf.ones([2, 3, 4])):
        assert points.shape == (2, 3, 2, 2) and scores.shape == (2, 3, 2)
