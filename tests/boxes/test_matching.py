from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from od_finetune.boxes.matching import ArgmaxMatcher, BipartiteMatcher

SIMILARITY = np.array([[[0.9, 0.1, 0.45, 0.3], [0.2, 0.2, 0.6, 0.35]]], np.float32)
VALID = np.array([[True, True]])


def match(matcher, similarity, valid, must=None):
    return matcher(tf.constant(similarity), tf.constant(valid), must).numpy().tolist()


def test_thresholds_split_into_matched_ignored_unmatched():
    assert match(ArgmaxMatcher(0.5, 0.3), SIMILARITY, VALID) == [[0, -1, 1, -2]]
    between_negative = ArgmaxMatcher(0.5, 0.3, negatives_lower_than_unmatched=False)
    assert match(between_negative, SIMILARITY, VALID) == [[0, -2, 1, -1]]


def test_similarity_at_the_threshold_counts_as_matched():
    assert match(ArgmaxMatcher(0.5), np.array([[[0.5]]], np.float32), [[True]]) == [[0]]


def test_without_thresholds_every_anchor_is_matched():
    assert match(ArgmaxMatcher(None), SIMILARITY, VALID) == [[0, 1, 1, 1]]


def test_forced_match_overrides_thresholds_and_better_rows():
    similarity = np.array([[[0.9, 0.1], [0.8, 0.1], [0.0, 0.2]]], np.float32)
    valid = [[True, True, True]]
    assert match(ArgmaxMatcher(0.5), similarity, valid) == [[0, -1]]
    # Rows 0 and 1 both want column 0: the first gets it; row 2 gets column 1 in spite of the threshold.
    assert match(ArgmaxMatcher(0.5, force_match_for_each_row=True), similarity, valid) == [[0, 2]]


def test_padded_rows_neither_match_nor_force():
    similarity = np.array([[[0.6, 0.2], [0.9, 0.9]]], np.float32)
    assert match(ArgmaxMatcher(0.5, force_match_for_each_row=True), similarity, [[True, False]]) == [[0, -1]]
    assert match(BipartiteMatcher(), similarity, [[True, False]]) == [[0, -1]]


def test_rows_that_need_no_match_still_attract_by_threshold():
    similarity = np.array([[[0.6, 0.2], [0.1, 0.4]]], np.float32)
    matcher = ArgmaxMatcher(0.5, force_match_for_each_row=True)
    assert match(matcher, similarity, VALID, must=[[True, True]]) == [[0, 1]]
    assert match(matcher, similarity, VALID, must=[[False, False]]) == [[0, -1]]


@pytest.mark.parametrize("matcher", [ArgmaxMatcher(0.5, 0.3, False, True), ArgmaxMatcher(None), BipartiteMatcher()])
def test_no_boxes_leave_everything_unmatched(matcher):
    assert match(matcher, np.zeros((2, 0, 3), np.float32), np.zeros((2, 0), bool)) == [[-1] * 3] * 2
    assert match(matcher, np.ones((1, 2, 3), np.float32), [[False, False]]) == [[-1] * 3]


@pytest.mark.parametrize("thresholds", [(0.3, 0.5, True), (0.5, 0.5, False), (None, 0.5, True)])
def test_contradicting_thresholds_are_refused(thresholds):
    with pytest.raises(ValueError, match="threshold"):
        ArgmaxMatcher(*thresholds)


def greedy(similarity):
    """One image, the slow way."""
    matches = np.full(similarity.shape[1], -1)
    left = similarity.copy()
    for _ in range(min(left.shape)):
        row, column = np.unravel_index(np.argmax(left), left.shape)
        matches[column] = row
        left[row], left[:, column] = -np.inf, -np.inf
    return matches.tolist()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**16))
def test_bipartite_is_greedy_and_one_to_one(rows, columns, seed):
    similarity = np.random.default_rng(seed).integers(0, 6, (2, rows, columns)).astype(np.float32)
    assert match(BipartiteMatcher(), similarity, np.ones((2, rows), bool)) == [greedy(image) for image in similarity]
