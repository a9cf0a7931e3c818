"""PyTorch checkpoints (`torch.save`), read without PyTorch: the archive of 1.6 and later, and the stream before it.

The stream: four pickles (a magic number, the protocol, facts about the writer, the object), a fifth with the keys of
the storages, and for each its number of elements (int64) and its values, always little endian. Format:
`torch/serialization.py`. Nothing that a file names is imported or run, see `pickle_machine`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import numpy as np

from od_finetune.checkpoints import arrays
from od_finetune.checkpoints.readers import pickle_machine, torch_state, torch_zip, values
from od_finetune.checkpoints.readers.pickle_input import MalformedPickle, PickleInput
from od_finetune.checkpoints.readers.torch_objects import TorchMeaning
from od_finetune.checkpoints.readers.torch_tensors import Storage, Tensor
from od_finetune.errors import UserError

KIND = torch_zip.KIND
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_SLACK = 32 << 20  # bytes of memory that a pickle may take beyond its file's size
_OLD_TAR = (b"sys_info", b"pickle", b"storages", b"tensors")


@dataclasses.dataclass(frozen=True)
class _Opened:
    """What either container gives: the object, and the values of a storage as a stream that stands at the first."""

    kind: str
    root: object
    open_storage: Callable[[str], AbstractContextManager[io.BufferedIOBase]]


def sniff(path: str) -> bool:
    """Whether the file was written by `torch.save`, whole or not; by its content."""
    start = values.head(path, 512)
    return _is_stream(start) or _is_old_tar(start) or torch_zip.sniff(path)


def _is_stream(start: bytes) -> bool:
    magic = _MAGIC.to_bytes(10, "little") in start[:32] and start[:1] == b"\x80"
    return magic or start.startswith(b"L%d" % _MAGIC)


def _is_old_tar(start: bytes) -> bool:
    return start[257:262] == b"ustar" and start[:100].rstrip(b"\0").removeprefix(b"./") in _OLD_TAR


def open_torch(path: str) -> arrays.ArraySource:
    """Opens a PyTorch checkpoint and finds the model's weights in it.

    Raises:
      UnreadableError: the file is damaged or was cut short.
      UserError: it holds something else than tensors and containers of them, or no weights.
    """
    start = values.head(path, 512)
    if _is_old_tar(start):
        raise UserError(
            f"{path}: a PyTorch checkpoint in the tar format of 2016; load it with PyTorch and save it again: "
            "torch.save(torch.load(path), 'weights.pth')"
        )
    try:
        opened = _open_stream(path) if _is_stream(start) else _open_archive(path)
    except MalformedPickle as error:
        raise values.damaged(path, KIND, f"its pickle cannot be read: {error}") from None
    state = torch_state.find(opened.root, path)
    leaves = {**state.weights, **state.others}

    def load(name: str) -> np.ndarray:
        leaf = leaves[name]
        return _read(path, name, leaf, opened) if isinstance(leaf, Tensor) else values.native(leaf)

    return arrays.ArraySource(
        path=path,
        kind=opened.kind,
        shapes=_shapes(state.weights),
        load=load,
        layout=arrays.OIHW,
        others=_shapes(state.others),
        second_names=state.aliases,
        notes=values.name_notes(path, KIND) + state.notes,
    )


def _shapes(leaves: Mapping[str, torch_state.Leaf]) -> dict[str, tuple[int, ...]]:
    return {name: leaf.shape for name, leaf in leaves.items()}


def _open_archive(path: str) -> _Opened:
    archive = torch_zip.Archive(path)
    meaning = TorchMeaning(path, big_endian=_byte_order(archive) == "big")
    with archive.open("data.pkl") as stream:
        data = values.read_exactly(stream, archive.size("data.pkl"))
    source = PickleInput(io.BytesIO(data), len(data), os.path.getsize(path) + _SLACK)
    root = pickle_machine.load(source, meaning)
    for storage in meaning.storages.values():
        found, expected = archive.size(f"data/{storage.key}"), storage.number * storage.dtype.itemsize
        if found != expected:
            has = "is missing" if found is None else f"has {found} bytes"
            raise values.damaged(path, KIND, f"the storage data/{storage.key} {has}, expected {expected} bytes")

    @contextlib.contextmanager
    def open_storage(key: str):
        with archive.open(f"data/{key}") as stream:
            yield stream
            while stream.read(1 << 20):  # to its end, where the checksum is compared
                pass

    return _Opened("PyTorch checkpoint", root, open_storage)


def _byte_order(archive: torch_zip.Archive) -> str:
    """Archives before 2.1 do not say; PyTorch takes those for little endian."""
    if archive.size("byteorder") is None:
        return "little"
    with archive.open("byteorder") as stream:
        order = stream.read(16)
    if order not in (b"little", b"big"):
        raise values.damaged(archive.path, KIND, f"its byte order is {order!r}, expected 'little' or 'big'")
    return order.decode()


def _open_stream(path: str) -> _Opened:
    size = os.path.getsize(path)
    meaning = TorchMeaning(path)
    with open(path, "rb") as file:
        source = PickleInput(file, size, size + _SLACK)
        magic, protocol, _, root, keys = (pickle_machine.load(source, meaning) for _ in range(5))
    if magic != _MAGIC or protocol != _PROTOCOL:
        raise MalformedPickle(f"its protocol is {values.brief(protocol)}, expected {_PROTOCOL}")
    offsets = _storage_offsets(path, keys, meaning.storages, size - source.left)

    @contextlib.contextmanager
    def open_storage(key: str):
        with values.open_at(path, offsets[key]) as file:
            yield file

    return _Opened("PyTorch checkpoint (legacy stream)", root, open_storage)


def _storage_offsets(path: str, keys: object, storages: Mapping[str, Storage], offset: int) -> dict[str, int]:
    """Where each storage's values begin; every one is checked to lie within the file."""
    if not isinstance(keys, list) or {_key(key) for key in keys} != set(storages) or len(keys) != len(storages):
        raise MalformedPickle("its list of storages is not that of its tensors")
    size, offsets = os.path.getsize(path), {}
    with open(path, "rb") as file:
        for key in map(_key, keys):
            file.seek(offset)
            number = int.from_bytes(file.read(8), "little")
            storage = storages[key]
            offsets[key] = offset + 8
            offset += 8 + storage.number * storage.dtype.itemsize
            if offset > size:
                raise values.damaged(path, KIND, f"it has {size} bytes, its tensors take at least {offset}")
            if number != storage.number:
                what = f"the storage {key} says it has {number} elements, its tensors say {storage.number}"
                raise values.damaged(path, KIND, what)
    return offsets


def _key(key: object) -> str:
    return key if isinstance(key, str) else values.brief(key)


def _read(path: str, name: str, tensor: Tensor, opened: _Opened) -> np.ndarray:
    storage, number = tensor.storage, values.count(tensor.shape)
    itemsize = storage.dtype.itemsize
    if number == 0:
        return np.zeros(tensor.shape, values.result_dtype(storage.dtype))
    pairs = zip(tensor.shape, tensor.strides, strict=True)
    span = 1 + sum((size - 1) * stride for size, stride in pairs)
    if span < number and number * itemsize > os.path.getsize(path):
        raise UserError(f"{path}: {name} repeats {span} stored values to {number}; save what it was expanded from")
    try:
        with opened.open_storage(storage.key) as stream:
            values.skip(stream, (storage.start + tensor.offset) * itemsize)
            flat = values.read_values(stream, storage.dtype, span)
    except (EOFError, OSError) as error:
        raise values.damaged(path, KIND, f"the values of {name} cannot be read: {error}") from None
    if span == number and tensor.strides == _contiguous(tensor.shape):
        return flat.reshape(tensor.shape)
    strides = [stride * flat.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides).copy()


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of an array without gaps."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))
