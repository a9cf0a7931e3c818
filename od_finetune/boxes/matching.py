"""Matchers: which ground-truth box (row) each anchor (column) answers for.

A match is int32 `[B, A]`: the row index, -1 for unmatched (background), -2 for ignored.
"""

from __future__ import annotations

from typing import Protocol

import tensorflow as tf

UNMATCHED = -1
IGNORED = -2


class Matcher(Protocol):
    """`similarity` `[B, N, A]`, `valid` `[B, N]` (not padding), `must_match` `[B, N]` (default: the valid rows)."""

    def __call__(self, similarity: tf.Tensor, valid: tf.Tensor, must_match: tf.Tensor | None = None) -> tf.Tensor:
        """Returns int32 `[B, A]`."""


class ArgmaxMatcher:
    """Each anchor takes its most similar box; two thresholds then decide whether it is matched, unmatched, ignored.

    Similarity >= `matched_threshold`: matched. Below `unmatched_threshold`: unmatched, and between the two ignored
    (the other way round without `negatives_lower_than_unmatched`). `matched_threshold` None: always matched.
    `force_match_for_each_row`: each box also gets its most similar anchor, whatever the thresholds say; an anchor that
    several boxes want goes to the first of them. Ties go to the lower index.
    """

    def __init__(self, matched_threshold: float | None, unmatched_threshold: float | None = None,
                 negatives_lower_than_unmatched: bool = True, force_match_for_each_row: bool = False):
        if unmatched_threshold is None:
            unmatched_threshold = matched_threshold
        elif matched_threshold is None or unmatched_threshold > matched_threshold:
            raise ValueError(f"unmatched_threshold {unmatched_threshold} must not exceed matched_threshold "
                             f"{matched_threshold}")
        elif not negatives_lower_than_unmatched and unmatched_threshold == matched_threshold:
            raise ValueError("with negatives_lower_than_unmatched false, negatives lie between unmatched_threshold and "
                             f"matched_threshold: they cannot both be {matched_threshold}")
        self._matched, self._unmatched = matched_threshold, unmatched_threshold
        self._below = UNMATCHED if negatives_lower_than_unmatched else IGNORED
        self._between = IGNORED if negatives_lower_than_unmatched else UNMATCHED
        self._force = force_match_for_each_row

    def __call__(self, similarity: tf.Tensor, valid: tf.Tensor, must_match: tf.Tensor | None = None) -> tf.Tensor:
        """See `Matcher`; rows of weight 0 are valid but need not be force-matched (`must_match`)."""
        similarity = _with_a_row(similarity)
        valid = tf.pad(valid, [[0, 0], [0, 1]])
        must_match = valid if must_match is None else valid & tf.pad(must_match, [[0, 0], [0, 1]])
        similarity = tf.where(valid[..., None], similarity, similarity.dtype.min)
        matches = self._by_threshold(similarity, tf.reduce_any(valid, axis=1, keepdims=True))
        return self._forced(similarity, must_match, matches) if self._force else matches

    def _by_threshold(self, similarity: tf.Tensor, any_valid: tf.Tensor) -> tf.Tensor:
        matches = tf.argmax(similarity, axis=1, output_type=tf.int32)
        if self._matched is not None:
            best = tf.reduce_max(similarity, axis=1)
            matches = tf.where(best < self._matched, self._between, matches)
            matches = tf.where(best < self._unmatched, self._below, matches)
        # Without any box there is nothing to be ignored for: every anchor is background.
        return tf.where(any_valid, matches, UNMATCHED)

    @staticmethod
    def _forced(similarity: tf.Tensor, must_match: tf.Tensor, matches: tf.Tensor) -> tf.Tensor:
        favourite = tf.argmax(similarity, axis=2, output_type=tf.int32)
        wanted = tf.one_hot(favourite, tf.shape(similarity)[2], on_value=True, off_value=False, dtype=tf.bool)
        wanted &= must_match[..., None]
        first = tf.argmax(tf.cast(wanted, tf.int8), axis=1, output_type=tf.int32)
        return tf.where(tf.reduce_any(wanted, axis=1), first, matches)


class BipartiteMatcher:
    """Greedy one-to-one matching: the most similar pair first, then the best of what is left, for each valid box.

    Rows outside `must_match` match nothing. Ties go to the lower row, then the lower column.
    """

    def __call__(self, similarity: tf.Tensor, valid: tf.Tensor, must_match: tf.Tensor | None = None) -> tf.Tensor:
        """See `Matcher`."""
        similarity = _with_a_row(similarity)
        rows = valid if must_match is None else valid & must_match
        rows = tf.pad(rows, [[0, 0], [0, 1]])
        num_rows, num_columns = tf.shape(similarity)[1], tf.shape(similarity)[2]
        open_pairs = tf.where(rows[..., None], similarity, -float("inf"))
        matches = tf.fill([tf.shape(similarity)[0], num_columns], UNMATCHED)
        rounds = tf.reduce_max(tf.concat([tf.reduce_sum(tf.cast(rows, tf.int32), 1), [0]], 0))

        def take_best(index: tf.Tensor, pairs: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            flat = tf.reshape(pairs, [-1, num_rows * num_columns])
            best = tf.argmax(flat, axis=1, output_type=tf.int32)
            possible = tf.gather(flat, best, batch_dims=1) > -float("inf")
            row = tf.one_hot(best // num_columns, num_rows, True, False, dtype=tf.bool) & possible[:, None]
            column = tf.one_hot(best % num_columns, num_columns, True, False, dtype=tf.bool) & possible[:, None]
            found = tf.where(column, (best // num_columns)[:, None], found)
            pairs = tf.where(row[:, :, None] | column[:, None, :], -float("inf"), pairs)
            return index + 1, pairs, found

        loop = tf.while_loop(lambda index, *_: index < tf.minimum(rounds, num_columns), take_best,
                             (tf.constant(0), open_pairs, matches))
        return loop[2]


def _with_a_row(similarity: tf.Tensor) -> tf.Tensor:
    """One more (invalid) row, so that argmax has something to look at when there is no box at all."""
    return tf.pad(similarity, [[0, 0], [0, 1], [0, 0]])
