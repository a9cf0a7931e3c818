"""Layers models, with shards that TensorFlow.js' own writer wrote (tools/make_reader_fixtures.py), and graph models."""

import json
import shutil
import struct

import numpy as np
import pytest

from od_finetune.checkpoints import arrays
from od_finetune.checkpoints.source import open_source
from od_finetune.errors import UnreadableError, UserError

KINDS = ["plain", "shards", "uint8", "uint16", "float16"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_layers_model(fixtures, made, kind):
    source = open_source(fixtures / f"tfjs_{kind}" / "model.json")
    assert source.names() == dict(sorted(made.TFJS_SHAPES.items()))
    assert source.other_entries() == {"steps": (3,)}
    assert (source.layout, source.notes, source.kind) == (arrays.HWIO, (), "TensorFlow.js layers model")
    for name, shape in made.TFJS_SHAPES.items():
        # Half a step of the quantisation; values here are multiples of 1/128, which float16 has exactly.
        tolerance = {"uint8": 2 / 255 / 2, "uint16": 2 / 65535 / 2}.get(kind, 0) * 1.01
        value = source.read(name)
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, made.value(name, shape), rtol=0, atol=tolerance)
    np.testing.assert_array_equal(source.read("steps"), np.arange(3, dtype=np.int32), strict=True)


def test_the_folder_will_do(fixtures):
    assert open_source(fixtures / "tfjs_plain").path.endswith("tfjs_plain/model.json")


def _copy(fixtures, tmp_path, kind="shards"):
    folder = tmp_path / kind
    shutil.copytree(fixtures / f"tfjs_{kind}", folder)
    model = json.loads((folder / "model.json").read_text())

    def write():
        (folder / "model.json").write_text(json.dumps(model))
        return folder

    return folder, model, write


def test_shards_that_are_missing_or_of_another_size(fixtures, tmp_path):
    folder, model, write = _copy(fixtures, tmp_path)
    with open(folder / "group1-shard4of4.bin", "ab") as file:
        file.write(b"x")
    with pytest.raises(UnreadableError, match="TensorFlow.js file: .* have 705 bytes, their weights take 704"):
        open_source(folder)
    (folder / "group1-shard4of4.bin").write_bytes(b"")
    with pytest.raises(UnreadableError, match="the weight 'dense/bias' takes|'dense/kernel' takes"):
        open_source(folder)
    (folder / "group1-shard2of4.bin").unlink()
    with pytest.raises(UnreadableError, match="1 of the files that it names are missing: group1-shard2of4.bin"):
        open_source(folder)


@pytest.mark.parametrize("name", ["/etc/passwd", "../model.json", "a/../../x", "..\\x", "C:x", "", ".", None, 3])
def test_shards_outside_of_the_folder(fixtures, tmp_path, name):
    folder, model, write = _copy(fixtures, tmp_path)
    model["weightsManifest"][0]["paths"][1] = name
    with pytest.raises(UserError, match="expected one in the same folder; other files are not read"):
        open_source(write())


def test_strings_are_no_weights(fixtures, tmp_path, made):
    folder, model, write = _copy(fixtures, tmp_path, "plain")
    strings = b"".join(struct.pack("<I", len(text)) + text for text in (b"raccoon", b""))
    weights = model["weightsManifest"][0]["weights"]
    weights.insert(1, {"name": "labels", "shape": [2], "dtype": "string"})
    shard = folder / "group1-shard1of1.bin"
    data = shard.read_bytes()
    first = 4 * 3 * 3 * 3 * 4
    shard.write_bytes(data[:first] + strings + data[first:])
    source = open_source(write())
    assert source.other_entries() == {"labels": (2,), "steps": (3,)}
    np.testing.assert_array_equal(source.read("dense/bias"), made.value("dense/bias", (5,)))
    with pytest.raises(UserError, match="labels holds strings"):
        source.read("labels")
    weights[1]["shape"] = [1 << 40]
    with pytest.raises(UnreadableError, match="of strings that are not there"):
        open_source(write())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shape": [1 << 40]}, "takes 4398046511104 bytes, its files have"),
        ({"shape": [-1]}, "has the size -1"),
        ({"shape": [True]}, "has the size True"),
        ({"shape": [1] * 40}, "has 40 dimensions"),
        ({"shape": "34"}, "a shape is a str"),
        ({"dtype": "float128"}, "is of type 'float128'"),
        ({"name": None}, "has no name"),
        ({"name": "dense/bias"}, "has 'dense/bias' twice"),
        ({"quantization": {"dtype": "uint4"}}, "quantised in a way that is not known: 'uint4'"),
        ({"quantization": {"dtype": "uint8", "scale": 1}}, "without a scale and a minimum"),
        ({"quantization": {"dtype": "uint8", "scale": float("nan"), "min": 0}}, "without a scale and a minimum"),
    ],
)
def test_damaged_manifests(fixtures, tmp_path, change, said):
    folder, model, write = _copy(fixtures, tmp_path)
    model["weightsManifest"][0]["weights"][0].update(change)
    with pytest.raises(UnreadableError, match=said):
        open_source(write())


@pytest.mark.parametrize("text", ['{"weightsManifest": ', '{"modelTopology": {}}', '{"modelTopology":' * 5000])
def test_damaged_json(tmp_path, text):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(UnreadableError, match="a damaged or incompletely copied TensorFlow.js file"):
        open_source(tmp_path / "model.json")


def _graph_model(folder, nodes, weights):
    entries = [{"name": name, "shape": list(value.shape), "dtype": "float32"} for name, value in weights.items()]
    nodes = [{"name": name, "op": "Const"} for name in weights] + nodes
    manifest = [{"paths": ["group1-shard1of1.bin"], "weights": entries}]
    model = {"format": "graph-model", "modelTopology": {"node": nodes}, "weightsManifest": manifest}
    (folder / "model.json").write_text(json.dumps(model))
    (folder / "group1-shard1of1.bin").write_bytes(b"".join(value.tobytes() for value in weights.values()))
    return folder


def test_a_graph_model_as_todays_converter_writes_it(tmp_path, made):
    """The norm is folded into a fused convolution, whose attributes are base64."""
    kernel, offset = made.value("kernel", (3, 3, 2, 4)), made.value("offset", (4,))
    weights = {"net/Conv/Conv2D_weights": kernel, "net/Conv/Conv2D_bn_offset": offset}
    fused = {"fused_ops": {"list": {"s": ["Qmlhc0FkZA==", "UmVsdTY="]}}, "num_args": {"i": "1"}}
    convolution = {"name": "net/Conv/Relu6", "op": "_FusedConv2D", "input": ["x", *weights], "attr": fused}
    source = open_source(_graph_model(tmp_path, [{"name": "x", "op": "Placeholder"}, convolution], weights))
    assert source.kind == "TensorFlow.js graph model"
    assert sorted(shape for name, shape in source.names().items() if "BatchNorm" in name) == [(4,)] * 4
    kernels = [name for name, shape in source.names().items() if shape == (3, 3, 2, 4)]
    np.testing.assert_array_equal(source.read(kernels[0]), kernel)
    assert "1 batch norms were folded" in source.notes[0]


def test_a_graph_model_as_the_first_converter_wrote_it(tmp_path, made):
    """Kernels named merged_input, and an offset that was moved behind the addition of a residual."""
    scope = "F/MobilenetV2/expanded_conv_11/project"
    kernel, offset = made.value("kernel", (1, 1, 2, 4)), made.value("offset", (4,))
    weights = {f"{scope}/Conv2D/merged_input": kernel, f"{scope}/BatchNorm/batchnorm/sub": offset}
    scaled, total = f"{scope}/BatchNorm/batchnorm/mul_1", "F/AddOpsRewrite_Leaf_1_add"
    nodes = [
        {"name": "x", "op": "Placeholder"},
        {"name": "residual", "op": "Placeholder"},
        {"name": scaled, "op": "Conv2D", "input": ["x", f"{scope}/Conv2D/merged_input"]},
        {"name": total, "op": "AddN", "input": [scaled, "residual"]},
        {"name": "F/AddOpsRewrite_add", "op": "Add", "input": [f"{scope}/BatchNorm/batchnorm/sub", total]},
    ]
    source = open_source(_graph_model(tmp_path, nodes, weights))
    norm = {f"{scope}/BatchNorm/{leaf}": (4,) for leaf in ("beta", "gamma", "moving_mean", "moving_variance")}
    assert source.names() == {**norm, f"{scope}/weights": (1, 1, 2, 4)}
    np.testing.assert_array_equal(source.read(f"{scope}/weights"), kernel)
    np.testing.assert_array_equal(source.read(f"{scope}/BatchNorm/beta"), offset)


def test_a_graph_model_without_known_layers_keeps_its_names(tmp_path, made):
    source = open_source(_graph_model(tmp_path, [], {"w": made.value("w", (2,))}))
    assert source.names() == {"w": (2,)}


@pytest.mark.parametrize(
    ("nodes", "said"),
    [([{"op": "Add"}], "has no name"), ([3], "has no name"), ([{"name": "a", "op": "A"}] * 2, "two nodes 'a'")],
)
def test_damaged_graphs(tmp_path, made, nodes, said):
    with pytest.raises(UnreadableError, match=said):
        open_source(_graph_model(tmp_path, nodes, {"w": made.value("w", (2,))}))
