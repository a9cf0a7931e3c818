"""Where weights come from: a `Source` lists names and shapes and reads one tensor; `READERS` has a row per format."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from od_finetune import names
from od_finetune.checkpoints.readers import (
    archive,
    graph_def,
    keras_file,
    mxnet_params,
    safetensors_file,
    saved_model,
    tf_checkpoint,
    tfjs_model,
    torch_file,
)
from od_finetune.errors import MissingError, UserError
from od_finetune.zoo import cache


class Source(Protocol):
    """An open checkpoint. Listing is cheap; only `read` touches weights."""

    path: str  # what was opened, e.g. the resolved checkpoint prefix
    kind: str  # the format in words
    layout: str  # of its kernels: arrays.HWIO (TensorFlow) or arrays.OIHW (PyTorch, MXNet)
    notes: tuple[str, ...]  # sentences for the plan, e.g. that folded batch norms were unfolded
    epsilons: Mapping[str, float]  # of batch norms, by the scope that their entries' names have; where the file says it

    def names(self) -> Mapping[str, tuple[int, ...]]:
        """Shape by name of everything that may be a model's weight, sorted by name."""

    def order(self) -> tuple[str, ...] | None:
        """The same names in the order of the file; None where the format keeps none."""

    def other_entries(self) -> Mapping[str, tuple[int, ...]]:
        """Shape by name of the rest: optimiser slots, moving averages, step counters."""

    def aliases(self) -> Mapping[str, str]:
        """Second spelling -> name, e.g. the object path of a TF2 checkpoint's entry -> its full name."""

    def read(self, name: str) -> np.ndarray:
        """One entry's values. Raises UserError where the file is damaged."""

    def describe(self) -> str:
        """One line for people: format, path, number of entries."""


class Reader(NamedTuple):
    """One checkpoint format: whether a path is of it, and how to open it."""

    format: str
    sniff: Callable[[str], bool]
    open: Callable[[str], Source]


# Those that know a file by its first bytes come first: `checkpoint` and `model.ckpt` are also names of PyTorch files.
# Of a directory that several readers know (a zoo's archive, unpacked), the first takes it.
READERS: tuple[Reader, ...] = (
    Reader("PyTorch", torch_file.sniff, torch_file.open_torch),
    Reader("safetensors", safetensors_file.sniff, safetensors_file.open_safetensors),
    Reader("MXNet", mxnet_params.sniff, mxnet_params.open_params),
    Reader("TensorFlow.js", tfjs_model.sniff, tfjs_model.open_model),
    Reader("TensorFlow checkpoint", tf_checkpoint.sniff, tf_checkpoint.open_checkpoint),
    Reader("SavedModel", saved_model.sniff, saved_model.open_saved_model),
    Reader("frozen TensorFlow graph", graph_def.sniff, graph_def.open_graph),
    Reader("Keras file", keras_file.sniff, keras_file.open_keras),
    Reader("archive (.tar.gz, .tar, .zip) of one of these", archive.sniff, archive.open_archive),
)


def open_source(path: str | os.PathLike[str]) -> Source:
    """Opens a checkpoint of any format in `READERS`.

    Args:
      path: for a TensorFlow checkpoint its prefix (`model.ckpt`, `ckpt-0`), one of its files, or a directory that
        has a `checkpoint` state file or one checkpoint; for the other formats the file, or the SavedModel's directory.
        `zoo:NAME` is a published checkpoint, downloaded if need be.

    Raises:
      MissingError: nothing lies there.
      UnreadableError: the file is damaged or half written.
      UserError: the format is not known, or it is not clear which checkpoint is meant.
    """
    path = os.path.expanduser(os.fspath(path))
    if not path:
        raise UserError("the checkpoint's path is empty; expected a path such as 'ssd/model.ckpt'")
    if cache.is_name(path):
        path = os.fspath(cache.fetch(path))
    for reader in READERS:
        if reader.sniff(path):
            return reader.open(path)
    if os.path.exists(path):
        raise UserError(
            f"{path}: not a checkpoint that can be read; known formats: "
            f"{', '.join(reader.format for reader in READERS)}.{_listing(path)}"
        )
    raise MissingError(f"{path}: no checkpoint lies there.{_listing(path)}")


def _listing(path: str) -> str:
    """What lies in the directory of `path`, nearest names first."""
    directory = path if os.path.isdir(path) else os.path.dirname(path) or "."
    missing = ""
    while not os.path.isdir(directory) and os.path.dirname(directory) not in ("", directory):
        directory = os.path.dirname(directory)
        missing = f" The directory {os.path.dirname(path)} does not exist."
    if not os.path.isdir(directory):
        return f" The directory {os.path.dirname(path)} does not exist."
    entries = sorted(tf_checkpoint.prefixes(directory)) or sorted(os.listdir(directory))
    if not entries:
        return f"{missing} {directory} is empty."
    # The path itself is among them where it lies there but is no checkpoint.
    close = names.nearest(os.path.basename(path), [entry for entry in entries if entry != os.path.basename(path)], n=5)
    shown = close + [entry for entry in entries if entry not in close]
    more = f" and {len(shown) - 10} more" if len(shown) > 10 else ""
    meant = f" Did you mean {os.path.join(directory, close[0])}?" if close and not missing else ""
    return f"{missing} {directory} has: {', '.join(shown[:10])}{more}.{meant}"
