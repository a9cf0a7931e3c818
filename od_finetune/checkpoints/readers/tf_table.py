"""Checks a checkpoint's table before TensorFlow's own reader gets it: that one ends the process over a bad shape.

The index of a checkpoint (and a whole checkpoint of before 2017) is a table in LevelDB's format: blocks of sorted
entries, a block that lists them, and a footer that says where that is
(https://github.com/google/leveldb/blob/main/doc/table_format.md). Blocks may be packed with Snappy
(https://github.com/google/snappy/blob/main/format_description.txt). Checksums are left to TensorFlow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import tensor_bundle_pb2
from tensorflow.core.util import saved_tensor_slice_pb2

_FOOTER = 48
_TRAILER = 5  # after a block: how it is packed, and a checksum
_RAW, _SNAPPY = 0, 1
_MOST_INFLATED = 64  # Snappy's copies make at most 64 bytes of two
_MOST_BLOCK = 1 << 28
_MOST_DIMENSIONS = 32


class TableError(ValueError):
    """The table cannot be what TensorFlow wrote; says why."""


def check_index(path: str, shards: Sequence[str]) -> None:
    """Checks `<prefix>.index` against its data files: every tensor lies within them and has a size that fits.

    Raises:
      TableError: it does not.
    """
    sizes = [os.path.getsize(shard) for shard in shards]
    promised = [0] * len(sizes)
    try:
        for key, value in _entries(path, lambda _: True):
            name = key.decode(errors="replace")
            if not key:
                tensor_bundle_pb2.BundleHeaderProto.FromString(value)
                continue
            _check_entry(name, tensor_bundle_pb2.BundleEntryProto.FromString(value), sizes, promised)
    except DecodeError:
        raise TableError("an entry of its index is damaged") from None
    for there, end in zip(sizes, promised, strict=True):
        if end > there:
            raise TableError(f"the data files have {sum(sizes)} bytes, the index promises at least {sum(promised)}")


def check_old(path: str) -> None:
    """Checks a checkpoint that is one file. Raises TableError."""
    size = os.path.getsize(path)
    try:
        for key, value in _entries(path, lambda first: first):
            if key:
                continue
            meta = saved_tensor_slice_pb2.SavedTensorSlices.FromString(value).meta
            for tensor in meta.tensor:
                if _bytes(tensor.name, tensor.type, tensor.shape) > _MOST_INFLATED * size:
                    raise TableError(f"{tensor.name} has a shape that takes more than the file can hold")
    except DecodeError:
        raise TableError("its list of tensors is damaged") from None


def _check_entry(
    name: str, entry: tensor_bundle_pb2.BundleEntryProto, sizes: Sequence[int], promised: list[int]
) -> None:
    size = _bytes(name, entry.dtype, entry.shape)
    if len(entry.slices):  # the parts are entries of their own
        if size > sum(sizes):
            raise TableError(f"{name} takes {size} bytes, the data files have {sum(sizes)}")
        for part in entry.slices:
            if any(extent.start < 0 or extent.length < 0 for extent in part.extent):
                raise TableError(f"{name} has parts that cannot be")
        return
    if not 0 <= entry.shard_id < len(sizes):
        raise TableError(f"{name} is in data file {entry.shard_id} of {len(sizes)}")
    if min(entry.offset, entry.size) < 0:
        raise TableError(f"{name} lies at byte {entry.offset} and has {entry.size}")
    promised[entry.shard_id] = max(promised[entry.shard_id], entry.offset + entry.size)
    fixed = entry.dtype not in (tf.string.as_datatype_enum, tf.variant.as_datatype_enum)
    if (fixed and size != entry.size) or size > max(entry.size, 1):
        raise TableError(f"{name} has {entry.size} bytes, its shape takes {size}")


def _bytes(name: str, dtype: int, shape: Any) -> int:
    """The bytes that a tensor takes; of strings and variants (which have no size of their own) the number."""
    try:
        known = tf.as_dtype(dtype) if 0 < dtype < 100 else None
    except TypeError:
        known = None
    dimensions = [dimension.size for dimension in shape.dim]
    if known is None or known == tf.resource:
        raise TableError(f"{name} has the unknown type {dtype}")
    if shape.unknown_rank or len(dimensions) > _MOST_DIMENSIONS or any(size < 0 for size in dimensions):
        raise TableError(f"{name} has the shape {dimensions[:_MOST_DIMENSIONS]}, which cannot be")
    size = 1 if known in (tf.string, tf.variant) else known.size
    for dimension in dimensions:
        size *= dimension
    # With a zero among the sizes the product says nothing about the others, which TensorFlow multiplies one by one.
    if max(dimensions, default=0) >= 1 << 40 or size >= 1 << 60:
        raise TableError(f"{name} has the shape {dimensions}, which cannot be")
    return size


def _entries(path: str, wanted: Any) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of every entry in the blocks for which `wanted(whether it is the first)` holds."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < _FOOTER:
            raise TableError("it is too short for a table")
        file.seek(size - _FOOTER)
        footer = file.read()
        position = 0
        for _ in range(2):  # of the unused block about the table itself, then of the list of blocks
            offset, position = _varint(footer, position)
            length, position = _varint(footer, position)
        first = True
        for _, handle in _block_entries(_block(file, offset, length, size)):
            offset, position = _varint(handle, 0)
            length, _ = _varint(handle, position)
            _within(offset, length, size)
            if wanted(first):
                yield from _block_entries(_block(file, offset, length, size))
            first = False


def _within(offset: int, length: int, size: int) -> None:
    if length > _MOST_BLOCK or offset + length + _TRAILER > size - _FOOTER:
        raise TableError("a block lies beyond its end")


def _block(file: Any, offset: int, length: int, size: int) -> bytes:
    _within(offset, length, size)
    file.seek(offset)
    content = file.read(length + 1)
    if content[-1] == _SNAPPY:
        return _unpack(memoryview(content)[:-1])
    if content[-1] != _RAW:
        raise TableError(f"a block is packed in an unknown way ({content[-1]})")
    return content[:-1]


def _block_entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """A key is given by how much it shares with the one before, and the rest."""
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * restarts
    if len(block) < 4 or end < 0:
        raise TableError("a block is damaged")
    position, key = 0, b""
    while position < end:
        shared, position = _varint(block, position)
        own, position = _varint(block, position)
        length, position = _varint(block, position)
        if shared > len(key) or position + own + length > end:
            raise TableError("an entry lies beyond its block's end")
        key = key[:shared] + block[position : position + own]
        position += own
        yield key, block[position : position + length]
        position += length


def _varint(content: bytes | memoryview, position: int) -> tuple[int, int]:
    value = 0
    for index in range(position, min(position + 10, len(content))):
        value |= (content[index] & 0x7F) << 7 * (index - position)
        if content[index] < 0x80:
            return value, index + 1
    raise TableError("a number without end")


def _unpack(packed: memoryview) -> bytes:
    """Snappy's raw format: literals, and copies of what came before."""
    size, position = _varint(packed, 0)
    if size > min(_MOST_BLOCK, _MOST_INFLATED * len(packed)):
        raise TableError(f"a block would unpack from {len(packed)} to {size} bytes")
    output = bytearray()
    while position < len(packed):
        tag = packed[position]
        kind, position = tag & 3, position + 1
        if kind == 0:
            length = tag >> 2
            if length >= 60:
                length, position = _little(packed, position, length - 59)
            if position + length + 1 > len(packed):
                raise TableError("a packed block is damaged")
            output += packed[position : position + length + 1]
            position += length + 1
        else:
            if kind == 1:
                low, position = _little(packed, position, 1)
                length, back = (tag >> 2 & 7) + 4, (tag >> 5) << 8 | low
            else:
                back, position = _little(packed, position, 2 if kind == 2 else 4)
                length = (tag >> 2) + 1
            if not 0 < back <= len(output):
                raise TableError("a packed block is damaged")
            for _ in range(length):
                output.append(output[-back])
        if len(output) > size:
            raise TableError("a packed block is damaged")
    if len(output) != size:
        raise TableError("a packed block is damaged")
    return bytes(output)


def _little(content: memoryview, position: int, size: int) -> tuple[int, int]:
    if position + size > len(content):
        raise TableError("a packed block is damaged")
    return int.from_bytes(content[position : position + size], "little"), position + size
