"""Tiny checkpoints as other programs write them."""

from __future__ import annotations

import csv
import gzip
import importlib.util

import numpy as np
import pytest
import tensorflow as tf

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
    """`save_golden(golden name, prefix)` writes the checkpoint the OD API would have; returns {full name: value}."""
    spec = importlib.util.spec_from_file_location("golden_weights", shared / "reference" / "golden_weights.py")
    golden_weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(golden_weights)

    def save(golden, prefix):
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
        _save(prefix, tensors)
        return by_name

    return save
