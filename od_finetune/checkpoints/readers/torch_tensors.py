"""A PyTorch tensor as a file describes it: a view of a storage, which is a run of values of one type."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np

from od_finetune.checkpoints.readers import values
from od_finetune.checkpoints.readers.pickle_input import MalformedPickle

DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "uint8": np.dtype("u1"),
    "int8": np.dtype("i1"),
    "int16": np.dtype("<i2"),
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
    "uint16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
    "uint64": np.dtype("<u8"),
    "bool": np.dtype("?"),
    "complex64": np.dtype("<c8"),
    "complex128": np.dtype("<c16"),
}
STORAGES: dict[str, str] = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Storage:
    """A run of values that the file keeps under a key: `number` elements from element `start` on."""

    key: str
    dtype: np.dtype
    number: int
    start: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage; offset and strides in elements. Checked to lie within its storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def view(storage: Storage, part: object) -> Storage:
    """Part of a storage: (key, first element, elements); PyTorch before 0.4 saved such."""
    if type(part) is not tuple or len(part) != 3 or values.shape_problem(part[1:]) is not None:
        raise MalformedPickle("it has a view of a storage that is none")
    start, number = part[1:]
    if start + number > storage.number:
        raise MalformedPickle("it has a view of a storage that goes beyond it")
    return Storage(storage.key, storage.dtype, number, start)


def tensor(storage: object, offset: object, shape: object, strides: object) -> Tensor:
    """A tensor; raises MalformedPickle if it does not lie within its storage."""
    if not isinstance(storage, Storage):
        raise MalformedPickle("a tensor has no storage")
    problem = values.shape_problem(shape) or values.shape_problem(strides) or values.shape_problem([offset])
    if problem is not None:
        raise MalformedPickle(f"a tensor cannot be: {problem}")
    if len(shape) != len(strides):
        raise MalformedPickle(f"a tensor has {len(shape)} sizes and {len(strides)} strides")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if values.count(shape) and last >= storage.number:
        raise MalformedPickle(
            f"a tensor of shape {tuple(shape)} reaches element {last} of a storage of {storage.number}"
        )
    return Tensor(storage, offset, tuple(shape), tuple(strides))
