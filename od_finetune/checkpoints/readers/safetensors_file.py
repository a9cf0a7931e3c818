"""safetensors files, whose headers the package checks (lengths, overlaps, gaps), and `*.safetensors.index.json`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from od_finetune.checkpoints import arrays
from od_finetune.checkpoints.readers import json_file, torch_state, values
from od_finetune.errors import UserError

KIND = "safetensors"
_INDEX = "model.safetensors.index.json"
_DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype("?"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "C64": np.dtype("<c8"),
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    **{f"{sign}{8 * size}": np.dtype(f"<{sign.lower()}{size}") for sign in "IU" for size in (1, 2, 4, 8)},
}
# What programs write as `format`, and how they keep kernels. Files without it are nearly all PyTorch's.
_LAYOUTS = {"pt": arrays.OIHW, "tf": arrays.HWIO, "keras": arrays.HWIO, "flax": arrays.HWIO}


class _Entry(NamedTuple):
    file: str
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]


def sniff(path: str) -> bool:
    """Whether the path is a safetensors file (eight bytes of length, then JSON), an index of several, or a folder
    with such an index."""
    if os.path.isfile(os.path.join(path, _INDEX)):
        return True
    start = values.head(path, 64)
    length = int.from_bytes(start[:8], "little")
    if start[8:].lstrip(b" ").startswith(b'{"') and 2 <= length < 1 << 32:
        return True
    return json_file.starts_as_object(path) and b'"weight_map"' in values.head(path, 1 << 16)


def open_safetensors(path: str) -> arrays.ArraySource:
    """Opens a safetensors file, or all that an index names.

    Raises:
      UnreadableError: a file is missing, damaged or was cut short.
      UserError: the values are of a type that cannot be read, or kernels lie in a way that is not known.
    """
    path = os.path.join(path, _INDEX) if os.path.isdir(path) else path
    if json_file.starts_as_object(path):
        entries, said = _sharded(path)
    else:
        entries, said = _single(path)
    layout, note = _layout(path, said)
    state = torch_state.split(entries, {name: entry.dtype.kind in "iub" for name, entry in entries.items()})
    known = {**state.weights, **state.others}

    def load(name: str) -> np.ndarray:
        entry = known[name]
        try:
            with values.open_at(entry.file, entry.offset) as file:
                return values.read_values(file, entry.dtype, values.count(entry.shape)).reshape(entry.shape)
        except (EOFError, OSError) as error:
            raise values.damaged(entry.file, KIND, f"the values of {name} cannot be read: {error}") from None

    return arrays.ArraySource(
        path=path,
        kind="safetensors file" if not path.endswith(".json") else "safetensors files",
        shapes={name: entry.shape for name, entry in state.weights.items()},
        load=load,
        layout=layout,
        others={name: entry.shape for name, entry in state.others.items()},
        second_names=state.aliases,
        notes=(() if path.endswith(".json") else values.name_notes(path, KIND)) + note + state.notes,
        has_order=not _is_sorted(entries),
    )


def _is_sorted(entries: Mapping[str, _Entry]) -> bool:
    """Whether the names of each type are in alphabetical order: that is how the package, and the tools that write an
    index, put them whatever the order of the model (`layer.10` before `layer.2`), so that it says nothing."""
    by_type: dict[np.dtype, list[str]] = {}
    for name, entry in entries.items():
        by_type.setdefault(entry.dtype, []).append(name)
    return all(names == sorted(names) for names in by_type.values())


def _single(path: str) -> tuple[dict[str, _Entry], str | None]:
    """The entries of one file in the order of their values, and what it says its format is."""
    size = os.path.getsize(path)
    length = int.from_bytes(values.head(path, 8), "little")
    # The package takes some thirteen times a header's size.
    if length > min(size - 8, (2 << 20) + size // 16):
        raise values.damaged(path, KIND, f"its header takes {length} bytes of {size}")
    entries, offset = {}, 8 + length
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            for name in file.offset_keys():
                part = file.get_slice(name)
                entry = _entry(path, name, offset, part.get_dtype(), part.get_shape())
                entries[name] = entry
                offset += values.count(entry.shape) * entry.dtype.itemsize
    except (safetensors.SafetensorError, OSError, UnicodeError) as error:
        raise values.damaged(path, KIND, str(error)) from None
    if offset != size:
        raise values.damaged(path, KIND, f"its values take {offset} bytes, the file has {size}")
    return entries, metadata.get("format")


def _entry(path: str, name: str, offset: int, dtype: str, shape: list[int]) -> _Entry:
    if dtype not in _DTYPES:
        known = ", ".join(_DTYPES)
        raise UserError(f"{path}: {values.brief(name)} is of type {dtype}, which cannot be read; known types: {known}")
    if (problem := values.shape_problem(shape)) is not None:
        raise values.damaged(path, KIND, f"{values.brief(name)} cannot be: {problem}")
    return _Entry(path, offset, _DTYPES[dtype], tuple(shape))


def _sharded(path: str) -> tuple[dict[str, _Entry], str | None]:
    names = json_file.read(path, KIND).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise values.damaged(path, KIND, "it has no weight_map, which says which file has which entry")
    files = {json_file.sibling(path, name): None for name in names.values()}
    if gone := [file for file in files if not os.path.isfile(file)]:
        raise json_file.missing(path, KIND, gone)
    entries: dict[str, _Entry] = {}
    said = None
    for file in files:
        found, said = _single(file)
        entries.update(found)
    _check_places(path, names, entries)
    return {name: entries[name] for name in names}, said


def _check_places(path: str, files: Mapping[str, str], entries: Mapping[str, _Entry]) -> None:
    def is_there(name: str, file: str) -> bool:
        return name in entries and entries[name].file == json_file.sibling(path, file)

    if wrong := [name for name, file in files.items() if not is_there(name, file)]:
        raise values.damaged(path, KIND, f"{len(wrong)} entries are not in the file it names: {values.shown(wrong)}")
    if more := sorted(set(entries) - set(files)):
        raise values.damaged(path, KIND, f"it does not name {len(more)} of its files' entries: {values.shown(more)}")


def _layout(path: str, said: str | None) -> tuple[str, tuple[str, ...]]:
    if said in _LAYOUTS:
        return _LAYOUTS[said], ()
    if said == "mlx":
        raise UserError(f"{path}: says that it is of format 'mlx', whose kernels [out, height, width, in] are not read")
    has = "does not say its format" if said is None else f"says that its format is {values.brief(said)}"
    return arrays.OIHW, (f"the file {has}: its kernels were taken for PyTorch's, [out, in, height, width]",)
