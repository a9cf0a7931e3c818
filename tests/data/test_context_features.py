"""Context banks read from records."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.data.checks import explain
from od_finetune.data.context_features import ContextFeatures
from od_finetune.data.decoder import Decoded, Decoder

LENGTH, MAX_ROWS = 3, 2


def with_context(example: tf.train.Example, values: list[float], length: int | None = LENGTH) -> bytes:
    features = example.features.feature
    features["image/context_features"].float_list.value.extend(values)
    if length is not None:
        features["image/context_feature_length"].int64_list.value.append(length)
    return example.SerializeToString()


@pytest.fixture(scope="module")
def decode():
    decoder = Decoder(2, context=ContextFeatures(LENGTH, MAX_ROWS))

    @tf.function(autograph=False)
    def traced(serialized: tf.Tensor) -> Decoded:
        return decoder(serialized, tf.constant("a.record:7"))

    return lambda serialized: traced(tf.constant(serialized))


@pytest.mark.parametrize(("numbers", "rows"), [(0, 0), (3, 1), (6, 2), (9, 2)])
def test_rows_are_those_of_the_record_up_to_the_models_number(decode, example, numbers, rows):
    values = np.arange(numbers, dtype=np.float32)
    features, size = decode(with_context(example(), list(values))).context
    assert size.numpy() == rows
    assert features.shape == (MAX_ROWS, LENGTH)
    np.testing.assert_array_equal(features[:rows], values[: rows * LENGTH].reshape(rows, LENGTH))
    np.testing.assert_array_equal(features[rows:], 0)


def test_a_record_without_a_bank_has_an_empty_one(decode, example):
    features, size = decode(example().SerializeToString()).context
    assert size.numpy() == 0 and features.shape == (MAX_ROWS, LENGTH)


@pytest.mark.parametrize(
    ("values", "length", "message"),
    [
        ([1.0] * 4, 4, "image/context_feature_length is 4, expected 3, the model's context_config.context_feature_len"),
        ([1.0] * 4, 3, "4 values in image/context_features, expected rows of 3"),
        ([1.0] * 4, None, "4 values in image/context_features, expected rows of 3"),
        ([1.0, float("nan"), 0.0], 3, "image/context_features is nan at place 1, expected finite numbers"),
    ],
)
def test_what_is_no_bank_names_the_record(decode, example, values, length, message):
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        decode(with_context(example(), values, length))
    assert f"a.record:7 image0.png: {message}" in str(explain(error.value))
