"""HDF5 files as plain arrays, read by a process of their own (`hdf5_child`), so that a damaged file ends only that."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from od_finetune.errors import UnreadableError, UserError, first_line

_CHILD = "od_finetune.checkpoints.readers.hdf5_child"
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SECONDS, _BYTES_PER_SECOND = 120, 5_000_000  # how long it may take: a busy machine and a slow disk are fine


@dataclasses.dataclass(frozen=True)
class Contents:
    """What an HDF5 file holds. `attributes`: by the path of group or dataset, then by name; text or lists of text."""

    path: str
    shapes: Mapping[str, tuple[int, ...]]
    attributes: Mapping[str, Mapping[str, Any]]
    _places: Mapping[str, tuple[str, int]]  # dtype and offset in the raw copy
    _copy: tempfile.TemporaryDirectory[str]

    def read(self, name: str) -> np.ndarray:
        """One array, as the file has it. Raises UnreadableError where the copy of it is gone."""
        dtype, offset = self._places[name]
        count = int(np.prod(self.shapes[name], dtype=np.int64))
        try:
            return np.fromfile(_raw(self._copy), dtype, count, offset=offset).reshape(self.shapes[name])
        except (OSError, ValueError) as error:
            raise UnreadableError(f"{self.path}: the values of {name} cannot be read: {first_line(error)}") from None


def sniff(path: str) -> bool:
    """Whether `path` is an HDF5 file."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_SIGNATURE)) == _SIGNATURE
    except OSError:
        return False


def load(path: str, shown: str | None = None) -> Contents:
    """Copies out what an HDF5 file holds.

    Args:
      path: the file.
      shown: what errors call it, where it came out of another one.

    Raises:
      UnreadableError: it is damaged.
      UserError: it has links, virtual or external arrays, unknown filters, or shapes that its size belies.
    """
    shown = shown or path
    copy = tempfile.TemporaryDirectory(prefix="od_finetune_hdf5_")
    listing = _run(path, copy, shown)
    if "refused" in listing:
        raise UserError(f"{shown}: refused: {listing['refused']}. Save the weights again with Keras.")
    if "damaged" in listing:
        raise _damaged(shown, listing["damaged"])
    arrays = listing["arrays"]
    return Contents(
        shown,
        {name: tuple(shape) for name, shape, _, _ in arrays},
        listing["attributes"],
        {name: (dtype, offset) for name, _, dtype, offset in arrays},
        copy,
    )


def _run(path: str, copy: tempfile.TemporaryDirectory[str], shown: str) -> dict[str, Any]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry) or os.getcwd(),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "HDF5_PLUGIN_PRELOAD": "::",  # no filter plug-ins
        "HDF5_USE_FILE_LOCKING": "FALSE",
    }
    seconds = _SECONDS + os.path.getsize(path) / _BYTES_PER_SECOND
    command = [sys.executable, "-m", _CHILD, os.path.abspath(path), _raw(copy)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise _damaged(shown, f"HDF5 was not done with it after {seconds:.0f} seconds") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        ending = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        raise _damaged(shown, f"HDF5 broke down over it ({ending}{': ' + said[-1] if said else ''})")
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise _damaged(shown, "HDF5 gave no sensible listing of it") from None


def _raw(copy: tempfile.TemporaryDirectory[str]) -> str:
    return os.path.join(copy.name, "raw")


def _damaged(path: str, what: str) -> UnreadableError:
    return UnreadableError(f"{path}: a damaged or half-written HDF5 file: {what}. Copy or save it again.")
