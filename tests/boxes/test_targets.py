from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.boxes.coders import KeypointCoder, MeanStddevCoder
from od_finetune.boxes.matching import ArgmaxMatcher
from od_finetune.boxes.similarity import ThresholdedIouSimilarity, iou_similarity
from od_finetune.boxes.targets import TargetAssigner

# IoU with the first box: 1, 0.5, 0.4, 0; the second box is padding that covers the last anchor.
ANCHORS = tf.constant([[0, 0, 1, 1], [0, 0, 0.5, 1], [0, 0, 0.4, 1], [2, 2, 3, 3]], tf.float32)
BOXES = tf.constant([[[0, 0, 1, 1], [2, 2, 3, 3]]], tf.float32)
CLASSES = tf.constant([[[0, 0, 1], [0, 1, 0]]], tf.float32)
VALID = tf.constant([[True, False]])


@pytest.fixture
def assigner():
    return TargetAssigner(iou_similarity, ArgmaxMatcher(0.5, 0.3), MeanStddevCoder(0.1), negative_class_weight=0.25,
                          unmatched_class_target=[1.0, 0.0, 0.0])


def test_targets_by_hand(assigner):
    targets = assigner.assign(ANCHORS, BOXES, CLASSES, tf.constant([[0.5, 1.0]]), VALID)
    assert targets.matches.numpy().tolist() == [[0, 0, -2, -1]]
    assert targets.class_targets.numpy().tolist() == [[[0, 0, 1], [0, 0, 1], [1, 0, 0], [1, 0, 0]]]
    assert targets.class_weights.numpy().tolist() == [[[0.5] * 3, [0.5] * 3, [0.0] * 3, [0.25] * 3]]
    assert targets.box_weights.numpy().tolist() == [[0.5, 0.5, 0.0, 0.0]]
    np.testing.assert_allclose(targets.box_targets, [[[0] * 4, [0, 0, 5, 0], [0] * 4, [0] * 4]], atol=1e-5)


def test_no_boxes_at_all(assigner):
    targets = assigner.assign(ANCHORS, tf.zeros([2, 0, 4]), tf.zeros([2, 0, 3]), tf.zeros([2, 0]),
                              tf.zeros([2, 0], tf.bool))
    assert targets.class_targets.numpy().tolist() == [[[1, 0, 0]] * 4] * 2
    assert targets.class_weights.numpy().tolist() == [[[0.25] * 3] * 4] * 2
    assert not targets.box_weights.numpy().any() and not targets.box_targets.numpy().any()


def test_the_batch_may_be_known_only_at_run_time(assigner):
    @tf.function(input_signature=[tf.TensorSpec([None, None, 4]), tf.TensorSpec([None, None, 3]),
                                  tf.TensorSpec([None, None]), tf.TensorSpec([None, None], tf.bool)])
    def assign(boxes, classes, weights, valid):
        return assigner.assign(ANCHORS, boxes, classes, weights, valid)

    weights = tf.constant([[0.5, 1.0]])
    for ours, eager in zip(assign(BOXES, CLASSES, weights, VALID),
                           assigner.assign(ANCHORS, BOXES, CLASSES, weights, VALID), strict=True):
        np.testing.assert_array_equal(ours, eager)


def test_scores_come_from_the_background_column():
    assigner = TargetAssigner(ThresholdedIouSimilarity(0.45), ArgmaxMatcher(0.1), MeanStddevCoder())
    boxes = tf.constant([[[0, 0, 1, 1], [0, 0, 1, 1]]], tf.float32)
    classes = tf.constant([[[0.6, 0.4], [0.2, 0.8]]])
    targets = assigner.assign(ANCHORS, boxes, classes, tf.ones([1, 2]), tf.ones([1, 2], tf.bool))
    assert targets.matches.numpy().tolist() == [[1, 1, -1, -1]]


def test_keypoints_follow_their_box():
    assigner = TargetAssigner(iou_similarity, ArgmaxMatcher(0.9), KeypointCoder(1))
    keypoints = tf.constant([[[[0.75, 0.5]], [[0, 0]]]])
    targets = assigner.assign(ANCHORS, BOXES, CLASSES, tf.ones([1, 2]), VALID, keypoints)
    np.testing.assert_allclose(targets.box_targets[0, 0], [0, 0, 0, 0, 2.5, 0], atol=1e-5)
    assert not np.isnan(targets.box_targets).any()
