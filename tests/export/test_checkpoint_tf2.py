"""Object-based checkpoints against the recorded object graphs of the OD API, and against TensorFlow itself."""

from __future__ import annotations

import csv
import gzip

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from goldens import everyday
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

from od_finetune.config import pipeline
from od_finetune.config.detector import build_detector
from od_finetune.errors import UserError
from od_finetune.export import checkpoint_tf2

SSD = "tf2_ssd_mobilenet_v2_320x320_coco17_tpu-8"
PYRAMIDS = [
    "tf2_ssd_mobilenet_v2_fpnlite_320x320_coco17_tpu-8",
    "tf2_ssd_mobilenet_v1_fpn_640x640_coco17_tpu-8",
    "tf2_ssd_resnet50_v1_fpn_640x640_coco17_tpu-8",
    "tf2_ssd_efficientdet_d0_512x512_coco17_tpu-8",
]
TWO_STAGES = [
    "tf2_faster_rcnn_resnet50_v1_640x640_coco17_tpu-8",
    "tf2_faster_rcnn_resnet50_v1_fpn_640x640_coco17_tpu-8",
    "tf2_mask_rcnn_inception_resnet_v2_1024x1024_coco17_gpu-8",
]


class Golden:
    """One of the OD API's detectors: as it was recorded, and as it is built and written here."""

    def __init__(self, folder, directory):
        self.graph = TrackableObjectGraph.FromString(gzip.decompress((folder / "object_graph.pb.gz").read_bytes()))
        with gzip.open(folder / "variables.tsv.gz", "rt") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        self.variables = {
            f"{row['key']}/.ATTRIBUTES/VARIABLE_VALUE": (
                [int(size) for size in row["shape"].split("x") if size], tf.as_dtype(row["dtype"]),
            )
            for row in rows
        }  # fmt: skip
        self.full_names = {f"{row['key']}/.ATTRIBUTES/VARIABLE_VALUE": row["full_name"] for row in rows}
        self.detector = build_detector(pipeline.load(folder / "pipeline.config").model)
        for number, variable in enumerate(self.detector.named_variables().values()):
            variable.assign(tf.random.stateless_normal(variable.shape, [number, 1]))
        checkpoint_tf2.write(self.detector, directory)
        self.prefix = str(directory / "checkpoint" / "ckpt-0")
        self.written = tf.train.load_checkpoint(self.prefix)


@pytest.fixture(
    scope="module", params=everyday([SSD, *PYRAMIDS, *TWO_STAGES], [SSD])
)
def golden(request, shared, tmp_path_factory):
    return Golden(shared / "reference" / "goldens" / request.param, tmp_path_factory.mktemp("golden"))


def test_keys_shapes_and_types_are_the_recorded_ones(golden):
    shapes, dtypes = golden.written.get_variable_to_shape_map(), golden.written.get_variable_to_dtype_map()
    del shapes["_CHECKPOINTABLE_OBJECT_GRAPH"]
    assert {key: (shape, dtypes[key]) for key, shape in shapes.items()} == golden.variables


def test_the_object_graph_is_the_recorded_one(golden):
    graph = TrackableObjectGraph.FromString(golden.written.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"))
    attributes = [attribute for node in graph.nodes for attribute in node.attributes]
    assert {attribute.checkpoint_key: attribute.full_name for attribute in attributes} == golden.full_names
    assert graph == golden.graph  # node by node


def test_tensorflow_restores_all_of_it_by_attributes(golden):
    """Into objects held by one another as the OD API's are."""
    nodes = [None] * len(golden.graph.nodes)
    variables = {}
    for number, node in enumerate(golden.graph.nodes):
        if node.attributes:
            key = node.attributes[0].checkpoint_key
            shape, dtype = golden.variables[key]
            nodes[number] = variables[key] = tf.Variable(tf.zeros(shape, dtype))
        else:
            nodes[number] = tf.train.Checkpoint() if number == 0 else tf.Module()
    for parent, node in zip(nodes, golden.graph.nodes, strict=True):
        for child in node.children:
            if child.local_name == "save_counter":  # which TensorFlow adds itself
                continue
            setattr(parent, child.local_name, nodes[child.node_id])
    status = nodes[0].restore(golden.prefix)
    status.assert_existing_objects_matched()
    status.assert_consumed()
    canonical = {name: variable.numpy() for name, variable in golden.detector.named_variables().items()}
    by_full_name = {full_name: canonical[name] for name, full_name in golden.detector.tf2_names().items()}
    del variables["save_counter/.ATTRIBUTES/VARIABLE_VALUE"]
    for key, variable in variables.items():
        np.testing.assert_array_equal(variable, by_full_name[golden.full_names[key]], err_msg=key)


def _edges(graph):
    """Paths from the root to every object, with the variable's name or nothing."""
    found, queue = {}, [("", 0)]
    while queue:
        path, number = queue.pop()
        node = graph.nodes[number]
        found[path] = [attribute.full_name for attribute in node.attributes]
        queue += [(f"{path}/{child.local_name}", child.node_id) for child in node.children]
    return found


def test_keras_layers_have_the_objects_that_keras_gives_them(tmp_path):
    """A functional model with every kind of layer, saved by TensorFlow, beside our description of it."""
    from od_finetune.models import tf2_objects

    layers = tf_keras.layers
    stack = [
        layers.Lambda(tf.identity),
        layers.Conv2D(2, 1, name="conv"),
        layers.BatchNormalization(name="norm"),
        layers.ReLU(),
        layers.DepthwiseConv2D(1, name="depthwise", use_bias=False),
        layers.BatchNormalization(name="bare", scale=False, center=False),
        layers.Dropout(0.5),
        layers.SeparableConv2D(2, 1, name="separable"),
    ]
    inputs = outputs = tf_keras.Input([4, 4, 2])
    for layer in stack:
        outputs = layer(outputs)
    model = tf_keras.Model(inputs, layers.Add()([inputs, outputs]))
    path = tf.train.Checkpoint(model=model, heads=[stack[1], stack[7]]).write(str(tmp_path / "ckpt"))
    graph = TrackableObjectGraph.FromString(
        tf.train.load_checkpoint(path).get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")
    )
    nodes = [tf2_objects.layer(layer) for layer in stack]
    tree = {"heads": tf2_objects.listed([nodes[1], nodes[7]]), "model": tf2_objects.functional([*nodes, {}])}
    names = {
        f"{layer.name}/{leaf}": f"{layer.name}/{attribute}"
        for layer in stack
        for attribute, leaf in tf2_objects.weight_leaves(layer).items()
    }
    ours, keys = checkpoint_tf2.object_graph(tree, names)
    theirs = {path: name for path, name in _edges(graph).items() if not path.endswith("/save_counter")}
    assert _edges(ours) == theirs
    assert set(keys.values()) <= set(tf.train.load_checkpoint(path).get_variable_to_shape_map())


def test_group_norm_has_no_place_in_tf2():
    from od_finetune.models import layers, tf2_objects

    with pytest.raises(UserError, match="a/GroupNorm: .*group_norm has no counterpart in a TF2 installation"):
        tf2_objects.layer(layers.norm_layer("a", layers.GroupNorm()))
