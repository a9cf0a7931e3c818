from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from od_finetune.boxes import nms
from od_finetune.boxes.nms import MulticlassNms, NmsOptions
from od_finetune.errors import UserError

WHOLE = tf.constant([[0.0, 0.0, 1.0, 1.0]])
# Boxes 0 and 1 overlap with IoU 0.8; box 2 stands alone; box 3 lies outside the image.
BOXES = tf.constant([[[0, 0, 0.5, 1], [0, 0, 0.4, 1], [0.5, 0, 1, 0.5], [1.5, 1.5, 2, 2]]], tf.float32)
SCORES = tf.constant([[[0.9, 0.1], [0.8, 0.7], [0.3, 0.2], [0.95, 0.0]]])


def select(boxes=BOXES, scores=SCORES, window=WHOLE, **options):
    return MulticlassNms(NmsOptions(**{"max_detections_per_class": 3, "max_total_detections": 4, **options}))(
        boxes, scores, window)


def rows(selected, image=0):
    """(class, anchor, score) of each detection."""
    number = int(selected.num_detections[image])
    fields = (selected.classes, selected.anchor_indices, selected.scores)
    return [(int(c), int(a), round(float(s), 4)) for c, a, s in zip(*(f[image][:number] for f in fields), strict=True)]


def test_per_class_by_hand():
    selected = select(score_threshold=0.15)
    assert rows(selected) == [(0, 0, 0.9), (1, 1, 0.7), (0, 2, 0.3), (1, 2, 0.2)]
    np.testing.assert_allclose(selected.boxes[0], tf.gather(BOXES[0], [0, 1, 2, 2]))


def test_too_few_detections_are_padded_with_zeros():
    selected = select(score_threshold=0.5)
    assert rows(selected) == [(0, 0, 0.9), (1, 1, 0.7)]
    assert not selected.boxes.numpy()[0, 2:].any() and not selected.scores.numpy()[0, 2:].any()
    padded = selected.gather(SCORES)
    np.testing.assert_allclose(padded[0], [[0.9, 0.1], [0.8, 0.7], [0, 0], [0, 0]])


def test_limits_per_class_and_in_all():
    # The box outside uses up a place in its class: boxes are clipped after suppression.
    assert rows(select(score_threshold=0.15, max_detections_per_class=1)) == [(1, 1, 0.7)]
    assert rows(select(score_threshold=0.15, max_total_detections=3)) == [(0, 0, 0.9), (1, 1, 0.7), (0, 2, 0.3)]
    assert rows(select(max_detections_per_class=50, max_total_detections=60, score_threshold=0.6)) == [
        (0, 0, 0.9), (1, 1, 0.7)]


def test_without_a_window_boxes_stay_as_they_are():
    selected = select(score_threshold=0.85, window=None)
    assert rows(selected) == [(0, 3, 0.95), (0, 0, 0.9)]
    np.testing.assert_allclose(selected.boxes[0, 0], BOXES[0, 3])


def test_window_per_image_becomes_the_new_frame_if_wanted():
    boxes, scores = tf.repeat(BOXES, 2, 0), tf.repeat(SCORES, 2, 0)
    window = tf.constant([[0, 0, 1, 1], [0, 0, 1, 0.5]], tf.float32)
    relative = select(boxes, scores, window, score_threshold=0.85)
    np.testing.assert_allclose(relative.boxes[:, 0], [[0, 0, 0.5, 1], [0, 0, 0.5, 1]])
    absolute = select(boxes, scores, window, score_threshold=0.85, change_coordinate_frame=False)
    np.testing.assert_allclose(absolute.boxes[:, 0], [[0, 0, 0.5, 1], [0, 0, 0.5, 0.5]])


def test_a_box_for_each_class():
    own = tf.stack([BOXES, tf.reverse(BOXES, [1])], axis=2)
    selected = select(own, score_threshold=0.5)
    # For class 1 anchor 1 is box 2.
    assert rows(selected) == [(0, 0, 0.9), (1, 1, 0.7)]
    np.testing.assert_allclose(selected.boxes[0, 1], BOXES[0, 2])
    agnostic = select(own, score_threshold=0.5, use_class_agnostic_nms=True)
    np.testing.assert_allclose(agnostic.boxes[0, 0], BOXES[0, 0])


def test_class_agnostic_keeps_the_best_class_of_a_box():
    scores = tf.constant([[[0.2, 0.9], [0.8, 0.7], [0.3, 0.2], [0.95, 0.0]]])
    assert rows(select(scores=scores, use_class_agnostic_nms=True)) == [(1, 0, 0.9), (0, 2, 0.3)]


def test_soft_nms_lowers_scores_instead_of_dropping():
    selected = select(score_threshold=0.0, soft_nms_sigma=0.5, iou_threshold=1.0, max_total_detections=3)
    # exp(-IoU^2 / (2 sigma)), sigma 0.5, IoU 0.8
    assert rows(selected)[:3] == [(0, 0, 0.9), (1, 1, 0.7), (0, 1, round(0.8 * np.exp(-0.64), 4))]
    hard = select(score_threshold=0.15, soft_nms_sigma=0.5, use_hard_nms=True)
    assert rows(hard) == rows(select(score_threshold=0.15))


@pytest.mark.parametrize("option", ["use_combined_nms", "use_partitioned_nms", "use_static_shapes", "use_cpu_nms",
                                    "use_hard_nms"])
def test_ways_to_compute_agree(option):
    inside = BOXES[:, :3], SCORES[:, :3]
    selected = select(*inside, score_threshold=0.15, **{option: True})
    assert rows(selected) == [(0, 0, 0.9), (1, 1, 0.7), (0, 2, 0.3), (1, 2, 0.2)]
    np.testing.assert_allclose(selected.boxes[0], tf.gather(BOXES[0], [0, 1, 2, 2]))


def test_combined_without_a_window_clips_to_the_unit_square():
    boxes = BOXES + tf.constant([-0.25, 0, 0, 0])
    assert select(boxes, window=None, score_threshold=0.5, use_combined_nms=True).boxes.numpy().min() == 0.0


@pytest.mark.parametrize("options", [
    dict(iou_threshold=1.5), dict(soft_nms_sigma=-1.0), dict(max_detections_per_class=5),
    dict(max_detections_per_class=0), dict(use_combined_nms=True, use_class_agnostic_nms=True),
    dict(max_classes_per_detection=2, use_class_agnostic_nms=True), dict(use_combined_nms=True, soft_nms_sigma=0.5),
    dict(use_static_shapes=True, soft_nms_sigma=0.5)])
def test_what_cannot_be_is_refused_by_name(options):
    with pytest.raises(UserError, match=next(iter(options))):
        select(**options)


def brute_force(boxes, scores, options):
    """One image, from the definition; clipped to the unit square."""
    found = []
    for label in range(scores.shape[1]):
        kept = []
        for i in np.argsort(-scores[:, label], kind="stable"):
            overlaps = [iou(boxes[i], boxes[j]) for j in kept]
            if scores[i, label] > options.score_threshold and all(o <= options.iou_threshold for o in overlaps):
                kept.append(i)
        found += [(label, i) for i in kept[:options.max_detections_per_class]]
    clipped = np.clip(boxes, 0, 1)
    found = [(c, i) for c, i in found if np.prod(clipped[i, 2:] - clipped[i, :2]) > 0]
    return sorted(found, key=lambda f: -scores[f[1], f[0]])[:options.max_total_detections]


def iou(a, b):
    shared = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
    return shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from([0.0, 0.3]), st.sampled_from([1, 10]), st.integers(1, 6),
       st.sampled_from([5, 1000]))
def test_agrees_with_brute_force(seed, score_threshold, candidates, per_class, levels):
    """Also with ties (few score levels), and when the first look at the best candidates is not enough."""
    rng = np.random.default_rng(seed)
    corner, side = rng.uniform(-0.3, 1, (2, 12, 2)), rng.uniform(0.2, 0.6, (2, 12, 2))
    boxes = np.concatenate([corner, corner + side], -1).astype(np.float32)
    scores = (rng.integers(0, levels, (2, 12, 3)) / levels).astype(np.float32)
    options = NmsOptions(score_threshold, 0.3, per_class, 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nms, "_CANDIDATES_PER_DETECTION", candidates)
        selected = MulticlassNms(options)(boxes, scores, tf.repeat(WHOLE, 2, 0))
    for image in range(2):
        found = [(c, a) for c, a, _ in rows(selected, image)]
        assert found == brute_force(boxes[image], scores[image], options)
    assert (selected.boxes.numpy() >= 0).all() and (selected.boxes.numpy() <= 1).all()


def test_one_graph_for_any_batch_and_number_of_anchors():
    run = MulticlassNms(NmsOptions(0.15, max_detections_per_class=3, max_total_detections=4))
    graph = tf.function(run, input_signature=[tf.TensorSpec([None, None, 4]), tf.TensorSpec([None, None, 2]),
                                              tf.TensorSpec([None, 4])])
    both = graph(tf.repeat(BOXES, 2, 0), tf.repeat(SCORES, 2, 0), tf.repeat(WHOLE, 2, 0))
    assert rows(both, 1) == rows(graph(BOXES, SCORES, WHOLE)) == rows(select(score_threshold=0.15))
    assert graph.get_concrete_function().structured_outputs.boxes.shape.as_list() == [None, 4, 4]
