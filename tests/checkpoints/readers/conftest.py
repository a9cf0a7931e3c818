"""The files that other programs wrote, and the function that their values are of."""

from __future__ import annotations

import importlib.util
import math
import struct
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def made():
    """The module that made the fixtures: its `value(name, shape)` and tables of shapes."""
    spec = importlib.util.spec_from_file_location("make_reader_fixtures", ROOT / "tools" / "make_reader_fixtures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fixtures():
    """The folder of the files."""
    return ROOT / "tests" / "checkpoints" / "fixtures"


def _number(value):
    return b"\x8a" + bytes([size := value.bit_length() // 8 + 1]) + value.to_bytes(size, "little", signed=True)


def _text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _tuple(values):
    return b"(" + b"".join(map(_number, values)) + b"t"


def _tensor(key, kind, number, shape, strides=None, offset=0):
    """The opcodes of one tensor, as torch.save writes them."""
    if strides is None:
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    where = b"ctorch\n%s\n" % kind.encode() + _text(key) + _text("cpu") + _number(number)
    view = _number(offset) + _tuple(shape) + _tuple(strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n((" + _text("storage") + where + b"tQ" + view + b"\x89}tR"


def _stream(root, storages=()):
    """A legacy stream: `root` is a pickle; storages are (key, number of elements, bytes)."""
    magic = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
    keys = b"\x80\x02](" + b"".join(_text(key) for key, *_ in storages) + b"e."
    values = b"".join(struct.pack("<q", number) + data for _, number, data in storages)
    return magic + b"\x80\x02M\xe9\x03.\x80\x02}." + root + keys + values


@pytest.fixture(scope="session")
def torch_bytes():
    """Opcodes to put PyTorch files together from: `text`, `number`, `tensor`, `stream`, `state` {name: opcodes}."""

    def state(entries):
        return b"\x80\x02}(" + b"".join(_text(name) + opcodes for name, opcodes in entries.items()) + b"u."

    return types.SimpleNamespace(text=_text, number=_number, tensor=_tensor, stream=_stream, state=state)
