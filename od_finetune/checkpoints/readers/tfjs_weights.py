"""The weights of a TensorFlow.js model: a manifest of groups, each a list of entries and the files (shards) that hold
their values one after the other, quantised or not. Format: `tfjs-core/src/io` (`WeightsManifestConfig`)."""

from __future__ import annotations

import bisect
import math
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from od_finetune.checkpoints.readers import json_file, values
from od_finetune.errors import UnreadableError, UserError

KIND = "TensorFlow.js"
STRING = "string"
_DTYPES = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "int32": np.dtype("<i4"),
    "uint8": np.dtype("u1"),
    "uint16": np.dtype("<u2"),
    "bool": np.dtype("?"),
    "complex64": np.dtype("<c8"),
}
_QUANTIZED = {"uint8": np.dtype("u1"), "uint16": np.dtype("<u2"), "float16": np.dtype("<f2")}
_MAX_STRINGS = 100_000
_PIECE = 1 << 20  # elements


class _Shards:
    """The files of a group as one run of bytes."""

    def __init__(self, files: list[str]) -> None:
        self._files = files
        self._ends: list[int] = []
        for file in files:
            self._ends.append(self.size + os.path.getsize(file))

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return self._ends[-1] if self._ends else 0

    def at(self, offset: int) -> _ShardStream:
        """Opens the run at a byte."""
        return _ShardStream(self._parts(offset))

    def _parts(self, offset: int) -> Iterator[tuple[str, int, int]]:
        """(file, first byte, bytes) from `offset` on."""
        for index in range(bisect.bisect_right(self._ends, offset), len(self._files)):
            start = self._ends[index - 1] if index else 0
            first = max(0, offset - start)
            yield self._files[index], first, self._ends[index] - start - first


class _ShardStream:
    """Reads on from file to file; none is left open."""

    def __init__(self, parts: Iterator[tuple[str, int, int]]) -> None:
        self._parts = parts
        self._file, self._first, self._left = "", 0, 0

    def read(self, size: int = -1, /) -> bytes:
        while not self._left:
            try:
                self._file, self._first, self._left = next(self._parts)
            except StopIteration:
                return b""
        with values.open_at(self._file, self._first) as file:
            data = file.read(min(size, self._left))
        if not data:
            raise EOFError(f"{self._file} became shorter")
        self._first += len(data)
        self._left -= len(data)
        return data


class Entry(NamedTuple):
    """One weight: where its values lie, how they are stored and what they mean.

    Attributes:
      dtype: what the values are, or "string".
      stored: the type in the file; of a quantised entry value = stored * scale + minimum.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    stored: np.dtype
    scale: float
    minimum: float
    shards: _Shards
    offset: int

    def load(self) -> np.ndarray:
        """The values. Raises UnreadableError where the files are damaged, UserError for strings."""
        if self.dtype == STRING:
            raise UserError(f"{self.path}: {self.name} holds strings, which are no weights")
        try:
            return self._values(self.shards.at(self.offset)).reshape(self.shape)
        except (EOFError, OSError) as error:
            what = f"the values of {self.name} cannot be read: {error}"
            raise values.damaged(self.path, KIND, what) from None

    def _values(self, stream: _ShardStream) -> np.ndarray:
        number, final = values.count(self.shape), values.result_dtype(_DTYPES[self.dtype])
        if (self.scale, self.minimum) == (1, 0):
            stored = values.read_values(stream, self.stored, number)
            return stored if stored.dtype == final else stored.astype(final)
        result = np.empty(number, final)
        for start in range(0, number, _PIECE):
            # In double precision, as JavaScript computes.
            piece = values.read_values(stream, self.stored, min(_PIECE, number - start)) * self.scale + self.minimum
            result[start : start + _PIECE] = piece if final.kind == "f" else np.round(piece)
        return result


def entries(path: str, manifest: object) -> dict[str, Entry]:
    """All entries of a manifest by name, in its order; the sizes of the files were compared with what it says.

    Args:
      path: of the JSON file, beside which the shards lie.

    Raises:
      UnreadableError: shards are missing or of another size, or the manifest is none.
      UserError: a shard's path leads out of the folder.
    """
    found: dict[str, Entry] = {}
    for group in _objects(path, manifest, "its weightsManifest"):
        names = group.get("paths")
        if not isinstance(names, list) or not names:
            raise values.damaged(path, KIND, "a group of its weightsManifest has no paths")
        files = [json_file.sibling(path, name) for name in names]
        if gone := [file for file in files if not os.path.isfile(file)]:
            raise json_file.missing(path, KIND, gone)
        shards, offset = _Shards(files), 0
        for weight in _objects(path, group.get("weights"), "the weights of a group"):
            entry, size = _entry(path, weight, shards, offset)
            if entry.name in found:
                raise values.damaged(path, KIND, f"it has {values.brief(entry.name)} twice")
            found[entry.name] = entry
            offset += size
        if offset != shards.size:
            what = f"the files {values.shown(names)} have {shards.size} bytes, their weights take {offset}"
            raise values.damaged(path, KIND, what)
    return found


def _objects(path: str, value: object, what: str) -> list[dict]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise values.damaged(path, KIND, f"{what} is no list of objects")
    return value


def _entry(path: str, weight: dict, shards: _Shards, offset: int) -> tuple[Entry, int]:
    """An entry and the bytes that it takes."""
    name, shape, dtype = weight.get("name"), weight.get("shape"), weight.get("dtype")

    def damaged(what: str) -> UnreadableError:
        return values.damaged(path, KIND, f"the weight {values.brief(name)} {what}")

    if not isinstance(name, str) or not name:
        raise damaged("has no name")
    if (problem := values.shape_problem(shape)) is not None:
        raise damaged(f"cannot be: {problem}")
    if dtype == STRING:
        size = _string_bytes(shards, offset, values.count(shape))
        if size is None:
            raise damaged("is of strings that are not there")
        return Entry(path, name, tuple(shape), STRING, np.dtype("u1"), 1, 0, shards, offset), size
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise damaged(f"is of type {values.brief(dtype)}, expected one of {', '.join(_DTYPES)}")
    stored, scale, minimum = _DTYPES[dtype], 1, 0
    if (quantization := weight.get("quantization")) is not None:
        said = quantization.get("dtype") if isinstance(quantization, dict) else None
        if not isinstance(said, str) or said not in _QUANTIZED or dtype not in ("float32", "int32"):
            raise damaged(f"is quantised in a way that is not known: {values.brief(said)}")
        stored = _QUANTIZED[said]
        if said != "float16":
            scale, minimum = quantization.get("scale"), quantization.get("min")
            if not all(type(x) in (int, float) and math.isfinite(x) and abs(x) < 1e38 for x in (scale, minimum)):
                raise damaged("is quantised without a scale and a minimum")
    size = values.count(shape) * stored.itemsize
    if offset + size > shards.size:
        raise damaged(f"takes {size} bytes, its files have {shards.size - offset} left")
    return Entry(path, name, tuple(shape), dtype, stored, scale, minimum, shards, offset), size


def _string_bytes(shards: _Shards, offset: int, number: int) -> int | None:
    """Bytes that so many strings take, each behind its length (uint32); None if they are not there."""
    if number > min(_MAX_STRINGS, (shards.size - offset) // 4):
        return None
    end = offset
    for _ in range(number):
        if end + 4 > shards.size:
            return None
        end += 4 + int.from_bytes(values.read_exactly(shards.at(end), 4), "little")
    return end - offset if end <= shards.size else None
