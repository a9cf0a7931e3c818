"""Arrays, numbers and types as numpy pickles them (its bytes are in the pickle itself), rebuilt without running any
of it: only plain numbers' types are known."""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from od_finetune.checkpoints.readers import values
from od_finetune.checkpoints.readers.pickle_input import MalformedPickle
from od_finetune.checkpoints.readers.values import brief


@dataclasses.dataclass(frozen=True, slots=True)
class NumpyArray:
    """An array; None until its state was set."""

    array: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class NumpyType:
    """A type; setting its state sets its byte order."""

    dtype: np.dtype


def new_type(name: object, *flags: object) -> NumpyType:
    """`numpy.dtype(name, align, copy)`: a plain number's."""
    if not isinstance(name, str) or not re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16", name):
        raise MalformedPickle(f"it has a numpy array of type {brief(name)}, expected plain numbers")
    return NumpyType(np.dtype(name))


def new_array(*arguments: object) -> NumpyArray:
    """`numpy.core.multiarray._reconstruct(ndarray, (0,), b"b")`."""
    return NumpyArray()


def scalar(kind: object, data: object = b"") -> int | float | complex:
    """`numpy.core.multiarray.scalar(dtype, bytes)`."""
    return _values(kind, data, 1)[0].item()


def with_state(target: NumpyArray | NumpyType, state: object) -> NumpyArray | NumpyType:
    """What numpy's `__setstate__` makes: of an array (version, shape, type, column major, bytes), of a type (version,
    byte order, ...)."""
    if type(state) is not tuple:
        raise MalformedPickle("a numpy object's state is no tuple")
    if isinstance(target, NumpyType):
        if len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise MalformedPickle("a numpy type has no byte order")
        return NumpyType(target.dtype.newbyteorder(state[1]))
    if len(state) != 5 or (problem := values.shape_problem(state[1])) is not None:
        raise MalformedPickle(f"a numpy array cannot be: {problem if len(state) == 5 else 'its state is another'}")
    _, shape, kind, column_major, data = state
    flat = _values(kind, data, values.count(shape))
    return NumpyArray(flat.reshape(shape, order="F" if column_major else "C"))


def _values(kind: object, data: object, number: int) -> np.ndarray:
    if isinstance(data, str):
        data = data.encode("utf-8")  # Python 2's bytes that happened to be text
    if not isinstance(kind, NumpyType) or not isinstance(data, bytes):
        raise MalformedPickle("a numpy array has no type or no bytes")
    if len(data) != number * kind.dtype.itemsize:
        raise MalformedPickle(f"a numpy array of {number} values of type {kind.dtype} has {len(data)} bytes")
    return np.frombuffer(data, kind.dtype)
