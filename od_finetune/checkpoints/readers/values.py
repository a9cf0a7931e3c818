"""What the readers of plain containers share: checked shapes, values read piece by piece, sentences for people."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from od_finetune.errors import UnreadableError

MAX_DIMENSIONS = 32  # numpy 1's limit
_PIECE = 1 << 20  # elements read at a time
# Names say little about a file, but a name that says something else than the content is worth a sentence.
_SUFFIXES = {
    ".h5": "Keras",
    ".hdf5": "Keras",
    ".keras": "Keras",
    ".pb": "TensorFlow graph",
    ".index": "TensorFlow checkpoint",
    ".pt": "PyTorch",
    ".pth": "PyTorch",
    ".safetensors": "safetensors",
    ".params": "MXNet",
    ".json": "TensorFlow.js",
}


class Stream(Protocol):
    """What values are read from: a binary file, a member of an archive."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; none at the end."""


def damaged(path: str, kind: str, what: str) -> UnreadableError:
    """The error for a file whose beginning says `kind` and whose rest does not hold it."""
    return UnreadableError(
        f"{path}: a damaged or incompletely copied {kind} file: {what}. Copy it again, or save it again where it was "
        "made."
    )


def name_notes(path: str, kind: str) -> tuple[str, ...]:
    """A sentence if the file's name says another format than its content; none otherwise."""
    suffix = os.path.splitext(path)[1].lower()
    said = _SUFFIXES.get(suffix)
    if said is None or said == kind:
        return ()
    return (f"{os.path.basename(path)} is named like a {said} file, but its content is {kind}: read by its content.",)


def head(path: str, size: int) -> bytes:
    """The first bytes of a regular file; nothing for anything else (a directory, a pipe, nothing at all)."""
    if not os.path.isfile(path):
        return b""
    with open(path, "rb") as file:
        return file.read(size)


def shape_problem(shape: object) -> str | None:
    """Why `shape` is no shape, in words, or None if it is one: at most 32 whole numbers from 0 up to 2**48."""
    if not isinstance(shape, (list, tuple)):
        return f"a shape is a {type(shape).__name__}, expected a list of sizes"
    if len(shape) > MAX_DIMENSIONS:
        return f"a shape has {len(shape)} dimensions, expected at most {MAX_DIMENSIONS}"
    for size in shape:
        if type(size) is not int or not 0 <= size < 1 << 48:
            return f"a shape has the size {brief(size)}, expected a whole number from 0 up"
    return None


def brief(value: object) -> str:
    """A few characters that show a number or a string out of a file; else the type's name."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (str, bytes)):
        return repr(value[:60]) + ("..." if len(value) > 60 else "")
    return f"a {type(value).__name__}"


def count(shape: Iterable[int]) -> int:
    """How many elements an array of this shape has; an exact integer."""
    return math.prod(shape)


def result_dtype(stored: np.dtype) -> np.dtype:
    """What values of a stored type are handed on as: what numpy lacks (bfloat16, float8) becomes float32, in the
    machine's byte order. Every value stays exactly what it was."""
    if stored.kind == "V":
        return np.dtype(np.float32)
    return stored.newbyteorder("=")


def native(array: np.ndarray) -> np.ndarray:
    """A copy in the machine's byte order."""
    return array.astype(array.dtype.newbyteorder("="))


def read_values(stream: Stream, stored: np.dtype, number: int) -> np.ndarray:
    """Reads `number` elements; memory is the result's and one piece's.

    Args:
      stream: stands at the first element. The caller has checked that so many elements are there.
      stored: type and byte order in the file.

    Returns:
      Array [number] of `result_dtype(stored)`.

    Raises:
      EOFError: the stream ends early.
    """
    values = np.empty(number, result_dtype(stored))
    for start in range(0, number, _PIECE):
        stop = min(start + _PIECE, number)
        values[start:stop] = np.frombuffer(read_exactly(stream, (stop - start) * stored.itemsize), stored)
    return values


def skip(stream: Stream, size: int) -> None:
    """Reads past `size` bytes, piece by piece. Raises EOFError where the stream ends early."""
    while size > 0:
        size -= len(read_exactly(stream, min(size, _PIECE)))


def read_exactly(stream: Stream, size: int) -> bytes:
    """`size` bytes. Raises EOFError where the stream ends early."""
    data = stream.read(size)
    if len(data) == size:
        return data
    parts = [data]  # a raw or compressed stream may hand out less at a time
    missing = size - len(data)
    while missing and parts[-1]:
        parts.append(stream.read(missing))
        missing -= len(parts[-1])
    if missing:
        raise EOFError(f"the data end {missing} bytes early")
    return b"".join(parts)


def open_at(path: str, offset: int) -> io.BufferedReader:
    """The file, opened for reading at a byte."""
    file = open(path, "rb")
    file.seek(offset)
    return file


def shown(items: Sequence[str], number: int = 5) -> str:
    """The first few of many names."""
    more = f" and {len(items) - number} more" if len(items) > number else ""
    return ", ".join(brief(item)[1:-1] for item in items[:number]) + more
