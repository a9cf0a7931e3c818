import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from od_finetune.checkpoints import arrays
from od_finetune.checkpoints.source import open_source
from od_finetune.errors import UnreadableError, UserError


@pytest.fixture
def tensors(made):
    return {name: made.value(name, shape) for name, shape in made.SHAPES.items()} | {made.COUNTER: np.array(7)}


def _write(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_names_and_values(tmp_path, made, tensors):
    save_file(tensors, tmp_path / "weights.safetensors", metadata={"format": "pt"})
    source = open_source(tmp_path / "weights.safetensors")
    assert source.names() == dict(sorted(made.SHAPES.items())) and source.other_entries() == {made.COUNTER: ()}
    assert (source.layout, source.notes) == (arrays.OIHW, ())
    for name, value in tensors.items():
        np.testing.assert_array_equal(source.read(name), value, strict=True)


def test_every_type_of_values(tmp_path, made):
    value = made.value("w", (2, 3))
    names = "bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 float16 float32 float64 complex64".split()
    kinds = {name: np.abs(value * 128).astype(name) for name in names}
    save_file(kinds | {"bf16": value.astype(ml_dtypes.bfloat16)}, tmp_path / "w.safetensors")
    source = open_source(tmp_path / "w.safetensors")
    for name, expected in kinds.items():
        np.testing.assert_array_equal(source.read(name), expected, strict=True)
    bf16 = value.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(source.read("bf16"), bf16, strict=True)


@pytest.mark.parametrize(
    ("said", "layout", "note"),
    [
        ({"format": "tf"}, arrays.HWIO, None),
        ({"format": "keras"}, arrays.HWIO, None),
        (None, arrays.OIHW, "does not say its format: its kernels were taken for PyTorch's"),
        ({"format": "np"}, arrays.OIHW, "says that its format is 'np': its kernels were taken for PyTorch's"),
    ],
)
def test_the_layout_is_what_the_file_says(tmp_path, tensors, said, layout, note):
    save_file(tensors, tmp_path / "w.safetensors", metadata=said)
    source = open_source(tmp_path / "w.safetensors")
    assert source.layout == layout
    assert source.notes == () if note is None else note in source.notes[0]


def test_a_layout_that_is_not_known(tmp_path, tensors):
    save_file(tensors, tmp_path / "w.safetensors", metadata={"format": "mlx"})
    with pytest.raises(UserError, match="format 'mlx'"):
        open_source(tmp_path / "w.safetensors")


def test_wrapped_names_and_another_file_name(tmp_path, made, tensors):
    wrapped = {f"module.{name}": value for name, value in tensors.items()}
    save_file(wrapped, tmp_path / "w.pth", metadata={"format": "pt"})
    source = open_source(tmp_path / "w.pth")
    assert "named like a PyTorch file, but its content is safetensors" in source.notes[0]
    assert source.aliases()["module.classifier.bias"] == "classifier.bias"
    np.testing.assert_array_equal(source.read("classifier.bias"), tensors["classifier.bias"])


def _shards(folder, tensors):
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[:4], "model-00002-of-00002.safetensors": names[4:]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    return path, index


def test_several_files_with_an_index(tmp_path, made, tensors):
    path, index = _shards(tmp_path, tensors)
    for written in (path, tmp_path):
        source = open_source(written)
        assert source.names() == dict(sorted(made.SHAPES.items()))
        for name, value in tensors.items():
            np.testing.assert_array_equal(source.read(name), value)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UnreadableError, match="1 of the files that it names are missing: model-00002-of-00002"):
        open_source(path)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "..\\x", "C:\\x", "", None, "a\0b"])
def test_an_index_that_leads_out_of_its_folder(tmp_path, tensors, name):
    path, index = _shards(tmp_path, tensors)
    index["weight_map"]["classifier.bias"] = name
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match="expected one in the same folder"):
        open_source(path)


def test_an_index_that_is_not_of_its_files(tmp_path, tensors):
    path, index = _shards(tmp_path, tensors)
    moved = {**index["weight_map"], "classifier.bias": "model-00002-of-00002.safetensors"}
    path.write_text(json.dumps({"weight_map": moved}))
    with pytest.raises(UnreadableError, match="1 entries are not in the file it names: classifier.bias"):
        open_source(path)
    path.write_text(json.dumps({"weight_map": dict(list(index["weight_map"].items())[1:])}))
    with pytest.raises(UnreadableError, match="it does not name 1 of its files' entries"):
        open_source(path)


def _entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"w": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        (_entry(), b"123", "file not fully covered"),
        (_entry(), b"12345", "file not fully covered"),
        (_entry(shape=(1 << 62, 8)), b"1234", "overflow"),
        (_entry(dtype="F33"), b"1234", "unknown variant"),
        (_entry(shape=(1,) * 40), b"1234", "40 dimensions"),
        (_entry(dtype="F8_E8M0", shape=(4,)), b"1234", "type F8_E8M0, which cannot be read"),
        (b'{"w":' * 2000, b"", "recursion limit"),
        (b'{"w"', b"", "JSON"),
    ],
)
def test_damaged_headers(tmp_path, header, data, said):
    with pytest.raises(UserError, match=said):
        open_source(_write(tmp_path / "w.safetensors", header, data))


def test_headers_longer_than_the_file(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 31) + b'{"w":' + bytes(100))
    with pytest.raises(UnreadableError, match="safetensors file: its header takes 2147483648 bytes of 113"):
        open_source(path)
    entries = (b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % number for number in range(50_000))
    with pytest.raises(UnreadableError, match="its header takes"):
        open_source(_write(path, b"{" + b",".join(entries) + b"}"))


def _order_of(path, names):
    """Writes the names in an order of one's own, as the package does not."""
    header = {name: _entry(offsets=(4 * index, 4 * index + 4))["w"] for index, name in enumerate(names)}
    return open_source(_write(path, header, bytes(4 * len(names)))).order()


def test_what_the_package_sorted_has_no_order(tmp_path):
    """It puts `features.10` before `features.2`: taken for the model's order, equal layers would be swapped."""
    model = [f"features.{index}.weight" for index in range(12)]
    save_file({name: np.zeros(1, np.float32) for name in model}, tmp_path / "w.safetensors", {"format": "pt"})
    assert open_source(tmp_path / "w.safetensors").order() is None
    assert _order_of(tmp_path / "own.safetensors", model) == tuple(model)
