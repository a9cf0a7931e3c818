"""SavedModels: the checkpoint inside, or the constants of the graph where the variables were frozen.

Nothing of the graph is run or loaded. A SavedModel is `saved_model.pb` beside `variables/variables.*`, which is a
name-based checkpoint if TF1 wrote it and an object-based one if TF2 did.
"""

from __future__ import annotations

import os

from od_finetune.checkpoints.arrays import ArraySource
from od_finetune.checkpoints.readers import graph_def, tf_checkpoint
from od_finetune.checkpoints.readers.wire import BYTES, Field, WireError, fields
from od_finetune.errors import UserError, first_line

FILE_NAME = "saved_model.pb"
_SUBDIRECTORY = "saved_model"  # of a zoo's archive
_SERVE = b"serve"
# Field numbers of SavedModel, MetaGraphDef and MetaInfoDef (tensorflow/core/protobuf).
_META_GRAPH, _META_INFO, _GRAPH, _TAG = 2, 1, 2, 4
# What the OD API's TF2 exporter calls the detector, and what its training checkpoints do.
_EXPORTED, _TRAINED = "_model/", "model/"


class _Variables(ArraySource):
    """Entries of a checkpoint."""

    def order(self) -> None:
        """A TensorFlow checkpoint keeps its entries sorted by name."""
        return None


def sniff(path: str) -> bool:
    """Whether `path` is a SavedModel's directory, its `saved_model.pb`, or a directory with `saved_model/` in it."""
    return _directory(path) is not None


def open_saved_model(path: str) -> ArraySource:
    """Opens the weights of a SavedModel.

    Raises:
      UnreadableError: files are missing, cut short or damaged.
      UserError: it has no weights at all.
    """
    directory = _directory(path)
    if directory is None:
        raise UserError(f"{path}: no SavedModel: it has no {FILE_NAME}")
    prefix = os.path.join(directory, "variables", "variables")
    if tf_checkpoint.sniff(prefix):
        checkpoint = tf_checkpoint.open_checkpoint(prefix)
        if checkpoint.names():
            return _with_variables(directory, checkpoint)
    file = graph_def.mapped(os.path.join(directory, FILE_NAME))
    try:
        graph = _serving_graph(file)
    except WireError as error:
        raise graph_def.damaged(file.path, first_line(error)) from None
    part = graph_def.Buffer(file.path, file.view, graph.start, graph.end)
    return graph_def.source(part, directory, "SavedModel with frozen variables")


def _directory(path: str) -> str | None:
    if os.path.basename(path) == FILE_NAME and os.path.isfile(path):
        return os.path.dirname(path) or "."
    for directory in (path, os.path.join(path, _SUBDIRECTORY)):
        if os.path.isfile(os.path.join(directory, FILE_NAME)):
            return directory
    return None


def _with_variables(directory: str, checkpoint: tf_checkpoint.TfCheckpoint) -> ArraySource:
    aliases = checkpoint.aliases()
    aliases |= {
        _TRAINED + path.removeprefix(_EXPORTED): name for path, name in aliases.items() if path.startswith(_EXPORTED)
    }
    return _Variables(
        directory,
        f"SavedModel with a {checkpoint.kind}",
        checkpoint.names(),
        checkpoint.read,
        others=checkpoint.other_entries(),
        second_names=aliases,
    )


def _serving_graph(file: graph_def.Buffer) -> Field:
    """Where the GraphDef is: of the meta graph that is tagged for serving, else of the first."""
    first = None
    for meta in fields(file.view, file.start, file.end):
        if meta.number != _META_GRAPH or meta.kind != BYTES:
            continue
        parts = [part for part in fields(file.view, meta.start, meta.end) if part.kind == BYTES]
        graph = next((part for part in parts if part.number == _GRAPH), None)
        infos = [part for part in parts if part.number == _META_INFO]
        tags = {
            bytes(file.view[tag.start : min(tag.end, tag.start + 64)])
            for info in infos
            for tag in fields(file.view, info.start, info.end)
            if tag.number == _TAG and tag.kind == BYTES
        }
        if graph is not None and _SERVE in tags:
            return graph
        first = first or graph
    if first is None:
        raise WireError("it holds no graph")
    return first
