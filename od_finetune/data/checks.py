"""Checks inside the input graph whose failure names the record, and the way back to a readable message.

A check in a `tf.data` map can only fail as a TensorFlow error with our text somewhere inside. The text travels
between two marks, and `explain` takes it out again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from od_finetune.errors import UserError

_START, _END = "<bad record>", "</bad record>"


class BadRecord(UserError):
    """A record that can't be used."""


class Check(NamedTuple):
    """A condition, and the message for when it does not hold (computed only if one fails)."""

    holds: tf.Tensor  # bool scalar
    # string scalar: what was found, what was expected; computable whether the condition holds or not
    message: Callable[[], tf.Tensor]


def require(key: tf.Tensor, checks: list[Check], values: Any) -> Any:
    """Returns `values` (any structure of tensors), which nobody gets to see unless all checks hold.

    Fails with the first check that does not, its message preceded by `key` ("file:record source_id"). Works eagerly,
    in tf.function and in dataset functions. What leads up to `values` may be computed before a check fails, so it has
    to be computable; what is made of them later need not be.
    """

    def fail() -> tf.Tensor:
        message = checks[-1].message()
        for check in reversed(checks[:-1]):
            message = tf.where(check.holds, message, check.message())
        tf.debugging.Assert(False, [tf.strings.join([_START, key, ": ", message, _END])])
        return tf.constant(0)

    checked = tf.cond(tf.reduce_all([check.holds for check in checks]), lambda: tf.constant(0), fail)
    # A graph may otherwise run a resize of the image that could not be decoded first, and report that.
    with tf.control_dependencies([checked]):
        return tf.nest.map_structure(tf.identity, values)


def describe(*parts: tf.Tensor | str) -> tf.Tensor:
    """Joins text and scalar tensors into one string tensor."""
    return tf.strings.join([part if _is_text(part) else _number(part) for part in parts])


def _is_text(part: Any) -> bool:
    return isinstance(part, str) or part.dtype == tf.string


def _number(value: tf.Tensor) -> tf.Tensor:
    return tf.strings.as_string(value, precision=4) if value.dtype.is_floating else tf.strings.as_string(value)


def attempt(function: Callable[[tf.Tensor], Any], value: tf.Tensor, otherwise: Any) -> Any:
    """`function(value)`, or `otherwise` (same structure and types) if it fails: try and except as a graph.

    TensorFlow offers it only for data sets, hence the data set of one element; it costs some 30 microseconds.
    """
    attempted = tf.data.Dataset.from_tensors(value).map(function).ignore_errors()
    default = tf.data.Dataset.from_tensors(otherwise)
    return attempted.concatenate(default).take(1).get_single_element()


def explain(error: BaseException) -> BadRecord | None:
    """What a data set's error says about a record, without TensorFlow's wrapping; None if it is no such error."""
    if isinstance(error, BadRecord):
        return error
    text = str(error)
    found = re.search(re.escape(_START) + "(.*?)" + re.escape(_END), text, re.DOTALL)
    if found:
        # Assert prints strings C-escaped, its own newlines and quotes included
        return BadRecord(re.sub(r"\\(['\"\\])", r"\1", found.group(1)).replace("\\n", "\n"))
    if isinstance(error, tf.errors.DataLossError):
        what = re.sub(r"\{\{function_node.*?\}\}|\[Op:.*", "", text).strip()
        return BadRecord(f"a record file is damaged: {what}; write the file again or leave it out")
    return None
