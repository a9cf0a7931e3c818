"""Recordings of the OD API (`shared/reference/goldens`): reading them, and comparing with them."""

from __future__ import annotations

import csv
import functools
import gzip
import importlib.util
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import results
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

from od_finetune import fields
from od_finetune.protos import model_pb2, pipeline_pb2

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"  # after the object path, in a key of a TF2 checkpoint
BOXES = [[0.1, 0.15, 0.55, 0.6], [0.4, 0.5, 0.9, 0.95], [0.05, 0.7, 0.25, 0.85]]


def read_model(path: Path) -> model_pb2.DetectionModel:
    return text_format.Parse(path.read_text(), pipeline_pb2.TrainEvalPipelineConfig()).model


def recorded_variables(golden: Path) -> list[tuple[str, str, tuple[int, ...]]]:
    """Key, full name and shape of each variable that is a weight."""
    lines = gzip.open(golden / "variables.tsv.gz", "rt").read().splitlines()[1:]
    rows = [line.split("\t")[:3] for line in lines]
    return [
        (key, full_name, tuple(int(size) for size in shape.split("x") if size))
        for key, full_name, shape in rows
        if key not in ("global_step", "save_counter")
    ]


def everyday(names: Collection[str], kept: Collection[str]) -> list[Any]:
    """Parameters of a test that marks as slow, and to be run by turns, what is not in `kept`."""
    by_turns = (pytest.mark.slow, pytest.mark.by_turns)
    return [pytest.param(name, marks=() if name in kept else by_turns) for name in names]


@functools.lru_cache(maxsize=1)
def golden_weights(reference: Path) -> Any:
    spec = importlib.util.spec_from_file_location("golden_weights", reference / "golden_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assign_golden_weights(detector: fields.Detector, reference: Path, tf2_golden: str = "") -> None:
    """The weights that the goldens were recorded with. TF2's depend on a variable's key in the golden of that name."""
    keys = {name: name for name in detector.named_variables()}
    if tf2_golden:
        recorded = {name: key for key, name, _ in recorded_variables(reference / "goldens" / tf2_golden)}
        keys = {name: recorded[tf2_name] for name, tf2_name in detector.tf2_names().items()}
    for name, variable in detector.named_variables().items():
        variable.assign(golden_weights(reference).golden_value(keys[name], tuple(variable.shape)))


def assert_same_variables(detector: fields.Detector, golden: Path) -> None:
    """Names (TF1's canonical, TF2's full ones) and shapes are those recorded."""
    variables = detector.named_variables()
    names = detector.tf2_names() if golden.name.startswith("tf2") else {name: name for name in variables}
    shapes = {names[name]: tuple(variable.shape) for name, variable in variables.items()}
    assert shapes == {full_name or key: shape for key, full_name, shape in recorded_variables(golden)}


def assert_close(recorded: Any, name: str, value: tf.Tensor, tolerance: float, relative: bool) -> None:
    """Holds a tensor to the golden's `outputs.npz`, within `tolerance` (of its deviation, where `relative`)."""
    assert list(value.shape) == list(recorded[f"{name}@shape"]), name
    rows = np.reshape(value, [-1, value.shape[-1]])[np.ix_(recorded[f"{name}@rows"], recorded[f"{name}@cols"])]
    scale = float(recorded[f"{name}@stats"][1]) if relative else 1.0
    error = float(np.abs(rows - recorded[f"{name}@values"]).max(initial=0.0)) / scale
    results.note(Path(recorded.zip.filename).parent.name, tensor=name, error=error, relative=relative)
    np.testing.assert_allclose(rows, recorded[f"{name}@values"], rtol=0, atol=tolerance * scale, err_msg=name)


def assert_same_losses(golden: Path, losses: Mapping[str, tf.Tensor], tolerance: float = 1e-3) -> None:
    """Holds losses to the recorded ones, by name, within a relative `tolerance`."""
    expected = json.loads((golden / "summary.json").read_text())["losses"]
    found = {name: float(loss) for name, loss in losses.items()}
    assert found.keys() == expected.keys()
    errors = [abs(found[name] - value) / max(abs(value), 1e-12) for name, value in expected.items()]
    results.note(golden.name, loss_error=max(errors))
    assert found == pytest.approx(expected, rel=tolerance)


def groundtruth(num_classes: int) -> fields.Groundtruth:
    """The boxes that the recorded losses were computed for."""
    classes = [0, min(1, num_classes - 1), num_classes - 1]
    no = tf.zeros([1, 3], tf.bool)
    return fields.Groundtruth(
        boxes=tf.constant([BOXES]),
        classes=tf.one_hot([classes], num_classes),
        weights=tf.ones([1, 3]),
        num_boxes=tf.constant([3]),
        is_crowd=no,
        difficult=no,
        group_of=no,
        area=tf.zeros([1, 3]),
    )


def save_tensors(prefix: str | Path, tensors: Mapping[str, Any]) -> str:
    """Writes a checkpoint with just these keys, as TF1's Saver does."""
    prefix = Path(prefix)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )
    return str(prefix)


def save_golden(reference: Path, golden: str, prefix: str | Path, exported: bool = False) -> dict[str, np.ndarray]:
    """Writes the checkpoint that the OD API would have; returns its values by full name.

    With `exported`, that within a SavedModel of its exporter, whose root holds the detector as `_model`.
    """
    folder = reference / "goldens" / golden
    tensors, by_name = {}, {}
    with gzip.open(folder / "variables.tsv.gz", "rt") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            shape = tuple(int(size) for size in row["shape"].split("x") if size)
            value = golden_weights(reference).golden_value(row["key"], shape)
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
    save_tensors(prefix, tensors)
    return by_name
