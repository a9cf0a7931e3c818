"""A checkpoint as the OD API's TF2 half writes it: object based, with the object graph of its detector.

TensorFlow finds a variable in such a checkpoint by walking the graph stored in it and the objects of the program side
by side, from the root on, by the names of the attributes (trackable_object_graph.proto, "Loading" in the guide to
training checkpoints). So the graph has to be that of the OD API's classes; the detector knows it (`tf2_objects`).
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorflow.core.protobuf import trackable_object_graph_pb2

from od_finetune import object_keys
from od_finetune.export.checkpoint_tf1 import save_tensors
from od_finetune.fields import Detector, ObjectTree

DIRECTORY, PREFIX = "checkpoint", "ckpt-0"

_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_SAVE_COUNTER = "save_counter"
_VALUE_NAME = object_keys.VALUE.rpartition("/")[2]

Graph = trackable_object_graph_pb2.TrackableObjectGraph


def write(detector: Detector, directory: Path) -> None:
    """Writes `checkpoint/ckpt-0` and its state file below `directory`, as the zoo's archives have them.

    Raises:
      UserError: the OD API's TF2 half has no such detector.
    """
    variables = detector.named_variables()
    graph, keys = object_graph(
        {object_keys.MODEL: detector.tf2_objects(), _SAVE_COUNTER: _SAVE_COUNTER},
        {**detector.tf2_names(), _SAVE_COUNTER: _SAVE_COUNTER},
    )
    if missing := variables.keys() - keys.keys():
        raise RuntimeError(f"tf2_objects of the detector lacks {sorted(missing)}")
    values = {key: np.int64(0) if name == _SAVE_COUNTER else variables[name] for name, key in keys.items()}
    folder = directory / DIRECTORY
    folder.mkdir()
    save_tensors(folder / PREFIX, {**values, _GRAPH_KEY: graph.SerializeToString()})


def object_graph(root: ObjectTree, full_names: Mapping[str, str]) -> tuple[Graph, dict[str, str]]:
    """The graph of a tree of objects, numbered breadth first as TensorFlow does, and the checkpoint's keys.

    Args:
      root: what the saved `tf.train.Checkpoint` holds.
      full_names: of each variable in it, by canonical name.

    Returns:
      The graph, and checkpoint key by canonical name. A variable that is reached by two ways has the key of the first.
    """
    graph, keys = Graph(), {}
    numbers: dict[object, int] = {id(root): 0}
    queue = collections.deque([("", root)])
    while queue:
        path, item = queue.popleft()
        node = graph.nodes.add()
        if isinstance(item, str):
            keys[item] = f"{path}{object_keys.VALUE}"
            node.attributes.add(name=_VALUE_NAME, full_name=full_names[item], checkpoint_key=keys[item])
            continue
        for name, child in item.items():
            identity = child if isinstance(child, str) else id(child)
            if identity not in numbers:
                numbers[identity] = len(numbers)
                segment = object_keys.escape(name)
                queue.append((f"{path}/{segment}" if path else segment, child))
            node.children.add(local_name=name, node_id=numbers[identity])
    _mark_values(graph)
    return graph, keys


def _mark_values(graph: Graph) -> None:
    """Says of each node whether it or one below it has a value in the checkpoint."""
    parents = collections.defaultdict(list)
    for number, node in enumerate(graph.nodes):
        for child in node.children:
            parents[child.node_id].append(number)
    waiting = [number for number, node in enumerate(graph.nodes) if node.attributes]
    marked: set[int] = set()
    while waiting:
        number = waiting.pop()
        if number not in marked:
            marked.add(number)
            waiting += parents[number]
    for number, node in enumerate(graph.nodes):
        node.has_checkpoint_values.value = number in marked
