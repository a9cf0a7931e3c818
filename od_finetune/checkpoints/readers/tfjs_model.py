"""TensorFlow.js models: `model.json` and its shards, of a layers model (Keras' names) or of a graph model (a frozen
graph, whose folded batch norms are undone as a GraphDef's are)."""

from __future__ import annotations

import os

from od_finetune.checkpoints import arrays
from od_finetune.checkpoints.readers import json_file, tfjs_graph, tfjs_weights, values
from od_finetune.checkpoints.readers.tfjs_weights import KIND
from od_finetune.checkpoints.unfold import graph_source
from od_finetune.errors import UserError

_FILE = "model.json"
_MARKS = (b'"weightsManifest"', b'"modelTopology"', b'"graph-model"', b'"layers-model"')
_SEARCHED = 16 << 20


def sniff(path: str) -> bool:
    """Whether the path is a TensorFlow.js model's JSON, whole or not, or a folder with a `model.json` that is."""
    if os.path.isdir(path):
        path = os.path.join(path, _FILE)
    if not json_file.starts_as_object(path):
        return False
    data = values.head(path, _SEARCHED)
    return any(mark in data for mark in _MARKS)


def open_model(path: str) -> arrays.ArraySource:
    """Opens a model by its JSON file or the folder of `model.json`.

    Raises:
      UnreadableError: the JSON is damaged, or shards are missing or of another size.
      UserError: it has no weights, or names files outside of its folder.
    """
    path = os.path.join(path, _FILE) if os.path.isdir(path) else path
    model = json_file.read(path, KIND)
    if "weightsManifest" not in model:
        raise values.damaged(path, KIND, "it has no weightsManifest; a model that was cut short or saved without it")
    entries = tfjs_weights.entries(path, model["weightsManifest"])
    weights = {name: entry for name, entry in entries.items() if entry.dtype == "float32"}
    if not weights:
        raise UserError(f"{path}: a TensorFlow.js model without weights, it has {len(entries)} other entries")
    topology = model.get("modelTopology")
    nodes = topology.get("node") if isinstance(topology, dict) else None
    if isinstance(nodes, list):
        source = graph_source(path, "TensorFlow.js graph model", tfjs_graph.nodes(path, nodes, entries))
        if source.shapes:
            return source
    return arrays.ArraySource(
        path=path,
        kind="TensorFlow.js graph model" if isinstance(nodes, list) else "TensorFlow.js layers model",
        shapes={name: entry.shape for name, entry in weights.items()},
        load=lambda name: entries[name].load(),
        others={name: entry.shape for name, entry in entries.items() if name not in weights},
    )
