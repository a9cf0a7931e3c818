"""Run as a process of its own: lists an HDF5 file and copies its arrays out as raw bytes.

HDF5's C library may crash, spin or ask for any amount of memory on a damaged file. Here that ends this process only;
`hdf5.py`, which starts it, makes a clear error of it. Usage: `python -m ...hdf5_child FILE RAW_COPY`; stdout gets one
JSON object, `{"arrays": [[path, shape, dtype, offset], ...], "attributes": {path: {name: text or [text]}}}`, or
`{"refused": reason}`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

_MOST_OBJECTS = 100_000
_MOST_INFLATED = 50  # declared bytes per byte of file; float weights compress to a tenth at most
_SLACK = 1 << 20
_FILTERS = {1, 2, 3, 32000}  # deflate, shuffle, checksum, LZF: those that need no plug-in
_TEXT_ATTRIBUTES = ("layer_names", "weight_names", "model_config", "name", "keras_version", "backend")


class Refused(Exception):
    """The file has what no weight file has; says what."""


def main(path: str, raw: str) -> dict[str, Any]:
    """Copies every numeric array of `path` to the file `raw`."""
    size = os.path.getsize(path)
    _limit_memory(size)
    arrays: list[list[Any]] = []
    attributes: dict[str, dict[str, Any]] = {}
    offset = 0
    with h5py.File(path, "r") as file, open(raw, "wb") as output:
        for name, item in _objects(file):
            texts = _texts(item)
            if texts:
                attributes[name] = texts
            if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "fiub" or item.shape is None:
                continue
            _check(name, item, offset, size)
            array = np.ascontiguousarray(item[()])
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            arrays.append([name, list(array.shape), array.dtype.str, offset])
            array.tofile(output)
            offset += array.nbytes
    return {"arrays": arrays, "attributes": attributes}


def _objects(root: h5py.Group) -> Iterator[tuple[str, Any]]:
    """Every group and dataset once, with its path, by hard links only."""
    seen: set[int] = set()
    open_groups = [("", root)]
    while open_groups:
        path, group = open_groups.pop()
        yield path, group
        for name in group:
            inner = f"{path}/{name}" if path else name
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                target = getattr(link, "filename", None) or getattr(link, "path", "")
                raise Refused(f"{inner} is a {type(link).__name__} (to {target!r}), not data of this file")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                raise Refused(f"{inner} is an object that has another name as well")
            seen.add(address)
            if len(seen) > _MOST_OBJECTS:
                raise Refused(f"it has more than {_MOST_OBJECTS} objects")
            if isinstance(item, h5py.Group):
                open_groups.append((inner, item))
            else:
                yield inner, item


def _check(name: str, item: h5py.Dataset, before: int, size: int) -> None:
    if item.is_virtual or item.external:
        raise Refused(f"{name} has its values in other files")
    filters = item.id.get_create_plist()
    used = {filters.get_filter(index)[0] for index in range(filters.get_nfilters())}
    if used - _FILTERS:
        raise Refused(f"{name} is packed with the filters {sorted(used - _FILTERS)}, which are not known")
    declared = int(item.dtype.itemsize)
    for length in item.shape:
        declared *= int(length)
    stored = int(item.id.get_storage_size())
    if not used and declared > stored:
        raise Refused(f"{name} has shape {list(item.shape)}, which takes {declared} bytes, of which {stored} are there")
    if before + declared > _MOST_INFLATED * size + _SLACK:
        raise Refused(f"{name} has shape {list(item.shape)}, which takes {declared} bytes, in a file of {size}")


def _texts(item: Any) -> dict[str, Any]:
    """The attributes that Keras keeps names in; long lists are split over `layer_names0`, `layer_names1`, ..."""
    found: dict[str, Any] = {}
    for attribute in item.attrs:
        if attribute.rstrip("0123456789") not in _TEXT_ATTRIBUTES:
            continue
        value = item.attrs[attribute]
        if isinstance(value, np.ndarray):
            found[attribute] = [_text(entry) for entry in value.reshape(-1)]
        else:
            found[attribute] = _text(value)
    return found


def _text(value: Any) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)


def _limit_memory(size: int) -> None:
    """To what this process has now, and what a file of `size` bytes can need."""
    try:
        import resource
    except ImportError:  # no such limits on Windows
        return
    with open("/proc/self/statm", encoding="ascii") if os.path.exists("/proc/self/statm") else open(os.devnull) as file:
        pages = file.read().split()
    now = int(pages[0]) * os.sysconf("SC_PAGE_SIZE") if pages else 1 << 30
    limit = now + (_MOST_INFLATED + 2) * min(size, 1 << 24) + 3 * size + (64 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    try:
        result = main(sys.argv[1], sys.argv[2])
    except Refused as refusal:
        result = {"refused": str(refusal)}
    except Exception as error:  # whatever h5py makes of a damaged file
        result = {"damaged": f"{type(error).__name__}: {error}"}
    sys.stdout.write(json.dumps(result))
