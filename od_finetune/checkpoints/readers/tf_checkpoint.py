"""TensorFlow checkpoints, read with `tf.train.load_checkpoint`.

Three vocabularies come in this one container:
- TF1, name based: the keys are the variables' names (`FeatureExtractor/MobilenetV2/Conv/weights`).
- TF2, object based: the keys are object paths (`model/_feature_extractor/.../kernel/.ATTRIBUTES/VARIABLE_VALUE`);
  the object graph stored beside them gives each variable's full name (`Conv1/kernel`), which is the name here; the
  object path is its alias.
- od_finetune's own: object based, with the model stored as a dict of canonical names.
"""

from __future__ import annotations

import collections
import re
import types
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import trackable_object_graph_pb2

from od_finetune import object_keys
from od_finetune.checkpoints import arrays
from od_finetune.checkpoints.readers import tf_paths, tf_table
from od_finetune.errors import UnreadableError, UserError, first_line
from od_finetune.object_keys import SLOT, VALUE

prefixes = tf_paths.prefixes

# What TensorFlow's reader raises for files it can't read; IndexError where a data file is cut short.
_UNREADABLE = (tf.errors.OpError, RuntimeError, ValueError, IndexError, TypeError, MemoryError, OSError)
_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
# Root objects of an object-based checkpoint that are no model: optimisers, counters, Keras' own metadata.
_NO_MODEL_ROOTS = re.compile(
    r"(_?optimizer.*|moving_averages?|ema|save_counter|(global_)?step|epoch|iterations?|keras_api|_CHECKPOINT.*)(/|$)"
)
_COUNTERS = re.compile(r"(^|/)(global_step|save_counter|step|iterations?|learning_rate|beta[12]_power)(_\d+)?$")


class _Entry(NamedTuple):
    key: str
    shape: tuple[int, ...]
    path: str  # object path; empty in a name-based checkpoint
    is_weight: bool


class TfCheckpoint:
    """An open TensorFlow checkpoint; see `od_finetune.checkpoints.source.Source`."""

    layout = arrays.HWIO
    notes: tuple[str, ...] = ()
    epsilons: Mapping[str, float] = types.MappingProxyType({})

    def __init__(self, path: str, kind: str, reader: tf.train.CheckpointReader, entries: Mapping[str, _Entry]) -> None:
        self.path = path
        self.kind = kind
        self._reader = reader
        self._entries = dict(sorted(entries.items()))

    def names(self) -> dict[str, tuple[int, ...]]:
        """Shape by name of the entries that may be a model's weights, sorted by name."""
        return {name: entry.shape for name, entry in self._entries.items() if entry.is_weight}

    def order(self) -> None:
        """A TensorFlow checkpoint keeps its entries sorted by name."""
        return None

    def other_entries(self) -> dict[str, tuple[int, ...]]:
        """Shape by name of optimiser slots, moving averages and counters, sorted by name."""
        return {name: entry.shape for name, entry in self._entries.items() if not entry.is_weight}

    def dtypes(self) -> dict[str, str]:
        """Type of values by name."""
        found = self._reader.get_variable_to_dtype_map()
        return {name: found[entry.key].name for name, entry in self._entries.items()}

    def aliases(self) -> dict[str, str]:
        """Object path -> name; empty for a name-based checkpoint."""
        return {entry.path: name for name, entry in self._entries.items() if entry.path and entry.path != name}

    def read(self, name: str) -> np.ndarray:
        """One entry's values, its checksum verified.

        Raises:
          UserError: the data are cut short or damaged.
        """
        try:
            return self._reader.get_tensor(self._entries[name].key)
        except _UNREADABLE as error:
            raise _damaged(self.path, f"the values of {name} cannot be read: {first_line(error)}") from None

    def describe(self) -> str:
        """Format, path and number of entries in one line."""
        weights = sum(entry.is_weight for entry in self._entries.values())
        return f"{self.kind} {self.path} ({weights} weights, {len(self._entries) - weights} other entries)"


def sniff(path: str) -> bool:
    """Whether `path` means a TensorFlow checkpoint, whole or not."""
    return tf_paths.resolve(path) is not None


def open_checkpoint(path: str) -> TfCheckpoint:
    """Opens the checkpoint that `path` means (prefix, one of its files, directory, state file).

    Raises:
      UserError: files are missing, cut short or damaged.
    """
    prefix = tf_paths.resolve(path)
    if prefix is None:
        raise UserError(f"{path}: no TensorFlow checkpoint")
    shards = tf_paths.data_files(prefix)
    _check_table(prefix, shards)
    try:
        reader = tf.train.load_checkpoint(prefix)
        shapes = {key: tuple(shape) for key, shape in reader.get_variable_to_shape_map().items()}
    except _UNREADABLE as error:
        raise _damaged(prefix, f"its index cannot be read: {first_line(error)}") from None
    if _GRAPH_KEY not in shapes:
        return TfCheckpoint(prefix, "TF1 name-based checkpoint", reader, _name_based(shapes))
    if _is_own(shapes):
        return TfCheckpoint(prefix, "od_finetune checkpoint", reader, _own(shapes))
    graph = _object_graph(prefix, reader)
    return TfCheckpoint(prefix, "TF2 object-based checkpoint", reader, _object_based(shapes, graph))


def _check_table(prefix: str, shards: list[str]) -> None:
    """Compares the files' sizes with what the index promises, before TensorFlow allocates what it says."""
    try:
        if shards:
            tf_table.check_index(f"{prefix}.index", shards)
        else:
            tf_table.check_old(prefix)
    except (tf_table.TableError, OSError) as error:
        raise _damaged(prefix, first_line(error)) from None


def _damaged(prefix: str, what: str) -> UnreadableError:
    return UnreadableError(
        f"{prefix}: a half-written or damaged checkpoint: {what}. Copy all of its files again, or use an earlier "
        "checkpoint."
    )


def _name_based(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, _Entry]:
    def is_weight(name: str, shape: tuple[int, ...]) -> bool:
        if not shape and ("/" not in name or _COUNTERS.search(name)):
            return False
        # TF1 keeps optimiser slots and moving averages under the variable's own name: `<name>/Momentum`.
        parent = name.rpartition("/")[0]
        while parent:
            if parent in shapes:
                return False
            parent = parent.rpartition("/")[0]
        return True

    return {name: _Entry(name, shape, "", is_weight(name, shape)) for name, shape in shapes.items()}


def _is_own(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    prefix = f"{object_keys.MODEL}/"
    inner = [
        key[len(prefix) : -len(VALUE)]
        for key in shapes
        if key.startswith(prefix) and key.endswith(VALUE) and SLOT not in key
    ]
    # Canonical names have slashes, which are escaped; another writer's object paths have slashes of their own.
    return bool(inner) and all("/" not in path for path in inner) and any(".S" in path for path in inner)


def _own(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, _Entry]:
    model = {key: name for name, key in object_keys.named(shapes, object_keys.MODEL).items()}
    entries = {}
    for key, shape in shapes.items():
        if key == _GRAPH_KEY:
            continue
        path = key.removesuffix(VALUE)
        other = key if SLOT in key else object_keys.unescape(path)
        entries[model.get(key, other)] = _Entry(key, shape, path, key in model)
    return entries


def _object_graph(
    prefix: str, reader: tf.train.CheckpointReader
) -> trackable_object_graph_pb2.TrackableObjectGraph:
    try:
        return trackable_object_graph_pb2.TrackableObjectGraph.FromString(reader.get_tensor(_GRAPH_KEY))
    except (*_UNREADABLE, DecodeError) as error:
        raise _damaged(prefix, f"its object graph cannot be read: {first_line(error)}") from None


def _object_based(
    shapes: Mapping[str, tuple[int, ...]], graph: trackable_object_graph_pb2.TrackableObjectGraph
) -> dict[str, _Entry]:
    optimizers = _optimizer_roots(graph)
    slots = {slot.slot_variable_node_id for node in graph.nodes for slot in node.slot_variables}
    full_names: dict[str, str] = {}
    slot_keys: set[str] = set()
    for index, node in enumerate(graph.nodes):
        for attribute in node.attributes:
            full_names[attribute.checkpoint_key] = attribute.full_name
            if index in slots:
                slot_keys.add(attribute.checkpoint_key)

    def is_weight(key: str) -> bool:
        counter = not shapes[key] and _COUNTERS.search(key.removesuffix(VALUE))
        known = key.endswith(VALUE) and key not in slot_keys and SLOT not in key
        return known and not counter and key.split("/")[0] not in optimizers and _NO_MODEL_ROOTS.match(key) is None

    keys = [key for key in shapes if key != _GRAPH_KEY]
    # A full name that two weights share (two unnamed variables, say) identifies neither: their paths do.
    uses = collections.Counter(full_names.get(key, "") for key in keys if is_weight(key))
    entries = {}
    for key in keys:
        path = key.removesuffix(VALUE)
        full_name = full_names.get(key, "")
        unique = full_name and is_weight(key) and uses[full_name] == 1
        entries[full_name if unique else path] = _Entry(key, shapes[key], path, is_weight(key))
    return entries


def _optimizer_roots(graph: trackable_object_graph_pb2.TrackableObjectGraph) -> set[str]:
    """Names under which the root holds optimisers, by what Keras' (older and newer) optimisers consist of."""
    if not graph.nodes:
        return set()
    return {
        child.local_name
        for child in graph.nodes[0].children
        if graph.nodes[child.node_id].slot_variables
        or any(inner.local_name == "_iterations" for inner in graph.nodes[child.node_id].children)
    }
