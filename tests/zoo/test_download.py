"""Downloads over a real connection that breaks, lies or changes its mind."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple

import pytest

from od_finetune.errors import UserError
from od_finetune.zoo.download import download

CONTENT = os.urandom(300_000)


@pytest.fixture
def get(server, tmp_path, pauses):
    """`get(attempts=...)` downloads /file to tmp_path/file; returns its content."""

    def run(**options):
        run.version = download(f"{server.url}/file", tmp_path / "file", timeout=5, **options)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
        return (tmp_path / "file").read_bytes()

    return run


def ranges(server):
    return [headers.get("Range") for _, headers in server.requests]


def test_plain(serve, server, get, pauses):
    serve("/file", CONTENT, last_modified=1e9)
    assert get() == CONTENT
    assert (get.version.size, get.version.etag) == (len(CONTENT), '"1"')
    assert get.version.last_modified.endswith("2001 01:46:40 GMT")
    assert ranges(server) == [None] and pauses == []


@pytest.mark.parametrize("faults", [{}, {"etag": "", "last_modified": 1e9}, {"etag": 'W/"1"', "last_modified": 1e9}],
                         ids=["etag", "date", "weak etag"])
def test_a_connection_that_breaks_is_taken_up_where_it_broke(serve, server, get, pauses, faults):
    serve("/file", CONTENT, breaks=[100_000, 50_000], **faults)
    assert get() == CONTENT
    assert ranges(server) == [None, "bytes=100000-", "bytes=150000-"]
    assert pauses == [0.5, 0.5]  # there was progress: not two failures in a row


def test_a_part_of_an_earlier_run_is_continued(serve, server, get, tmp_path):
    serve("/file", CONTENT, breaks=[100_000, 0, 0])
    with pytest.raises(UserError, match=r"/file: the connection ended after 100000 of 300000 bytes \(2 attempts\)"):
        get(attempts=2)
    assert not (tmp_path / "file").exists() and (tmp_path / "file.part").stat().st_size == 100_000
    del server.requests[:]
    assert get() == CONTENT
    assert ranges(server)[0] == "bytes=100000-"


def test_a_file_that_changed_meanwhile_is_fetched_from_the_start(serve, server, get):
    served = serve("/file", CONTENT, breaks=[100_000, 0, 0])
    with pytest.raises(UserError):
        get(attempts=2)
    served.content, served.etag, served.breaks = CONTENT[::-1], '"2"', []
    assert get() == CONTENT[::-1]
    assert server.requests[-1][1]["If-Range"] == '"1"'


@pytest.mark.parametrize("faults", [{"ranges": False}, {"etag": ""}, {"etag": 'W/"1"'}],
                         ids=["no ranges", "no validator", "weak etag only"])
def test_where_nothing_can_be_continued_all_is_fetched(serve, server, get, faults):
    serve("/file", CONTENT, breaks=[100_000], **faults)
    assert get() == CONTENT
    assert len(server.requests) == 2


def test_a_part_that_is_already_complete(serve, server, get, tmp_path):
    serve("/file", CONTENT)
    (tmp_path / "file.part").write_bytes(CONTENT)
    record = {"url": f"{server.url}/file", "etag": '"1"', "last_modified": "", "size": len(CONTENT)}
    (tmp_path / "file.part.json").write_text(json.dumps(record))
    assert get() == CONTENT


def test_a_part_longer_than_the_file(serve, server, get, tmp_path):
    serve("/file", CONTENT)
    (tmp_path / "file.part").write_bytes(CONTENT + b"more")
    record = {"url": f"{server.url}/file", "etag": '"1"', "last_modified": "", "size": len(CONTENT)}
    (tmp_path / "file.part.json").write_text(json.dumps(record))
    assert get() == CONTENT


@pytest.mark.parametrize("record", ["", "[]", '{"url": 3, "x": 1}', "{"], ids=repr)
def test_a_part_of_unknown_origin_is_not_used(serve, server, get, tmp_path, record):
    serve("/file", CONTENT)
    (tmp_path / "file.part").write_bytes(b"something else")
    (tmp_path / "file.part.json").write_text(record)
    assert get() == CONTENT and ranges(server) == [None]


def test_too_little_again_and_again(serve, server, get, tmp_path):
    serve("/file", CONTENT, promise=7, ranges=False)
    with pytest.raises(UserError, match="ended after 300000 of 300007 bytes"):
        get(attempts=3)
    assert not (tmp_path / "file").exists() and len(server.requests) == 3


def test_an_overloaded_server_is_asked_again(serve, get, pauses):
    serve("/file", CONTENT, refusals=[503, 429])
    assert get() == CONTENT
    assert pauses == [0.5, 1.0]


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_final(serve, server, get, status):
    serve("/file", CONTENT, refusals=[status])
    with pytest.raises(UserError, match=rf"/file: the server answers {status} \w+"):
        get()
    assert len(server.requests) == 1


def test_no_length_given(serve, get):
    serve("/file", CONTENT, length=False)
    assert get() == CONTENT and get.version.size is None


def test_an_encoded_answer_is_refused(serve, get):
    serve("/file", CONTENT, encoding="br")
    with pytest.raises(UserError, match=r"sends it encoded \(br\)"):
        get()


def test_nobody_listens(tmp_path, pauses):
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/file: can't be reached \(Connection refused\) \(5 att"):
        download("http://127.0.0.1:9/file", tmp_path / "file")
    assert pauses == [0.5, 1.0, 2.0, 4.0]


def test_disk_full(serve, get, monkeypatch):
    serve("/file", CONTENT)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000))
    with pytest.raises(UserError, match=r"no room in .*needs 0.3 MB, 0.0 MB are free.*OD_FINETUNE_CACHE"):
        get()


def test_disk_full_meanwhile(serve, get, tmp_path):
    serve("/file", CONTENT)
    os.symlink("/dev/full", tmp_path / "file.part")
    with pytest.raises(UserError, match="no room in .*No space left on device"):
        get()
