"""Tiny checkpoints as other programs write them."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import re

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def _save(prefix, tensors):
    prefix.parent.mkdir(parents=True, exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )
    return str(prefix)


@pytest.fixture
def save_tensors():
    """`save_tensors(prefix, {key: array})` writes a checkpoint with just these keys, as TF1's Saver does."""
    return _save


@pytest.fixture(scope="session")
def save_golden(shared):
    """`save_golden(golden name, prefix)` writes the checkpoint the OD API would have; returns {full name: value}.

    With `exported`, that within a SavedModel of its exporter, whose root holds the detector as `_model`.
    """
    spec = importlib.util.spec_from_file_location("golden_weights", shared / "reference" / "golden_weights.py")
    golden_weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(golden_weights)

    def save(golden, prefix, exported=False):
        folder = shared / "reference" / "goldens" / golden
        tensors, by_name = {}, {}
        with gzip.open(folder / "variables.tsv.gz", "rt") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                shape = tuple(int(size) for size in row["shape"].split("x") if size)
                value = golden_weights.golden_value(row["key"], shape)
                if value is None:
                    value = np.zeros(shape, row["dtype"])
                is_tf2 = bool(row["full_name"])
                tensors[row["key"] + VALUE if is_tf2 else row["key"]] = value
                by_name[row["full_name"] or row["key"]] = value
        if (folder / "object_graph.pb.gz").exists():
            tensors["_CHECKPOINTABLE_OBJECT_GRAPH"] = gzip.decompress((folder / "object_graph.pb.gz").read_bytes())
        if exported:
            graph = TrackableObjectGraph.FromString(tensors.pop("_CHECKPOINTABLE_OBJECT_GRAPH"))
            for child in graph.nodes[0].children:
                child.local_name = "_model" if child.local_name == "model" else child.local_name
            for attribute in (attribute for node in graph.nodes for attribute in node.attributes):
                attribute.checkpoint_key = re.sub("^model/", "_model/", attribute.checkpoint_key)
            tensors = {re.sub("^model/", "_model/", key): value for key, value in tensors.items()}
            tensors["_CHECKPOINTABLE_OBJECT_GRAPH"] = graph.SerializeToString()
        _save(prefix, tensors)
        return by_name

    return save
