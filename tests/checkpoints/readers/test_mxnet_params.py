"""Files that MXNet 1.9.1 wrote (tools/make_reader_fixtures.py), and the older versions' layout."""

import shutil
import struct

import ml_dtypes
import numpy as np
import pytest

from od_finetune.checkpoints import arrays
from od_finetune.checkpoints.source import open_source
from od_finetune.errors import UnreadableError, UserError

STRUCTURAL = {
    "0.weight": ("tiny_conv0_weight", (4, 3, 3, 3)),
    "0.bias": ("tiny_conv0_bias", (4,)),
    "1.gamma": ("tiny_batchnorm0_gamma", (4,)),
    "1.beta": ("tiny_batchnorm0_beta", (4,)),
    "1.running_mean": ("tiny_batchnorm0_running_mean", (4,)),
    "1.running_var": ("tiny_batchnorm0_running_var", (4,)),
    "3.weight": ("tiny_conv1_weight", (4, 1, 3, 3)),
    "5.weight": ("tiny_dense0_weight", (5, 16)),
    "5.bias": ("tiny_dense0_bias", (5,)),
}
PREFIXED = {full: (full, shape) for full, shape in STRUCTURAL.values()}


@pytest.mark.parametrize(
    ("file", "entries"),
    [("gluon_structural", STRUCTURAL), ("gluon_prefixed", PREFIXED), ("mxnet_symbol-0000", PREFIXED)],
)
def test_the_parameters_of_a_gluon_block(fixtures, made, file, entries):
    source = open_source(fixtures / f"{file}.params")
    assert source.names() == {name: shape for name, (_, shape) in sorted(entries.items())}
    assert (source.layout, source.notes, source.other_entries()) == (arrays.OIHW, (), {})
    for name, (full, shape) in entries.items():
        np.testing.assert_array_equal(source.read(name), made.value(full, shape), strict=True)
    kinds = {"arg", "aux"} if file == "mxnet_symbol-0000" else set()
    assert {alias.split(":")[0] for alias in source.aliases()} == kinds


def test_types(fixtures):
    source = open_source(fixtures / "mxnet_types.params")
    assert list(source.names()) == ["float16", "float64", "int32", "int64", "int8", "uint8"]
    for name in source.names():
        np.testing.assert_array_equal(source.read(name), np.arange(6).reshape(2, 3).astype(name), strict=True)


def test_numpy_semantics(fixtures, made):
    source = open_source(fixtures / "mxnet_numpy.params")
    assert source.names() == {"none": (0, 3), "row": (3,), "scalar": ()}
    assert source.read("scalar") == np.float32(0.5) and source.read("none").shape == (0, 3)
    np.testing.assert_array_equal(source.read("row"), made.value("row", (3,)))


def test_sparse_arrays_are_listed_and_not_read(fixtures):
    source = open_source(fixtures / "mxnet_sparse.params")
    assert source.names() == {"dense": (2,)} and source.other_entries() == {"embedding": (4, 2)}
    np.testing.assert_array_equal(source.read("dense"), np.zeros(2))
    with pytest.raises(UserError, match="embedding is row sparse, which cannot be read"):
        source.read("embedding")


def test_a_list_without_names(fixtures):
    with pytest.raises(UserError, match="its arrays have no names"):
        open_source(fixtures / "mxnet_unnamed.params")


def test_another_file_name(fixtures, tmp_path):
    shutil.copy(fixtures / "gluon_structural.params", tmp_path / "net.pth")
    (note,) = open_source(tmp_path / "net.pth").notes
    assert note == "net.pth is named like a PyTorch file, but its content is MXNet: read by its content."


def _file(*named):
    names = b"".join(struct.pack("<Q", len(name)) + name for name, _ in named)
    count = struct.pack("<Q", len(named))
    return struct.pack("<QQ", 0x112, 0) + count + b"".join(array for _, array in named) + count + names


def _array(version, shape, values, flag=0):
    """An array as versions of MXNet before 0.12 (no storage type) and before 1.0 (32-bit sizes) wrote it."""
    start = struct.pack("<II", 0xF993FAC8, len(shape)) if version == 1 else struct.pack("<I", len(shape))
    sizes = struct.pack(f"<{len(shape)}{'q' if version == 1 else 'I'}", *shape)
    return start + sizes + (struct.pack("<iii", 1, 0, flag) + values if shape else b"")


@pytest.mark.parametrize("version", [0, 1])
def test_older_versions(tmp_path, made, version):
    value = made.value("w", (2, 3))
    path = tmp_path / "old.params"
    half = value.astype(ml_dtypes.bfloat16)
    named = [(b"w", _array(version, (2, 3), value.tobytes())), (b"none", _array(version, (), b""))]
    path.write_bytes(_file(*named, (b"b", _array(version, (2, 3), half.tobytes(), flag=12))))
    source = open_source(path)
    assert source.names() == {"b": (2, 3), "w": (2, 3)}
    assert source.notes == ("1 entries were saved before they had values: none",)
    np.testing.assert_array_equal(source.read("w"), value, strict=True)
    np.testing.assert_array_equal(source.read("b"), half.astype(np.float32), strict=True)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (_file((b"w", _array(1, (2,), bytes(8))))[:-1], "has 76 bytes, what it describes takes at least 77"),
        (_file((b"w", _array(1, (2,), bytes(8)))) + b"x", "1 bytes follow its last name"),
        (_file((b"w", _array(1, (1 << 40,), bytes(8)))), "what it describes takes at least"),
        (_file((b"w", _array(1, (-1,), bytes(8)))), "has the size -1"),
        (_file((b"w", _array(1, (1,) * 33, bytes(4)))), "has 33 dimensions"),
        (_file((b"w", _array(1, (2,), bytes(8), flag=99))), "is of type 99"),
        (_file(*[(b"w", _array(1, (2,), bytes(8)))] * 2), "two of its arrays have the same name"),
        (_file((b"\xff", _array(1, (2,), bytes(8)))), "a name is no UTF-8"),
        (struct.pack("<QQQ", 0x112, 0, 1 << 60), f"says that it has {1 << 60} arrays"),
    ],
    ids=["short", "long", "shape", "size", "dimensions", "type", "twice", "name", "count"],
)
def test_damaged_files(tmp_path, data, said):
    path = tmp_path / "w.params"
    path.write_bytes(data)
    with pytest.raises(UnreadableError, match=f"a damaged or incompletely copied MXNet file: .*{said}"):
        open_source(path)
