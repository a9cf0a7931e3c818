"""Regions: proposed, cropped, sampled, and what they cost."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.boxes import losses, roi_pool, two_stage_loss
from od_finetune.boxes.coders import FasterRcnnCoder
from od_finetune.boxes.matching import ArgmaxMatcher
from od_finetune.boxes.nms import MulticlassNms, NmsOptions
from od_finetune.boxes.postprocess import Postprocessor
from od_finetune.boxes.proposals import ProposalGenerator, Proposals, image_window, is_inside
from od_finetune.boxes.sampling import BalancedSampler
from od_finetune.boxes.scores import softmax_scores
from od_finetune.boxes.similarity import iou_similarity
from od_finetune.boxes.targets import TargetAssigner
from od_finetune.fields import Groundtruth

CODER = FasterRcnnCoder()
SEED = tf.constant([3, 4])
ANCHORS = tf.constant([[0.0, 0, 8, 8], [0, 0, 8, 9], [4, 4, 12, 12], [-4, 8, 4, 16]])


def generator(size: int) -> ProposalGenerator:
    options = NmsOptions(0.0, 0.7, size, size, change_coordinate_frame=False)
    return ProposalGenerator(CODER, MulticlassNms(options))


def groundtruth(boxes: list, classes: list[int], num_classes: int = 2) -> Groundtruth:
    number = len(boxes)
    no = tf.zeros([1, number], tf.bool)
    return Groundtruth(tf.constant([boxes], tf.float32), tf.one_hot([classes], num_classes), tf.ones([1, number]),
                       tf.constant([number]), no, no, no, tf.zeros([1, number]))  # fmt: skip


def test_proposals_are_clipped_distinct_and_padded():
    objectness = tf.constant([[[0.0, 3.0], [0, 4], [0, 2], [0, 1]]])
    proposed = generator(5)(tf.zeros([1, 4, 4]), objectness, ANCHORS, tf.constant([[0.0, 0, 10, 14]]))
    assert proposed.count.numpy() == [3]
    expected = [[0, 0, 8, 9], [4, 4, 10, 12], [0, 8, 4, 14], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(proposed.boxes[0], expected, atol=1e-5)


def test_anchors_that_stick_out():
    assert is_inside(ANCHORS, image_window(12, 12)).numpy().tolist() == [True, True, True, False]
    assert is_inside(ANCHORS, image_window(11, 12)).numpy().tolist() == [True, True, False, False]


def test_levels_follow_the_size():
    # Sides of 28, 56, 112, 224, 448 and 1000 pixels in an image of 1000 x 500.
    sides = tf.constant([28.0, 57, 113, 225, 448.1, 1000])
    boxes = tf.stack([0 * sides, 0 * sides, sides / 1000, sides / 500], axis=1)
    assert roi_pool.feature_levels(boxes, 4, (1000, 500)).numpy().tolist() == [0, 0, 1, 2, 3, 3]
    assert roi_pool.feature_levels(tf.zeros([1, 4]), 4, (1000, 500)).numpy().tolist() == [0]


def test_each_region_is_cropped_from_its_level_and_image():
    maps = [tf.fill([2, 8, 8, 1], 1.0), tf.fill([2, 4, 4, 1], 2.0), tf.fill([2, 2, 2, 1], 3.0)]
    maps = [each * tf.constant([1.0, 10.0])[:, None, None, None] for each in maps]
    boxes = tf.constant([[[0, 0, 1.0, 1], [0, 0, 0.1, 0.1]], [[0, 0, 0.3, 0.3], [0.5, 0.5, 1, 1]]])
    crops = roi_pool.crop(maps, boxes, 2, (448, 448))
    assert crops.shape == (4, 2, 2, 1)
    np.testing.assert_allclose(crops[:, 0, 0, 0], [3.0, 1.0, 10.0, 20.0])
    single = roi_pool.crop(maps[:1], boxes, 2, (448, 448))
    np.testing.assert_allclose(single[:, 0, 0, 0], [1.0, 1.0, 10.0, 10.0])


@pytest.mark.parametrize(("positive", "expected"), [(10, (2, 6)), (1, (1, 7)), (0, (0, 8))])
def test_balanced_sampling(positive, expected):
    is_positive = tf.constant([[True] * positive + [False] * (40 - positive)])
    candidates = tf.constant([[True] * 39 + [False]])
    chosen = BalancedSampler(8, 0.25)(candidates, is_positive, SEED)
    assert chosen.dtype == tf.bool and not chosen[0, 39]
    assert (int(np.sum(chosen & is_positive)), int(np.sum(chosen & ~is_positive))) == expected
    others = BalancedSampler(8, 0.25)(candidates, is_positive, SEED + 1)
    assert np.any(chosen != others)


def test_balanced_sampling_takes_what_there_is():
    chosen = BalancedSampler(8, 0.5)(tf.constant([[True, True, False]]), tf.constant([[True, False, True]]), SEED)
    assert chosen.numpy().tolist() == [[True, True, False]]


def test_first_stage_loss():
    matcher = ArgmaxMatcher(0.7, 0.3, force_match_for_each_row=True)
    loss = two_stage_loss.FirstStageLoss(
        TargetAssigner(iou_similarity, matcher, CODER), BalancedSampler(4, 0.5), losses.SmoothL1LocalizationLoss(),
        losses.SoftmaxClassificationLoss(), localization_weight=2.0, objectness_weight=3.0,
    )  # fmt: skip
    # The first anchor is matched, the second (IoU 8/9) too; the third is background by its IoU of 1/7, the fourth by 0.
    encodings = tf.concat([tf.fill([1, 1, 4], 1.0), tf.zeros([1, 3, 4])], axis=1)
    labelled = groundtruth([[0, 0, 8, 8]], [1])
    found = loss(encodings, tf.zeros([1, 4, 2]), ANCHORS, labelled)
    second = CODER.encode(labelled.boxes[0], ANCHORS[1:2])
    own = 4 * 0.5 + losses.SmoothL1LocalizationLoss()(tf.zeros([1, 1, 4]), second[None], tf.ones([1, 1]))[0, 0]
    np.testing.assert_allclose(found[two_stage_loss.RPN_LOCALIZATION], 2.0 * own / 4, rtol=1e-5)
    np.testing.assert_allclose(found[two_stage_loss.RPN_OBJECTNESS], 3.0 * np.log(2), rtol=1e-5)


def second_loss(size: int = 3) -> two_stage_loss.SecondStageLoss:
    assigner = TargetAssigner(iou_similarity, ArgmaxMatcher(0.5), CODER, unmatched_class_target=[1.0, 0.0, 0.0])
    return two_stage_loss.SecondStageLoss(
        assigner, BalancedSampler(size, 0.34), losses.SmoothL1LocalizationLoss(), losses.SoftmaxClassificationLoss(),
        localization_weight=2.0, classification_weight=3.0,
    )  # fmt: skip


def test_regions_are_sampled_in_order():
    boxes = tf.constant([[[0.0, 0, 8, 8], [20, 20, 30, 30], [0, 0, 8, 9], [40, 40, 50, 50], [60, 60, 70, 70]]])
    labelled = groundtruth([[0, 0, 8, 8]], [1])
    sampled = second_loss().sample(Proposals(boxes, tf.constant([4])), labelled)
    assert sampled.boxes.shape == (1, 3, 4) and sampled.count.numpy() == [3]
    rows = [boxes[0].numpy().tolist().index(box) for box in sampled.boxes[0].numpy().tolist()]
    assert rows == sorted(rows) and len({0, 2} & set(rows)) == 1 and 4 not in rows  # one positive, never padding
    few = second_loss(8).sample(Proposals(boxes[:, :2], tf.constant([2])), labelled)
    assert few.boxes.shape == (1, 8, 4) and few.count.numpy() == [2] and not np.any(few.boxes[0, 2:])


def test_second_stage_loss():
    proposed = Proposals(tf.constant([[[0.0, 0, 8, 8], [20, 20, 30, 30], [0, 0, 0, 0]]]), tf.constant([2]))
    # Of the encodings only those of the object's class count, for the matched region alone.
    encodings = tf.reshape(tf.range(3 * 2, dtype=tf.float32), [3, 2, 1]) * tf.ones([4])
    found = second_loss()(encodings, tf.zeros([3, 3]), proposed, groundtruth([[0, 0, 8, 8]], [1]))
    np.testing.assert_allclose(found[two_stage_loss.ROI_LOCALIZATION], 2.0 * 4 * 0.5 / 2, rtol=1e-5)
    np.testing.assert_allclose(found[two_stage_loss.ROI_CLASSIFICATION], 3.0 * 2 * np.log(3) / 2, rtol=1e-5)
    shared = second_loss()(encodings[:, :1], tf.zeros([3, 3]), proposed, groundtruth([[0, 0, 8, 8]], [1]))
    assert shared[two_stage_loss.ROI_LOCALIZATION] == 0


def test_detections_of_regions():
    options = NmsOptions(0.1, 0.5, 2, 4, change_coordinate_frame=True)
    proposed = Proposals(tf.constant([[[0.0, 0, 8, 8], [10, 10, 30, 30], [0, 0, 0, 0]]]), tf.constant([2]))
    logits = tf.constant([[[0.0, 9, 0], [0, 0, 9], [0, 9, 9]]])
    found = Postprocessor(MulticlassNms(options), softmax_scores).of_regions(
        tf.zeros([1, 3, 2, 4]), logits, proposed, CODER, tf.constant([[0.0, 0, 20, 40]])
    )
    assert found.num_detections.numpy() == [2] and sorted(found.classes[0, :2].numpy()) == [0, 1]
    by_class = dict(zip(found.classes[0].numpy(), found.boxes[0].numpy(), strict=True))
    np.testing.assert_allclose(by_class[1], [0.5, 0.25, 1.0, 0.75], atol=1e-6)
    np.testing.assert_allclose(found.raw_boxes[0, 0], [0, 0, 0.4, 0.2], atol=1e-6)
    assert found.multiclass_scores.shape == (1, 4, 3)
