"""Walks protobuf's wire format in place, so that a file's messages need not be unpacked to look at a few of them.

Format: https://protobuf.dev/programming-guides/encoding. A parsed message takes many times its size in memory where it
consists of many small ones, and a damaged file may claim anything; walking takes none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class Field(NamedTuple):
    """One field: where its bytes are (of a varint: its value as `start`)."""

    number: int
    kind: int  # VARINT, FIXED64, BYTES or FIXED32
    start: int
    end: int


class WireError(ValueError):
    """The bytes are no message; says where."""


def fields(buffer: memoryview, start: int, end: int) -> Iterator[Field]:
    """The fields of the message in `buffer[start:end]`, in order.

    Raises:
      WireError: a field has no valid tag, or goes beyond the message's end.
    """
    position = start
    while position < end:
        at = position
        tag, position = _varint(buffer, position, end)
        number, kind = tag >> 3, tag & 7
        if not number:
            raise WireError(f"at byte {at}: no valid field")
        if kind == VARINT:
            value, position = _varint(buffer, position, end)
            yield Field(number, kind, value, value)
            continue
        if kind == BYTES:
            size, position = _varint(buffer, position, end)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise WireError(f"at byte {at}: a field of unknown kind {kind}")
        if size > end - position:
            raise WireError(f"at byte {at}: a field of {size} bytes, of which {end - position} are there")
        yield Field(number, kind, position, position + size)
        position += size


def _varint(buffer: memoryview, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    for index in range(position, min(end, position + 10)):
        byte = buffer[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, index + 1
        shift += 7
    raise WireError(f"at byte {position}: a number without end")
