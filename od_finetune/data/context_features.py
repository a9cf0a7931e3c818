"""A record's context bank: features of objects in other images of the same camera (Context R-CNN, arXiv:1912.03538)."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from od_finetune.data.checks import Check, describe
from od_finetune.data.columns import first_true, pick
from od_finetune.fields import CONTEXT_KEY, CONTEXT_LENGTH_KEY, ContextBank

TYPES = {CONTEXT_KEY: tf.float32, CONTEXT_LENGTH_KEY: tf.int64}


class ContextFeatures:
    """How records hold their banks.

    Args:
      length: of a row, what the model's `context_feature_length` is.
      max_rows: the first so many of a record are taken, what the model's `max_num_context_features` is.
    """

    def __init__(self, length: int, max_rows: int):
        self.length, self.max_rows = length, max_rows

    def decode(self, features: Mapping[str, tf.Tensor]) -> tuple[ContextBank, list[Check]]:
        """The bank of one image, `[max_rows, length]` and how many of the rows are the record's (0 where it has none),
        and the checks that it is one.

        The rest is zeros: all of it goes into the statistics of the batch norms that project it while training, and so
        it does in the OD API. Without, a batch of records that have no bank would leave them with none.

        Args:
          features: parsed, of `TYPES`.
        """
        values, lengths = features[CONTEXT_KEY], features[CONTEXT_LENGTH_KEY]
        count = tf.size(values)
        stated = tf.concat([lengths, [self.length]], axis=0)[0]
        rows = tf.minimum(count // self.length, self.max_rows)
        bank = tf.reshape(values[: rows * self.length], [-1, self.length])
        bank = tf.ensure_shape(tf.pad(bank, [[0, self.max_rows - rows], [0, 0]]), [self.max_rows, self.length])
        not_finite = tf.logical_not(tf.math.is_finite(values))
        expected = f"expected {self.length}, the model's context_config.context_feature_length"
        checks = [
            Check(tf.equal(stated, self.length), lambda: describe(CONTEXT_LENGTH_KEY, " is ", stated, f", {expected}")),
            Check(
                tf.equal(count % self.length, 0),
                lambda: describe(count, f" values in {CONTEXT_KEY}, expected rows of {self.length}"),
            ),
            Check(
                tf.logical_not(tf.reduce_any(not_finite)),
                lambda: describe(
                    f"{CONTEXT_KEY} is ", pick(values, not_finite), " at place ", first_true(not_finite),
                    ", expected finite numbers",
                ),
            ),
        ]  # fmt: skip
        return ContextBank(bank, rows), checks
