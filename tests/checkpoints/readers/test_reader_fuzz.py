"""Valid files of each format, damaged at random: a reader gives arrays of the listed shapes or a UserError, in little
time and memory, never anything else."""

import contextlib
import functools
import io
import json
import os
import shutil
import struct
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from od_finetune.checkpoints.readers import mxnet_params, safetensors_file, tfjs_model, torch_file
from od_finetune.checkpoints.source import open_source
from od_finetune.errors import UserError

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
SLACK = 48 << 20  # bytes beyond twice the file's size: a pickle's own bounds, and a piece that is read at a time
EDGES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]


def _read(path, opener):
    """Everything that there is to read."""
    for open_ in (opener, open_source):
        with contextlib.suppress(UserError):
            source = open_(str(path))
            shapes = {**source.names(), **source.other_entries()}
            assert set(source.aliases().values()) <= set(shapes)
            assert f"{path}"[:20] in source.describe()
            for name, shape in shapes.items():
                with contextlib.suppress(UserError):
                    value = source.read(name)
                    assert isinstance(value, np.ndarray) and value.shape == shape


def _bounded(path, opener):
    size = sum(file.stat().st_size for file in Path(path).parent.iterdir())
    tracemalloc.start()
    try:
        _read(path, opener)
        assert tracemalloc.get_traced_memory()[1] < 2 * size + SLACK
    finally:
        tracemalloc.stop()


@st.composite
def damage(draw, data):
    """`data` with a few changes, of the kinds that disks, networks and people make."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["flip", "byte", "edge", "cut", "gap", "copy", "swap", "insert"]))
        if kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "edge":
            width = draw(st.sampled_from([1, 2, 4, 8]))
            data[at : at + width] = (draw(st.sampled_from(EDGES)) % (1 << 8 * width)).to_bytes(width, "little")
        elif kind == "cut":
            del data[at:]
        elif kind == "gap":
            del data[at : at + draw(st.integers(1, 64))]
        elif kind == "copy":
            other = draw(st.integers(0, max(0, len(data) - 1)))
            data[at:at] = data[other : other + draw(st.integers(1, 64))]
        elif kind == "swap":
            other = draw(st.integers(0, max(0, len(data) - 1)))
            size = draw(st.integers(1, 16))
            data[at : at + size] = data[other : other + size]
        else:
            data[at:at] = draw(st.binary(min_size=1, max_size=16))
    return bytes(data)


def _zipped(name, data):
    """The archive with another pickle, and checksums that are right, so that it is read."""
    with zipfile.ZipFile(FIXTURES / name) as old, io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as new:
            for member in old.infolist():
                is_pickle = member.filename.endswith("data.pkl")
                new.writestr(member.filename, data if is_pickle else old.read(member))
        return file.getvalue()


def _pickle_of(name):
    with zipfile.ZipFile(FIXTURES / name) as archive:
        return archive.read(next(member for member in archive.namelist() if member.endswith("data.pkl")))


def _safetensors():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensors = {"module.a": values, "module.b": values.astype(ml_dtypes.bfloat16), "module.c": np.zeros((0, 2))}
    return save(tensors, metadata={"format": "pt"})


def _same(data):
    return data


FORMATS = {
    "torch archive": (torch_file.open_torch, (FIXTURES / "torch_odd.pt").read_bytes(), _same),
    "torch stream": (torch_file.open_torch, (FIXTURES / "torch_odd_legacy.pt").read_bytes(), _same),
    "torch training": (torch_file.open_torch, (FIXTURES / "torch_training_legacy.pth.tar").read_bytes(), _same),
    "torch pickle": (
        torch_file.open_torch,
        _pickle_of("torch_training.pth.tar"),
        functools.partial(_zipped, "torch_training.pth.tar"),
    ),
    "torch protocol 4": (
        torch_file.open_torch,
        _pickle_of("torch_protocol4.pt"),
        functools.partial(_zipped, "torch_protocol4.pt"),
    ),
    "safetensors": (safetensors_file.open_safetensors, _safetensors(), _same),
    "mxnet": (mxnet_params.open_params, (FIXTURES / "mxnet_symbol-0000.params").read_bytes(), _same),
    "mxnet types": (mxnet_params.open_params, (FIXTURES / "mxnet_types.params").read_bytes(), _same),
    "mxnet sparse": (mxnet_params.open_params, (FIXTURES / "mxnet_sparse.params").read_bytes(), _same),
    "mxnet numpy": (mxnet_params.open_params, (FIXTURES / "mxnet_numpy.params").read_bytes(), _same),
}
FEW = settings(max_examples=40, deadline=5000, suppress_health_check=list(HealthCheck), database=None)
MANY = settings(max_examples=400, deadline=20000, suppress_health_check=list(HealthCheck), database=None)


def _fuzz(kind, how):
    opener, valid, pack = FORMATS[kind]

    @seed(20)
    @how
    @given(damage(valid))
    def run(data):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "weights.bin")
            Path(path).write_bytes(pack(data))
            _bounded(path, opener)

    run()


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files(kind):
    _fuzz(kind, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_many_damaged_files(kind):
    _fuzz(kind, MANY)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_place_to_cut(kind, tmp_path):
    """Cut short anywhere, no part of the file passes for the whole."""
    opener, valid, pack = FORMATS[kind]
    path = tmp_path / "weights.bin"
    for size in range(0, len(valid), max(1, len(valid) // 40)):
        path.write_bytes(pack(valid[:size]))
        with pytest.raises(UserError):
            opener(str(path))
    path.write_bytes(pack(valid))
    assert opener(str(path)).names()


# ---- TensorFlow.js: JSON, changed as a tree and as text --------------------------------------------------------------

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(),
    st.sampled_from(["", "string", "float32", "uint8", "../x", "/etc/passwd", "model.json", "Const", "Add", "w", "x"]),
    st.lists(st.integers(-2, 1 << 40), max_size=3),
    st.just({}),
)


def _graph():
    weights = [{"name": "a/Conv2D_weights", "shape": [1, 1, 2, 3], "dtype": "float32"}]
    weights += [{"name": "a/Conv2D_bn_offset", "shape": [3], "dtype": "float32", "quantization": {"dtype": "float16"}}]
    weights += [{"name": "b/batchnorm/sub", "shape": [3], "dtype": "float32"}]
    fused = {"fused_ops": {"list": {"s": ["Qmlhc0FkZA==", "UmVsdTY="]}}, "num_args": {"i": "1"}, "epsilon": {"f": 0.1}}
    nodes = [{"name": "x", "op": "Placeholder"}] + [{"name": weight["name"], "op": "Const"} for weight in weights]
    nodes += [
        {"name": "y", "op": "_FusedConv2D", "input": ["x", "a/Conv2D_weights", "a/Conv2D_bn_offset"], "attr": fused},
        {"name": "b/batchnorm/mul_1", "op": "Conv2D", "input": ["y", "a/Conv2D_weights"]},
        {"name": "s", "op": "AddN", "input": ["b/batchnorm/mul_1", "y"]},
        {"name": "t", "op": "Add", "input": ["b/batchnorm/sub", "s"]},
    ]
    return {"modelTopology": {"node": nodes}, "weightsManifest": [{"paths": ["w.bin"], "weights": weights}]}


def _places(tree, found=()):
    """The paths of all parts of a JSON value."""
    if isinstance(tree, (dict, list)):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield (*found, key)
            yield from _places(tree[key], (*found, key))


def _layers():
    return json.loads((FIXTURES / "tfjs_uint8" / "model.json").read_text())


@st.composite
def changed(draw, model):
    """A model's JSON with some of its parts replaced by odd values, by other parts, or gone."""
    model = json.loads(json.dumps(model))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(model))
        if not places:
            break
        *parents, key = draw(st.sampled_from(places))
        parent = model
        for step in parents:
            parent = parent[step]
        how = draw(st.sampled_from(["odd", "gone", "other"]))
        if how == "odd":
            parent[key] = draw(ODD)
        elif how == "gone":
            del parent[key]
        else:
            other = model
            for step in draw(st.sampled_from(places)):
                other = other[step]
            parent[key] = json.loads(json.dumps(other))
    return json.dumps(model)


def _fuzz_tfjs(model, shards, texts, how):
    @seed(21)
    @how
    @given(texts(model))
    def run(text):
        with tempfile.TemporaryDirectory() as folder:
            for name, data in shards.items():
                Path(folder, name).write_bytes(data)
            path = Path(folder, "model.json")
            path.write_bytes(text.encode() if isinstance(text, str) else text)
            _bounded(path, tfjs_model.open_model)

    run()


def _damaged_text(model):
    return damage(json.dumps(model).encode())


TFJS = {
    "layers": (_layers(), {"group1-shard1of1.bin": (FIXTURES / "tfjs_uint8" / "group1-shard1of1.bin").read_bytes()}),
    "graph": (_graph(), {"w.bin": struct.pack("<6f3e3f", *range(12))}),
}


def test_the_graph_that_is_damaged_is_whole(tmp_path):
    model, shards = TFJS["graph"]
    (tmp_path / "model.json").write_text(json.dumps(model))
    (tmp_path / "w.bin").write_bytes(shards["w.bin"])
    assert len(open_source(tmp_path).names()) > 4


@pytest.mark.parametrize("texts", [changed, _damaged_text])
@pytest.mark.parametrize("kind", TFJS)
def test_damaged_models(kind, texts):
    _fuzz_tfjs(*TFJS[kind], texts, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("texts", [changed, _damaged_text])
@pytest.mark.parametrize("kind", TFJS)
def test_many_damaged_models(kind, texts):
    _fuzz_tfjs(*TFJS[kind], texts, MANY)


def test_shards_cut_short_anywhere(tmp_path):
    shutil.copytree(FIXTURES / "tfjs_shards", tmp_path / "model")
    for shard in sorted((tmp_path / "model").glob("*.bin")):
        data = shard.read_bytes()
        for size in (0, 1, len(data) // 2, len(data) - 1):
            shard.write_bytes(data[:size])
            with pytest.raises(UserError):
                tfjs_model.open_model(str(tmp_path / "model"))
        shard.write_bytes(data)
    assert tfjs_model.open_model(str(tmp_path / "model")).names()
