from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.boxes.sampling import (
    ExpectedSampling,
    HardExampleMiner,
    MiningLoss,
    RandomExampleSampler,
    ReweightUnmatched,
)

BOXES = tf.constant([[[0, 0, 1, 1], [0, 0, 1, 0.95], [0, 2, 1, 3], [0, 4, 1, 5], [0, 6, 1, 7]]], tf.float32)
MATCHES = tf.constant([[0, -1, -1, -1, -2]])
BOX_LOSSES = tf.constant([[5.0, 0.0, 0.0, 0.0, 0.0]])
CLASS_LOSSES = tf.constant([[1.0, 2.0, 3.0, 4.0, 0.5]])


def mine(**options):
    return HardExampleMiner(**options)(BOX_LOSSES, CLASS_LOSSES, BOXES, MATCHES).numpy()[0].tolist()


def test_hardest_without_near_duplicates():
    assert mine(num_hard_examples=3, iou_threshold=0.9, loss_type=MiningLoss.CLASSIFICATION) == [0, 1, 1, 1, 0]
    assert mine(num_hard_examples=4, iou_threshold=0.9, loss_type=MiningLoss.CLASSIFICATION) == [0, 1, 1, 1, 1]
    assert mine(num_hard_examples=4, iou_threshold=0.96, loss_type=MiningLoss.CLASSIFICATION) == [1, 1, 1, 1, 0]


def test_ranking_by_either_or_both_losses():
    assert mine(num_hard_examples=1, loss_type=MiningLoss.LOCALIZATION) == [1, 0, 0, 0, 0]
    assert mine(num_hard_examples=1, loss_type=MiningLoss.BOTH) == [1, 0, 0, 0, 0]
    assert mine(num_hard_examples=1, loss_type=MiningLoss.BOTH, box_weight=0.5) == [0, 0, 0, 1, 0]


def test_negatives_are_limited_by_positives():
    limited = dict(num_hard_examples=None, iou_threshold=1.0, loss_type=MiningLoss.CLASSIFICATION)
    assert mine(**limited, max_negatives_per_positive=1)[:4] == [1, 0, 0, 1]
    assert mine(**limited, max_negatives_per_positive=2)[:4] == [1, 0, 1, 1]
    assert mine(**limited, max_negatives_per_positive=1, min_negatives_per_image=3)[:4] == [1, 1, 1, 1]
    assert mine(**limited, min_negatives_per_image=1)[:4] == [1, 1, 1, 1]


def slow_mining(ranking, boxes, matches, limit, threshold, ratio, least):
    """One image, with the plain NMS op and a Python loop."""
    order = tf.image.non_max_suppression(boxes, ranking, limit, threshold).numpy()
    positives = sum(matches[i] >= 0 for i in order)
    allowed, negatives, selected = max(int(ratio * positives), least), 0, np.zeros(len(matches))
    for i in order:
        negatives += matches[i] == -1
        selected[i] = matches[i] >= 0 or negatives <= allowed
    return selected


@pytest.mark.parametrize("seed", range(3))
def test_a_batch_is_mined_as_each_image_would_be(seed):
    rng = np.random.default_rng(seed)
    corner, side = rng.uniform(0, 0.1, (3, 60, 2)), rng.uniform(0.4, 0.5, (3, 60, 2))
    boxes = np.concatenate([corner, corner + side], -1).astype(np.float32)
    ranking = rng.integers(0, 20, (3, 60)).astype(np.float32)  # with ties
    matches = rng.choice([-1, -1, 0, -2], (3, 60)).astype(np.int32)
    miner = HardExampleMiner(40, 0.9, MiningLoss.CLASSIFICATION, max_negatives_per_positive=2,
                             min_negatives_per_image=1)
    mined = tf.function(miner)(tf.zeros_like(ranking), ranking, boxes, matches)
    for image in range(3):
        expected = slow_mining(ranking[image], boxes[image], matches[image], 40, 0.9, 2, 1)
        assert 0 < expected.sum() < 60
        np.testing.assert_array_equal(mined[image], expected)


def test_random_sampler_keeps_positives_and_the_right_number_of_negatives():
    positive = tf.constant([[True] * 3 + [False] * 17, [False] * 20])
    candidates = tf.constant([[False] + [True] * 19] * 2)
    sampler = RandomExampleSampler(0.25)
    chosen = sampler(positive, candidates, seed=tf.constant([1, 2])).numpy()
    assert chosen[0, :3].tolist() == [0, 1, 1] and chosen[0, 3:].sum() == 6
    assert chosen[1].sum() == 0
    again = sampler(positive, candidates, seed=tf.constant([1, 2])).numpy()
    np.testing.assert_array_equal(chosen, again)
    assert {tuple(sampler(positive, candidates).numpy()[0]) for _ in range(5)} != {tuple(chosen[0])}


def test_expected_sampling_balances_background():
    targets = tf.constant([[[0.0, 1.0], [0.5, 0.5], [1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0]] * 4])
    foreground, background = ExpectedSampling(3.0, 2.0)(targets)
    np.testing.assert_allclose(foreground, [[1, 0.5, 0, 0], [0, 0, 0, 0]])
    beta = 3 * 1.5 / 2.5
    np.testing.assert_allclose(background, [[0, 0.5 * beta, beta, beta], [0.5] * 4], rtol=1e-6)
    # In all, background weighs three times what foreground does.
    assert background.numpy()[0].sum() == pytest.approx(3 * foreground.numpy()[0].sum())


def test_reweighting_leaves_matched_anchors_alone():
    targets = tf.constant([[[0.0, 1.0], [0.5, 0.5], [1.0, 0.0], [1.0, 0.0]]])
    own, background = ReweightUnmatched(3.0)(targets)
    np.testing.assert_allclose(own, [[1, 1, 3, 3]])
    assert not background.numpy().any()
