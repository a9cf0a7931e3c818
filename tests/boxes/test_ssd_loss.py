from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.boxes import losses, sampling
from od_finetune.boxes.coders import FasterRcnnCoder, MeanStddevCoder
from od_finetune.boxes.matching import ArgmaxMatcher
from od_finetune.boxes.similarity import iou_similarity
from od_finetune.boxes.ssd_loss import LossParts, SsdLossOptions, ssd_loss
from od_finetune.boxes.targets import TargetAssigner

ANCHORS = tf.constant([[0, 0, 1, 1], [0, 0, 0.6, 1], [2, 2, 3, 3], [4, 4, 5, 5], [6, 6, 7, 7]], tf.float32)
BOXES = tf.constant([[[0, 0, 1, 1], [0, 0, 0, 0]]], tf.float32)
CLASSES = tf.constant([[[0, 1], [0, 0]]], tf.float32)  # background first
WEIGHTS, VALID = tf.constant([[1.0, 0.0]]), tf.constant([[True, False]])
CODES = tf.constant([[[0.5, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]], tf.float32)
LOGITS = tf.constant([[[0, 0], [0, 0], [0, 2], [0, 3], [0, 1]]], tf.float32)
PARTS = LossParts(losses.SmoothL1LocalizationLoss(), losses.SigmoidClassificationLoss())
LN2 = np.log(2)


def softplus(x):
    return np.log1p(np.exp(x))


def loss(parts=PARTS, options=None, codes=CODES, coder=None):
    assigner = TargetAssigner(iou_similarity, ArgmaxMatcher(0.5), coder or MeanStddevCoder(1.0), 1.0, [0.0, 0.0])
    return ssd_loss(codes, LOGITS, ANCHORS, BOXES, CLASSES, WEIGHTS, VALID, assigner, parts,
                    options or SsdLossOptions())


def test_by_hand_and_normalised_by_the_number_of_matches():
    result = loss()
    # Two anchors match; the second regresses a height 0.4 larger.
    assert result.localization.numpy() == pytest.approx((0.125 + 0.08) / 2)
    negatives = softplus(2) + softplus(3) + softplus(1) + 3 * LN2
    assert result.classification.numpy() == pytest.approx((4 * LN2 + negatives) / 2)


def test_weights_code_size_and_no_normalisation():
    options = SsdLossOptions(normalize_by_num_matches=False, normalize_localization_by_codesize=True)
    result = loss(PARTS._replace(localization_weight=3.0, classification_weight=0.5), options)
    assert result.localization.numpy() == pytest.approx(3 * (0.125 + 0.08) / 4)
    assert result.classification.numpy() == pytest.approx(0.5 * 2 * loss().classification.numpy())


def test_miner_drops_easy_negatives():
    miner = sampling.HardExampleMiner(None, 0.99, sampling.MiningLoss.CLASSIFICATION, max_negatives_per_positive=1)
    result = loss(PARTS._replace(miner=miner))
    # Two positives allow two negatives: the ones with logits 3 and 2.
    assert result.classification.numpy() == pytest.approx((4 * LN2 + softplus(2) + softplus(3) + 2 * LN2) / 2)
    assert result.localization.numpy() == pytest.approx((0.125 + 0.08) / 2)


def test_sampler_takes_positives_only_if_told_so():
    result = loss(PARTS._replace(sampler=sampling.RandomExampleSampler(1.0)))
    assert result.classification.numpy() == pytest.approx(4 * LN2 / 2)


def test_overlap_losses_see_decoded_boxes():
    coder = FasterRcnnCoder()
    codes = tf.concat([coder.encode(BOXES[0, :1], ANCHORS[:2]), CODES[0, 2:]], axis=0)[None]
    result = loss(PARTS._replace(localization=losses.GiouLocalizationLoss()), codes=codes, coder=coder)
    assert result.localization.numpy() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("classification", [losses.SigmoidClassificationLoss(), losses.SoftmaxClassificationLoss()])
def test_expected_weights_of_pure_foreground_leave_the_plain_loss(classification):
    def foreground_only(class_targets):
        return tf.ones_like(class_targets[..., 0]), tf.zeros_like(class_targets[..., 0])

    plain = loss(PARTS._replace(classification=classification))
    weighted = loss(PARTS._replace(classification=classification, expected_weights=foreground_only))
    assert weighted.classification.numpy() == pytest.approx(plain.classification.numpy())


def test_expected_sampling_counts_each_class_of_an_anchor():
    result = loss(PARTS._replace(expected_weights=sampling.ExpectedSampling(1.0)))
    # Two of ten (anchor, class) pairs are foreground: the other eight weigh 2 / 8 in all.
    negatives = (softplus(2) + softplus(3) + softplus(1) + 5 * LN2) * 2 / 8
    assert result.classification.numpy() == pytest.approx((2 * LN2 + negatives) / 2, rel=1e-5)


def test_gradient_reaches_selected_anchors_only():
    miner = sampling.HardExampleMiner(2, 0.99, sampling.MiningLoss.CLASSIFICATION)
    with tf.GradientTape() as tape:
        tape.watch(LOGITS)
        result = loss(PARTS._replace(miner=miner))
    gradient = tape.gradient(result.classification, LOGITS).numpy()
    assert np.abs(gradient).sum(-1)[0].astype(bool).tolist() == [False, False, True, True, False]


def test_without_boxes_the_loss_is_finite():
    assigner = TargetAssigner(iou_similarity, ArgmaxMatcher(0.5), FasterRcnnCoder(), 1.0, [1.0, 0.0])
    miner = sampling.HardExampleMiner(None, 0.99, sampling.MiningLoss.CLASSIFICATION,
                                      max_negatives_per_positive=3, min_negatives_per_image=1)
    result = ssd_loss(CODES, LOGITS, ANCHORS, tf.zeros([1, 0, 4]), tf.zeros([1, 0, 2]), tf.zeros([1, 0]),
                      tf.zeros([1, 0], tf.bool), assigner, PARTS._replace(miner=miner), SsdLossOptions())
    assert result.localization.numpy() == 0.0
    assert result.classification.numpy() == pytest.approx(LN2 + softplus(3), rel=1e-5)  # the hardest one only
