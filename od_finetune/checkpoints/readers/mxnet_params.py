"""MXNet's and Gluon's `.params`: a list of arrays and a list of their names, written by `mx.nd.save`.

    uint64 0x112, uint64 0, uint64 arrays, array ..., uint64 names (0 or as many), {uint64 length, bytes} ...

An array is, all little endian: uint32 magic of its version; int32 storage type and, of a sparse one, the shape of its
values (versions 2 and 3); shape; context (int32 device, int32 number); int32 type; of a sparse one int32 type and
shape of each index; the values; the indices. A shape is int32 dimensions and int64 sizes; before version 1, where the
magic's place has the number of dimensions, sizes are uint32. Only the context's device differs between machines, and
it does not matter here. Format: MXNet's `src/ndarray/ndarray.cc`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from typing import BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from od_finetune.checkpoints import arrays
from od_finetune.checkpoints.readers import values
from od_finetune.errors import UserError

KIND = "MXNet"
_START = struct.pack("<QQ", 0x112, 0)
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_INDICES = {0: 0, 1: 1, 2: 2}  # by storage type: dense, row sparse, compressed sparse rows
_SPARSE = {1: "row sparse", 2: "sparse in compressed rows"}
_DTYPES = {
    number: np.dtype(name)
    for number, name in enumerate(["<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8", "?", "<i2", "<u2", "<u4", "<u8"])
} | {12: np.dtype(ml_dtypes.bfloat16)}
_MAX_ARRAYS = 100_000
_MAX_NAME = 4096


class _Array(NamedTuple):
    """Where an array's values lie; `dtype` is None for one that was saved before it had any."""

    shape: tuple[int, ...]
    dtype: np.dtype | None
    offset: int
    storage: int = 0


def sniff(path: str) -> bool:
    """Whether the file begins as a list of MXNet's arrays does."""
    return values.head(path, len(_START)) == _START


def open_params(path: str) -> arrays.ArraySource:
    """Opens a file of named arrays. A symbol's `arg:` and `aux:` are taken off its names.

    Raises:
      UnreadableError: the file is damaged or was cut short.
      UserError: its arrays have no names.
    """
    with open(path, "rb") as file:
        named = _Scan(path, file).named_arrays()
    if not named:
        raise UserError(f"{path}: its arrays have no names; save a dict of them, or block.save_parameters(...)")
    aliases = _without_kinds(named)
    found = {aliases.get(name, name): array for name, array in named.items()}
    empty = [name for name, array in found.items() if array.dtype is None]
    dense = {name: array.shape for name, array in found.items() if array.dtype is not None and array.storage == 0}
    sparse = {name: array.shape for name, array in found.items() if array.storage != 0 and array.dtype is not None}

    def load(name: str) -> np.ndarray:
        return _read(path, name, found[name])

    notes = values.name_notes(path, KIND)
    if empty:
        notes += (f"{len(empty)} entries were saved before they had values: {values.shown(empty)}",)
    return arrays.ArraySource(
        path=path,
        kind="MXNet parameters",
        shapes=dense,
        load=load,
        layout=arrays.OIHW,
        others=sparse,
        second_names=aliases,
        notes=notes,
    )


def _without_kinds(named: Mapping[str, _Array]) -> dict[str, str]:
    """Name with `arg:` or `aux:` -> name without, if all have one and they stay different."""
    short = {name: name[4:] for name in named if name[:4] in ("arg:", "aux:") and len(name) > 4}
    return short if len(short) == len(named) == len(set(short.values())) else {}


def _read(path: str, name: str, array: _Array) -> np.ndarray:
    if array.storage != 0:
        raise UserError(f"{path}: {name} is {_SPARSE[array.storage]}, which cannot be read; save it as a dense array")
    try:
        with values.open_at(path, array.offset) as file:
            return values.read_values(file, array.dtype, values.count(array.shape)).reshape(array.shape)
    except (EOFError, OSError) as error:
        raise values.damaged(path, KIND, f"the values of {name} cannot be read: {error}") from None


class _Scan:
    """Reads what describes the arrays, past their values; every length is compared with the bytes that are left."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._size = os.path.getsize(path)
        self._at = 0

    def named_arrays(self) -> dict[str, _Array]:
        """Arrays by name in the order of the file; none if the file has no names."""
        self._take(len(_START))
        arrays_ = [self._array(index) for index in range(self._count("arrays"))]
        names = [self._name() for _ in range(self._count("names"))]
        if self._at != self._size:
            raise self._damaged(f"{self._size - self._at} bytes follow its last name")
        if names and len(names) != len(arrays_):
            raise self._damaged(f"it has {len(arrays_)} arrays and {len(names)} names")
        named = dict(zip(names, arrays_, strict=False))
        if len(named) != len(names):
            raise self._damaged("two of its arrays have the same name")
        return named

    def _damaged(self, what: str) -> UserError:
        return values.damaged(self._path, KIND, what)

    def _take(self, size: int) -> bytes:
        self._at += size
        if self._at > self._size:
            raise self._damaged(f"it has {self._size} bytes, what it describes takes at least {self._at}")
        return self._file.read(size)

    def _skip(self, size: int) -> None:
        self._at += size
        if self._at > self._size:
            raise self._damaged(f"it has {self._size} bytes, what it describes takes at least {self._at}")
        self._file.seek(self._at)

    def _int(self) -> int:
        return int.from_bytes(self._take(4), "little", signed=True)

    def _count(self, what: str) -> int:
        number = int.from_bytes(self._take(8), "little")
        if number > _MAX_ARRAYS:
            raise self._damaged(f"it says that it has {number} {what}, expected at most {_MAX_ARRAYS}")
        return number

    def _name(self) -> str:
        length = int.from_bytes(self._take(8), "little")
        if length > _MAX_NAME:
            raise self._damaged(f"a name has {length} bytes, expected at most {_MAX_NAME}")
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self._damaged("a name is no UTF-8") from None

    def _array(self, index: int) -> _Array:
        magic = self._int() & 0xFFFFFFFF
        storage = self._int() if magic in (_V2, _V3) else 0
        if storage not in _INDICES:
            raise self._damaged(f"array {index} has storage type {storage}, expected one of {sorted(_INDICES)}")
        indices = _INDICES[storage]
        stored = self._shape(self._int()) if indices else None
        if magic in (_V1, _V2, _V3):
            dimensions = self._int()
            shape = self._shape(dimensions) if dimensions != -1 or magic != _V3 else None
        else:
            shape = self._shape(magic, "I")
        # Without numpy's semantics (version 3) no dimensions mean that the shape was not known yet.
        if shape is None or (not shape and magic != _V3):
            return _Array((), None, self._at)
        self._take(8)  # context
        parts = [(self._dtype(index), shape if stored is None else stored)]
        parts += [(self._dtype(index), self._shape(self._int())) for _ in range(indices)]
        offset = self._at
        for dtype, size in parts:
            self._skip(dtype.itemsize * values.count(size))
        return _Array(shape, parts[0][0], offset, storage)

    def _dtype(self, index: int) -> np.dtype:
        flag = self._int()
        if flag not in _DTYPES:
            raise self._damaged(f"array {index} is of type {flag}, expected one of {sorted(_DTYPES)}")
        return _DTYPES[flag]

    def _shape(self, dimensions: int, code: str = "q") -> tuple[int, ...]:
        if not 0 <= dimensions <= values.MAX_DIMENSIONS:
            raise self._damaged(f"an array has {dimensions} dimensions, expected at most {values.MAX_DIMENSIONS}")
        shape = struct.unpack(f"<{dimensions}{code}", self._take(dimensions * struct.calcsize(f"<{code}")))
        if (problem := values.shape_problem(shape)) is not None:
            raise self._damaged(problem)
        return shape
