"""Archives as the zoos ship them, and archives that nobody should unpack."""

import io
import os
import tarfile
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.checkpoints.source import open_source
from od_finetune.errors import UnreadableError, UserError

VALUE = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """What the detection zoos' archives hold, unpacked: {name in the archive: bytes}."""
    folder = tmp_path_factory.mktemp("zoo")
    tf.raw_ops.SaveV2(prefix=str(folder / "ssd/model.ckpt"), tensor_names=["F/a/weights"], shape_and_slices=[""],
                      tensors=[VALUE])  # fmt: skip
    module = tf.Module()
    module.w = tf.Variable(VALUE + 1, name="b/kernel")
    tf.saved_model.save(module, str(folder / "ssd/saved_model"))
    graph = tf.compat.v1.GraphDef()
    graph.node.add(name="x", op="Placeholder")
    graph.node.add(name="F/c/weights", op="Const").attr["value"].tensor.CopyFrom(tf.make_tensor_proto(VALUE + 2))
    (folder / "ssd/frozen_inference_graph.pb").write_bytes(graph.SerializeToString())
    (folder / "ssd/pipeline.config").write_text("model {}")
    (folder / "ssd/checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n')
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def pack(path, files, kind="w:gz", prefix=""):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(prefix + name, content)
        return path
    with tarfile.open(path, kind) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name, kind", [("z.tar.gz", "w:gz"), ("z.tgz", "w:gz"), ("z.tar", "w:"), ("z.zip", "")])
def test_checkpoint_is_preferred(tmp_path, zoo, name, kind):
    archive = pack(tmp_path / name, zoo, kind, prefix="./")
    source = open_source(archive)
    assert source.path == f"{archive}/ssd/model.ckpt"
    assert source.kind == "TF1 name-based checkpoint in an archive"
    np.testing.assert_array_equal(source.read("F/a/weights"), VALUE)
    assert source.describe().endswith(f"{archive}/ssd/model.ckpt (1 weights, 0 other entries)")


def test_then_the_saved_model_then_the_frozen_graph(tmp_path, zoo):
    rest = {name: content for name, content in zoo.items() if "model.ckpt" not in name}
    archive = pack(tmp_path / "a.tar.gz", rest)
    source = open_source(archive)
    assert source.path == f"{archive}/ssd/saved_model" and source.order() is None
    np.testing.assert_array_equal(source.read("b/kernel"), VALUE + 1)
    rest = {name: content for name, content in rest.items() if "saved_model" not in name}
    source = open_source(pack(tmp_path / "b.tar.gz", rest))
    np.testing.assert_array_equal(source.read("F/c/weights"), VALUE + 2)
    assert source.order() == ("F/c/weights",)


def test_a_directory_resolves_in_the_same_order(tmp_path, zoo):
    for name, content in zoo.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    folder = tmp_path / "ssd"
    assert list(open_source(folder).names()) == ["F/a/weights"]
    for path in [*folder.glob("model.ckpt*"), folder / "checkpoint"]:
        path.unlink()
    assert list(open_source(folder).names()) == ["b/kernel"]
    (folder / "saved_model" / "saved_model.pb").unlink()
    assert list(open_source(folder).names()) == ["F/c/weights"]


def test_path_into_an_archive_and_several_checkpoints(tmp_path, zoo):
    graph = open_source(f"{pack(tmp_path / 'z.tar.gz', zoo)}/ssd/frozen_inference_graph.pb")
    np.testing.assert_array_equal(graph.read("F/c/weights"), VALUE + 2)
    renamed = {name.replace("model.ckpt", "model.ckpt-7"): content for name, content in zoo.items()}
    both = {name: content for name, content in {**zoo, **renamed}.items() if name != "ssd/checkpoint"}
    archive = pack(tmp_path / "two.tar.gz", both)
    with pytest.raises(UserError, match="holds 2 checkpoints: ssd/model.ckpt, ssd/model.ckpt-7. Name one, e.g. "):
        open_source(archive)
    assert open_source(f"{archive}/ssd/model.ckpt-7.index").path == f"{archive}/ssd/model.ckpt-7"
    both["ssd/checkpoint"] = b'model_checkpoint_path: "/home/me/model.ckpt-7"\n'
    assert open_source(pack(tmp_path / "state.tar.gz", both)).path.endswith("/ssd/model.ckpt-7")
    with pytest.raises(UserError, match="no checkpoint, .* under ssd/other"):
        open_source(f"{archive}/ssd/other")


def test_only_what_is_needed_is_unpacked_and_removed_with_the_source(tmp_path, zoo, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    source = open_source(pack(tmp_path / "z.tar.gz", zoo))
    unpacked = sorted(path.name for path in (tmp_path / "tmp").rglob("*") if path.is_file())
    assert unpacked == ["model.ckpt.data-00000-of-00001", "model.ckpt.index"]
    source.read("F/a/weights")
    del source
    assert os.listdir(tmp_path / "tmp") == []


def test_errors_name_the_archive(tmp_path, zoo):
    damaged = dict(zoo)
    damaged["ssd/model.ckpt.data-00000-of-00001"] = damaged["ssd/model.ckpt.data-00000-of-00001"][:-1] + b"\xff"
    archive = pack(tmp_path / "z.tar.gz", damaged)
    with pytest.raises(UserError, match=f"^{archive}/ssd/model.ckpt: a half-written or damaged checkpoint"):
        open_source(archive).read("F/a/weights")
    del damaged["ssd/model.ckpt.data-00000-of-00001"]
    archive = pack(tmp_path / "half.tar.gz", damaged)
    with pytest.raises(UserError, match=f"^{archive}/ssd/model.ckpt: a half-written"):
        open_source(archive)


class TestRefused:
    def _refused(self, path, match, error=UserError):
        with pytest.raises(error, match=match) as raised:
            open_source(path)
        assert str(raised.value).startswith(str(path))

    @pytest.mark.parametrize("name", ["../x.pb", "/etc/x.pb", "a/../../x.pb", "..\\x.pb", "C:/x.pb"])
    @pytest.mark.parametrize("ending", [".tar.gz", ".zip"])
    def test_names_that_lead_out(self, tmp_path, zoo, name, ending):
        self._refused(pack(tmp_path / f"z{ending}", {**zoo, name: b"x"}), "leads out of the archive")

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
    def test_links_and_devices(self, tmp_path, zoo, kind):
        path = pack(tmp_path / "z.tar", zoo, "w:")
        with tarfile.open(path, "a") as archive:
            info = tarfile.TarInfo("ssd/model.ckpt-9.index")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        self._refused(path, "is a link, a device or no plain file")

    def test_link_in_a_zip(self, tmp_path, zoo):
        path = pack(tmp_path / "z.zip", zoo)
        with zipfile.ZipFile(path, "a") as archive:
            info = zipfile.ZipInfo("link")
            info.external_attr = 0o120777 << 16
            archive.writestr(info, "/etc/passwd")
        self._refused(path, "is a link or a device")

    @pytest.mark.parametrize("ending", [".tar.gz", ".zip"])
    def test_bombs(self, tmp_path, zoo, ending):
        self._refused(pack(tmp_path / f"z{ending}", {**zoo, "zeros": bytes(50 << 20)}), "would unpack to")

    def test_header_that_claims_to_be_long(self, tmp_path, zoo):
        path = pack(tmp_path / "z.tar", zoo, "w:")
        info = tarfile.TarInfo("long")
        info.type, info.size = tarfile.XHDTYPE, 1 << 33
        content = info.tobuf() + path.read_bytes()
        path.write_bytes(content)
        self._refused(path, "claims|damaged")

    def test_twice_the_same(self, tmp_path, zoo):
        path = pack(tmp_path / "z.tar", zoo, "w:")
        with tarfile.open(path, "a") as archive:
            archive.addfile(tarfile.TarInfo("./ssd/model.ckpt.index"))
        self._refused(path, "twice")

    def test_cut_short(self, tmp_path, zoo):
        for ending in (".tar.gz", ".tar", ".zip"):
            whole = pack(tmp_path / f"z{ending}", zoo, "w:gz" if ending == ".tar.gz" else "w:").read_bytes()
            (tmp_path / f"z{ending}").write_bytes(whole[: len(whole) // 2])
            self._refused(tmp_path / f"z{ending}", "damaged or incompletely downloaded archive", UnreadableError)

    def test_nothing_in_it(self, tmp_path):
        path = pack(tmp_path / "z.tar.gz", {"a/readme.txt": b"x"})
        self._refused(path, "no checkpoint, SavedModel, frozen graph or Keras file in it. It has: a/readme.txt")
        path = pack(tmp_path / "torch.zip", {"archive/data.pkl": b"x"})  # another reader's, or nobody's
        with pytest.raises(UserError, match="damaged or incompletely copied PyTorch file"):
            open_source(path)
