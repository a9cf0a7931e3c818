"""The frozen graph in a plain TF1 session gives the detector's own detections."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.export import frozen_graph

OUTPUTS = (
    "detection_boxes", "detection_scores", "detection_classes", "num_detections", "raw_detection_boxes",
    "raw_detection_scores", "detection_multiclass_scores", "detection_anchor_indices",
)
FOREIGN_OPS = {"VarHandleOp", "ReadVariableOp", "PartitionedCall", "StatefulPartitionedCall", "While", "StatelessWhile",
               "If", "StatelessIf", "Assert"}


def load(path) -> tf.compat.v1.GraphDef:
    graph_def = tf.compat.v1.GraphDef()
    graph_def.ParseFromString(path.read_bytes())
    return graph_def


def run(graph_def, feed_name, feed):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.import_graph_def(graph_def, name="")
        values = session.run([f"{name}:0" for name in OUTPUTS], {f"{feed_name}:0": feed})
    return dict(zip(OUTPUTS, values, strict=True))


@pytest.fixture(scope="module")
def pixels_graph(tiny_detector, tmp_path_factory):
    return load(frozen_graph.export(tiny_detector, tmp_path_factory.mktemp("frozen"), "image_tensor"))


@pytest.mark.parametrize(("input_type", "feed"), [
    ("image_tensor", "images"),
    ("float_image_tensor", "float_images"),
    ("encoded_image_string_tensor", "encoded"),
    ("tf_example", "examples"),
])
def test_every_input_type_gives_the_detections(input_type, feed, tiny_detector, feeds, expected, tmp_path):
    graph_def = load(frozen_graph.export(tiny_detector, tmp_path, input_type))
    actual = run(graph_def, input_type, feeds[feed])
    assert expected["num_detections"].min() > 0
    for name, value in expected.items():
        assert actual[name].dtype == np.float32
        np.testing.assert_allclose(actual[name], value, atol=1e-4, err_msg=name)


def test_graph_is_lean(pixels_graph):
    assert not pixels_graph.library.function
    assert not FOREIGN_OPS & {node.op for node in pixels_graph.node}
    assert not any(node.device for node in pixels_graph.node)
    assert [node.name for node in pixels_graph.node if node.op == "Placeholder"] == ["image_tensor"]
    consumed = {name.split(":")[0].lstrip("^") for node in pixels_graph.node for name in node.input}
    assert {node.name for node in pixels_graph.node} - consumed == set(OUTPUTS)
    assert b"/home/" not in pixels_graph.SerializeToString() and b".py" not in pixels_graph.SerializeToString()


def test_batch_and_size_are_free(pixels_graph, images):
    one = run(pixels_graph, "image_tensor", images[:1])
    two = run(pixels_graph, "image_tensor", images)
    np.testing.assert_allclose(one["detection_boxes"][0], two["detection_boxes"][0], atol=1e-5)
    assert run(pixels_graph, "image_tensor", images[:, :17, :21])["detection_boxes"].shape == (2, 5, 4)


def test_encoded_batch_may_mix_sizes(tiny_detector, encoded, images, png, tmp_path):
    graph_def = load(frozen_graph.export(tiny_detector, tmp_path, "encoded_image_string_tensor"))
    mixed = run(graph_def, "encoded_image_string_tensor", [png(images[0][:13, :19]), encoded[0]])
    alone = run(graph_def, "encoded_image_string_tensor", [encoded[0]])
    np.testing.assert_allclose(mixed["detection_boxes"][1], alone["detection_boxes"][0], atol=1e-5)


def test_fixed_shape(tiny_detector, tmp_path):
    graph_def = load(frozen_graph.export(tiny_detector, tmp_path, "image_tensor", (1, 24, 24, 3)))
    (placeholder,) = [node for node in graph_def.node if node.op == "Placeholder"]
    assert [dim.size for dim in placeholder.attr["shape"].shape.dim] == [1, 24, 24, 3]
