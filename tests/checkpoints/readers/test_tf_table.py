"""Tables that TensorFlow's own reader would end the process over."""

import struct

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow.core.protobuf import tensor_bundle_pb2

from od_finetune.checkpoints.readers import tf_table
from od_finetune.checkpoints.source import open_source
from od_finetune.errors import UnreadableError, UserError

FOOTER_END = bytes.fromhex("57fb808b247547db")


def _crc(content):
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(number):
    content = b""
    while number > 127:
        content += bytes([number & 127 | 128])
        number >>= 7
    return content + bytes([number])


def _table(entries):
    """A table whose checksums are right."""
    content = b""

    def add(entries):
        nonlocal content
        body = b"".join(_varint(0) + _varint(len(key)) + _varint(len(value)) + key + value for key, value in entries)
        body += struct.pack("<II", 0, 1) + b"\0"
        handle = _varint(len(content)) + _varint(len(body) - 1)
        content += body + struct.pack("<I", _crc(body))
        return handle

    data, unused = add(entries), add([])
    index = add([(b"\xff", data)])
    return content + (unused + index).ljust(40, b"\0") + FOOTER_END


def _write(prefix, dtype=1, shape=(2,), offset=0, size=8, shard=0, crc=0):
    entry = tensor_bundle_pb2.BundleEntryProto(dtype=dtype, offset=offset, size=size, shard_id=shard, crc32c=crc)
    for length in shape:
        entry.shape.dim.add(size=length)
    header = tensor_bundle_pb2.BundleHeaderProto(num_shards=1)
    header.version.producer = 1
    table = _table([(b"", header.SerializeToString()), (b"a/weights", entry.SerializeToString())])
    (prefix.parent / f"{prefix.name}.index").write_bytes(table)
    (prefix.parent / f"{prefix.name}.data-00000-of-00001").write_bytes(bytes(64))
    return prefix


def test_sound_table(tmp_path):
    source = open_source(_write(tmp_path / "m", crc=_crc(bytes(8))))
    np.testing.assert_array_equal(source.read("a/weights"), [0, 0])


@pytest.mark.parametrize(
    "entry, match",
    [
        (dict(shape=(-1,)), r"the shape \[-1\], which cannot be"),
        (dict(shape=(1 << 40, 1 << 40)), "which cannot be"),
        (dict(shape=(1 << 62, 0)), "which cannot be"),
        (dict(shape=(1,) * 300), "which cannot be"),
        (dict(shape=(1 << 30,)), "has 8 bytes, its shape takes 4294967296"),
        (dict(dtype=7, shape=(1 << 33,)), "has 8 bytes, its shape takes 8589934592"),
        (dict(dtype=0), "unknown type 0"),
        (dict(dtype=99), "unknown type 99"),
        (dict(dtype=101), "unknown type 101"),
        (dict(size=-8), "lies at byte 0 and has -8"),
        (dict(shape=(100,), size=400), "have 64 bytes, the index promises at least 400"),
        (dict(offset=1 << 60), "have 64 bytes"),
        (dict(shard=7), "in data file 7 of 1"),
    ],
)
def test_entries_that_cannot_be(tmp_path, entry, match):
    with pytest.raises(UnreadableError, match=match):
        open_source(_write(tmp_path / "m", **entry))


def test_old_format(tmp_path):
    path = str(tmp_path / "old.ckpt")
    names = [f"scope/layer_{i}/weights" for i in range(200)]
    tf.raw_ops.Save(filename=path, tensor_names=names, data=[np.full((3, 5), i, np.float32) for i in range(200)])
    tf_table.check_old(path)
    assert sum(1 for _ in tf_table._entries(path, lambda first: True)) == 201
    with open(path, "r+b") as file:
        file.seek(-48, 2)
        file.write(b"\xff" * 10)
    with pytest.raises(UnreadableError, match="half-written or damaged"):
        open_source(path)


def test_snappy():
    # "abcd" * 5 + "x": a literal of four, a copy of sixteen from four back (two-byte offset), a literal of one.
    packed = bytes([21, 3 << 2]) + b"abcd" + bytes([(16 - 1) << 2 | 2, 4, 0, 0]) + b"x"
    assert tf_table._unpack(memoryview(packed)) == b"abcd" * 5 + b"x"
    # The same with a copy of eight (one-byte offset) twice.
    packed = bytes([21, 3 << 2]) + b"abcd" + bytes([(8 - 4) << 2 | 1, 4, (8 - 4) << 2 | 1, 8, 0]) + b"x"
    assert tf_table._unpack(memoryview(packed)) == b"abcd" * 5 + b"x"
    literal = bytes(range(200))
    assert tf_table._unpack(memoryview(bytes([200, 1, 60 << 2, 199]) + literal)) == literal
    short, long = bytes([4, 3 << 2]) + b"ab", bytes([9, 3 << 2]) + b"abcd"
    for wrong in (b"\xff\xff\xff\x7f\x00", bytes([4, 2, 9, 0]), short, long):
        with pytest.raises(tf_table.TableError):
            tf_table._unpack(memoryview(wrong))


@settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=40), st.integers(0, 30), st.integers(0, 30))
def test_any_entry_with_a_sound_checksum(tmp_path, noise, start, length):
    """TensorFlow's reader gets nothing that ends the process."""
    prefix = tmp_path / "m"
    _write(prefix, crc=_crc(bytes(8)))
    entry = tensor_bundle_pb2.BundleEntryProto(dtype=1, size=8, crc32c=_crc(bytes(8)))
    entry.shape.dim.add(size=2)
    content = entry.SerializeToString()
    content = content[:start] + noise + content[start + length :]
    table = _table([(b"", b"\x08\x01\x1a\x02\x08\x01"), (b"a/weights", content)])
    (tmp_path / "m.index").write_bytes(table)
    try:
        source = open_source(prefix)
        for name in (*source.names(), *source.other_entries()):
            source.read(name)
    except UserError:
        pass
