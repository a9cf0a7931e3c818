"""`zoo:NAME` from the name to a verified archive, against a server on the loopback."""

from __future__ import annotations

import collections
import errno
import gzip
import hashlib
import io
import json
import logging
import multiprocessing
import os
import tarfile
import threading

import pytest
import tensorflow as tf

from od_finetune.checkpoints.source import open_source
from od_finetune.cli import main as cli
from od_finetune.config import lint_files
from od_finetune.errors import UnreadableError, UserError
from od_finetune.zoo import cache, download
from od_finetune.zoo.table import BASE_URL, CHECKSUMS, CLASSIFICATION, ENTRIES, TF1, TF2, Checksum

NAME = "ssd_mobilenet_v2_320x320_coco17_tpu-8"
PATH = f"/tf2/20200711/{NAME}.tar.gz"
CONTENT = gzip.compress(os.urandom(50_000))


@pytest.fixture(autouse=True)
def surroundings(server, tmp_path, monkeypatch, pauses):
    """The server as the mirror, an empty cache, no pauses."""
    monkeypatch.setenv(cache.MIRROR, server.url)
    monkeypatch.setenv(cache.CACHE, str(tmp_path / "cache"))
    monkeypatch.delenv(cache.OFFLINE, raising=False)


def kept(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache" / "zoo").iterdir() if not path.name.endswith(".lock"))


def test_the_table_is_that_of_the_three_zoos():
    assert collections.Counter(entry.zoo for entry in ENTRIES) == {TF1: 47, TF2: 43, CLASSIFICATION: 14}
    assert len({entry.name for entry in ENTRIES}) == len({entry.title for entry in ENTRIES}) == len(ENTRIES)
    assert len({cache.url(entry) for entry in ENTRIES}) == len(ENTRIES)
    assert all(set(entry.path) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-./") for entry in ENTRIES)
    names = {entry.name for entry in ENTRIES}
    assert {name for entry in ENTRIES for name in [entry.title] if name in names} == set()
    sizes = {"sha256": 64, "sha384": 96}
    assert CHECKSUMS.keys() <= names
    assert all(len(known.digest) == sizes[known.algorithm] for known in CHECKSUMS.values())


@pytest.mark.parametrize(
    "name, path",
    [
        (NAME, f"/tf2/20200711/{NAME}"),
        ("SSD MobileNet v2 320x320", f"/tf2/20200711/{NAME}"),
        ("ssdlite_mobilenet_v2_coco", "/ssdlite_mobilenet_v2_coco_2018_05_09"),
        ("ssdlite_mobilenet_v2_coco_2018_05_09", "/ssdlite_mobilenet_v2_coco_2018_05_09"),
        ("faster_rcnn_nas", "/faster_rcnn_nas_coco_2018_01_28"),
        ("spaghettinet_edgetpu_s", "/tf1/spaghettinet_edgetpu_s_2021_10_13"),
        ("extremenet", "/tf2/20210507/extremenet"),
        ("mobilenet_v2", "/classification/tf2/20200710/mobilenet_v2"),
    ],
)
def test_names_and_titles_lead_to_the_published_address(name, path, monkeypatch):
    monkeypatch.delenv(cache.MIRROR)
    for spelling in (name, f"zoo:{name}", f"{name}.tar.gz"):
        assert cache.url(cache.find(spelling)) == f"{BASE_URL}{path}.tar.gz"


def test_unknown_name():
    with pytest.raises(UserError) as caught:
        cache.fetch("zoo:ssd_mobilnet_v2_320x320_coco17")
    message = str(caught.value)
    assert message.startswith(f"zoo:ssd_mobilnet_v2_320x320_coco17: no checkpoint of the zoo; the nearest: {NAME}, ")
    with pytest.raises(UserError, match="none is like it"):
        cache.find("zoo:???")


def test_downloaded_once_and_recorded(serve, server, tmp_path):
    serve(PATH, CONTENT, last_modified=1e9)
    path = cache.fetch(f"zoo:{NAME}")
    assert path == tmp_path / "cache" / "zoo" / f"{NAME}.tar.gz" and path.read_bytes() == CONTENT
    assert kept(tmp_path) == [path.name, f"{path.name}.json"]
    assert json.loads((path.parent / f"{path.name}.json").read_text()) == {
        "url": server.url + PATH,
        "size": len(CONTENT),
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "etag": '"1"',
        "last_modified": "Sun, 09 Sep 2001 01:46:40 GMT",
    }
    assert cache.fetch(NAME) == path and len(server.requests) == 1


def test_the_cache_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.delenv(cache.CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.directory() == tmp_path / "od_finetune" / "zoo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.directory() == tmp_path / ".cache" / "od_finetune" / "zoo"


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:40_000] + b"x" + CONTENT[40_001:], b"<html>Sign in</html>"],
                         ids=["cut short", "a byte changed", "a page"])
def test_what_is_no_whole_archive_is_not_kept(serve, tmp_path, content):
    serve(PATH, content)
    with pytest.raises(UserError, match=rf"(?s){PATH}: no complete .tar.gz .*Nothing of it was kept. Download http"):
        cache.fetch(NAME)
    assert kept(tmp_path) == []


def test_cut_short_without_a_length(serve, tmp_path):
    served = serve(PATH, CONTENT, length=False, breaks=[30_000])
    with pytest.raises(UserError, match="no complete .tar.gz"):
        cache.fetch(NAME)
    assert kept(tmp_path) == [] and not served.breaks


@pytest.mark.parametrize(
    "damage, found", [(CONTENT[:-1], "bytes"), (b"x" + CONTENT[1:], "SHA-256 ")], ids=["size", "hash"]
)
def test_an_archive_that_changed_in_the_cache(serve, damage, found):
    serve(PATH, CONTENT)
    path = cache.fetch(NAME)
    path.write_bytes(damage)
    with pytest.raises(UnreadableError, match=rf"has changed since it was downloaded: it has .*{found}.*Delete it"):
        cache.fetch(NAME)
    path.unlink()
    assert cache.fetch(NAME).read_bytes() == CONTENT


@pytest.mark.parametrize("known", [Checksum("sha256", "0" * 64), Checksum("sha256", "", 7)], ids=["hash", "size"])
def test_not_the_published_archive(serve, tmp_path, monkeypatch, known):
    serve(PATH, CONTENT)
    monkeypatch.setitem(CHECKSUMS, NAME, known)
    with pytest.raises(UserError, match="the published archive has|that of the published archive is"):
        cache.fetch(NAME)
    assert kept(tmp_path) == []
    monkeypatch.setitem(CHECKSUMS, NAME, Checksum("sha384", hashlib.sha384(CONTENT).hexdigest(), len(CONTENT)))
    assert cache.fetch(NAME).exists()


def test_put_there_by_hand(server, tmp_path):
    path = cache.archive(cache.find(NAME))
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:-3])
    with pytest.raises(UnreadableError, match=rf"{path.name}: no complete .tar.gz"):
        cache.fetch(NAME)
    path.write_bytes(CONTENT)
    assert cache.fetch(NAME) == path and not server.requests
    assert cache.read_record(path).url == "" and cache.read_record(path).size == len(CONTENT)


def test_no_network(monkeypatch, tmp_path):
    monkeypatch.setenv(cache.MIRROR, "http://127.0.0.1:9")
    with pytest.raises(UserError) as caught:
        cache.fetch(NAME)
    target = tmp_path / "cache" / "zoo" / f"{NAME}.tar.gz"
    assert str(caught.value) == (
        f"zoo:{NAME} can't be downloaded: http://127.0.0.1:9{PATH}: can't be reached (Connection refused) "
        f"(5 attempts). Download http://127.0.0.1:9{PATH} by hand and put it there as {target}."
    )


def test_offline(serve, server, monkeypatch):
    serve(PATH, CONTENT)
    monkeypatch.setenv(cache.OFFLINE, "1")
    with pytest.raises(UserError, match=r"not in the cache, and OD_FINETUNE_OFFLINE is set. Download .* as .*tar.gz\."):
        cache.fetch(NAME)
    monkeypatch.setenv(cache.OFFLINE, "0")
    path = cache.fetch(NAME)
    monkeypatch.setenv(cache.OFFLINE, "1")
    assert cache.fetch(NAME) == path and len(server.requests) == 1


def test_not_on_the_server(server):
    with pytest.raises(UserError, match="the server answers 404 Not Found"):
        cache.fetch(NAME)
    assert len(server.requests) == 1


def test_a_mirror_without_scheme(monkeypatch):
    monkeypatch.setenv(cache.MIRROR, "mirror/zoo")
    with pytest.raises(UserError, match="OD_FINETUNE_ZOO_URL: found 'mirror/zoo', expected"):
        cache.fetch(NAME)


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.CACHE, str(tmp_path / "file"))
    with pytest.raises(UserError, match=f"{os.strerror(errno.ENOTDIR)}; name another cache directory"):
        cache.fetch(NAME)


def _fetch(results) -> None:
    results.put(cache.fetch(NAME).read_bytes() == CONTENT)


def test_two_processes_download_once(serve, server):
    gate = threading.Event()
    serve(PATH, CONTENT, gate=gate)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_fetch, args=(results,)) for _ in range(2)]
    for process in processes:
        process.start()
    while not server.requests:
        assert any(process.is_alive() for process in processes)
    gate.set()
    assert results.get(timeout=30) and results.get(timeout=30)
    for process in processes:
        process.join()
    assert len(server.requests) == 1


def test_progress_is_said(serve, caplog, monkeypatch):
    monkeypatch.setattr(download, "_SECONDS_BETWEEN_REPORTS", 0.0)
    serve(PATH, CONTENT)
    with caplog.at_level(logging.INFO, logger="od_finetune"):
        cache.fetch(NAME)
    assert "of 0.1 MB (" in caplog.text and f"{NAME}.tar.gz is complete (0.1 MB)" in caplog.text


def test_lint_knows_names():
    assert list(lint_files.checkpoint("train_config.fine_tune_checkpoint", f"zoo:{NAME}")) == []
    (finding,) = lint_files.checkpoint("train_config.fine_tune_checkpoint", f"zoo:{NAME}x")
    assert finding.severity == lint_files.ERROR and f"the nearest: {NAME}" in finding.message


def test_command_lists(serve, capsys):
    serve(PATH, CONTENT)
    assert cli.main(["zoo", "fetch", NAME]) == 0
    assert capsys.readouterr().out.strip() == str(cache.archive(cache.find(NAME)))
    assert cli.main(["zoo", "list", "--grep", "mobilenet.V2 320|fpnlite"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [
        NAME, "ssd_mobilenet_v2_fpnlite_320x320_coco17_tpu-8", "ssd_mobilenet_v2_fpnlite_640x640_coco17_tpu-8"
    ]  # fmt: skip
    assert "0.1 MB in the cache" in lines[0] and "cache" not in lines[1] and lines[-1].startswith("3 of 104;")
    assert cli.main(["zoo", "list", "--cached"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert cli.main(["zoo", "list", "--grep", "nothing like this"]) == 0
    assert cli.main(["zoo", "list", "--grep", "("]) == 2
    assert cli.main(["zoo", "fetch", "nope"]) == 2


@pytest.fixture
def zoo_archive(tmp_path):
    """A TF1 archive as the zoo ships it, of one variable."""
    (tmp_path / "files").mkdir()
    prefix = str(tmp_path / "files" / "model.ckpt")
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=["Conv/weights"], shape_and_slices=[""],
                      tensors=[tf.constant([[1.0, 2.0]])])
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        tar.add(tmp_path / "files", "ssd_mobilenet_v1_coco_2018_01_28")
    return stream.getvalue()


def test_open_source_downloads_and_opens(serve, server, zoo_archive):
    serve(PATH, zoo_archive)
    source = open_source(f"zoo:{NAME}")
    assert source.names() == {"Conv/weights": (1, 2)}
    assert source.read("Conv/weights").tolist() == [[1.0, 2.0]]
    assert len(server.requests) == 1
    open_source(f"zoo:{NAME}")
    assert len(server.requests) == 1
