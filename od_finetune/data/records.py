"""Record files: which there are, and whether they are whole."""

from __future__ import annotations

import functools
import logging
import os
import struct
from typing import IO, NamedTuple

import tensorflow as tf

from od_finetune.data.checks import BadRecord
from od_finetune.errors import UserError

logger = logging.getLogger(__name__)

_HEADER = struct.Struct("<QI")  # length of the payload, masked CRC-32C of these eight bytes
_FOOTER_BYTES = 4  # masked CRC-32C of the payload


class RecordFile(NamedTuple):
    """A TFRecord file and how many records it holds."""

    path: str
    num_records: int


def find_files(patterns: list[str]) -> list[RecordFile]:
    """The files of all patterns (paths or globs), in the patterns' order, each pattern's files sorted.

    The records are counted by walking over their headers, so a file cut short is found before anything starts.
    An empty file is an error where it is named or is all there is; among the shards of a glob it only warns.

    Raises:
      UserError: a pattern that matches nothing, a file that is empty, cut short or no TFRecord file.
    """
    files: list[RecordFile] = []
    for pattern in patterns:
        paths = sorted(path for path in tf.io.gfile.glob(pattern) if not tf.io.gfile.isdir(path))
        if not paths:
            raise UserError(f"input_path {pattern!r} matches no file; expected TFRecord files (a path or a glob)")
        found = [RecordFile(path, count_records(path)) for path in paths]
        if not any(file.num_records for file in found):
            raise UserError(f"{paths[0]}: holds no record ({len(paths)} file(s) match input_path {pattern!r})")
        for file in found:
            if not file.num_records:
                logger.warning("%s holds no record", file.path)
        files += found
    return files


def count_records(path: str) -> int:
    """Number of records in a TFRecord file, walked over once as long as the file stays the same.

    Raises:
      BadRecord: naming file, record number and byte, where the file is cut short or no TFRecord file.
    """
    status = tf.io.gfile.stat(path)
    return _count(path, status.length, status.mtime_nsec)


@functools.lru_cache(maxsize=65536)
def _count(path: str, size: int, _mtime: int) -> int:
    count = position = 0
    with _open_unbuffered(path) as file:
        while position < size:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                raise BadRecord(_cut_short(path, count, position, size))
            length, checksum = _HEADER.unpack(header)
            if _masked_crc(header[:8]) != checksum:
                kind = "is no TFRecord file" if not count else f"is damaged in record {count} (byte {position})"
                raise BadRecord(f"{path}: {kind}: the length's checksum is wrong; expected TFRecord, uncompressed")
            position += _HEADER.size + length + _FOOTER_BYTES
            if position > size:
                raise BadRecord(_cut_short(path, count, position, size))
            file.seek(position)
            count += 1
    return count


def _open_unbuffered(path: str) -> IO[bytes]:
    """Where only headers are read, a buffer filled after each seek would read nearly the whole file."""
    if "://" in path:
        return tf.io.gfile.GFile(path, "rb")
    file = open(path, "rb", buffering=0)
    if hasattr(os, "posix_fadvise"):  # nor should the system read ahead
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    return file


def _cut_short(path: str, record: int, position: int, size: int) -> str:
    return (
        f"{path}: cut short in record {record}: the file has {size} bytes, expected at least {position}; "
        "copy or write the file again"
    )


def damaged_record(path: str) -> tuple[int, str] | None:
    """Number of the first record TensorFlow can't read, and its complaint; None if all of them can be read."""
    number = 0
    try:
        for _ in tf.data.TFRecordDataset(path):
            number += 1
    except tf.errors.DataLossError as error:
        return number, error.message
    return None


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)  # Castagnoli polynomial, bit-reversed
        table.append(byte)
    return table


_CRC_TABLE = _crc_table()


def _masked_crc(data: bytes) -> int:
    """CRC-32C as TFRecord stores it: rotated by 15 bits and offset, lest a checksum of checksums be trivial."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
