from __future__ import annotations

import io
import logging
import os
from pathlib import Path

import pytest
import tensorflow as tf

from od_finetune.data import records
from od_finetune.data.records import count_records, damaged_record, find_files
from od_finetune.errors import UserError


def test_globs_are_sorted_and_counted(write, example) -> None:
    second = write("b.record-00001", [example(0)])
    first = write("b.record-00000", [example(1), example(2)])
    other = write("a.record", [example(3)])
    pattern = first[:-1] + "?"
    assert find_files([pattern, other]) == [(first, 2), (second, 1), (other, 1)]


def test_nothing_matches(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none-.*matches no file"):
        find_files([str(tmp_path / "none-*")])


def test_empty_file_is_an_error_only_if_nothing_else_is_there(write, example, caplog) -> None:
    empty = write("s-0", [])
    with pytest.raises(UserError, match="s-0: holds no record"):
        find_files([empty])
    write("s-1", [example()])
    with caplog.at_level(logging.WARNING):
        assert [file.num_records for file in find_files([empty[:-1] + "*"])] == [0, 1]
    assert [(said.name, said.levelname) for said in caplog.records] == [("od_finetune.data.records", "WARNING")]
    assert "s-0 holds no record" in caplog.text


class CountingFile(io.FileIO):
    """Counts what is asked of the system."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.bytes_read = 0

    def readinto(self, buffer) -> int | None:
        count = super().readinto(buffer)
        self.bytes_read += count or 0
        return count

    def read(self, size: int = -1) -> bytes:
        content = super().read(size)
        self.bytes_read += len(content)
        return content


def test_counting_reads_headers_only_and_once(tmp_path: Path, monkeypatch) -> None:
    path = str(tmp_path / "large.record")
    with tf.io.TFRecordWriter(path) as writer:
        for _ in range(20):
            writer.write(bytes(10_000))
    opened: list[CountingFile] = []

    def open_counting(name: str) -> CountingFile:
        opened.append(CountingFile(name))
        return opened[-1]

    monkeypatch.setattr(records, "_open_unbuffered", open_counting)
    assert [count_records(path) for _ in range(3)] == [20] * 3
    assert [file.bytes_read for file in opened] == [20 * 12]


def test_the_system_is_asked_for_no_more_than_the_headers(write, example) -> None:
    with records._open_unbuffered(write("a.record", [example()])) as file:
        assert isinstance(file, io.FileIO)  # no buffer to fill
        file.read(12)
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 12


def test_a_file_that_changed_is_counted_again(write, example) -> None:
    path = write("grown.record", [example(0)])
    assert count_records(path) == 1
    write("grown.record", [example(0), example(1)])
    assert count_records(path) == 2


@pytest.mark.parametrize("removed", [1, 7, 30])
def test_cut_short(write, example, removed: int) -> None:
    path = Path(write("cut.record", [example(0), example(1)]))
    path.write_bytes(path.read_bytes()[:-removed])
    with pytest.raises(UserError, match="cut.record: cut short in record 1"):
        count_records(str(path))


def test_cut_within_a_header(write, example) -> None:
    path = Path(write("cut.record", [example(0)]))
    path.write_bytes(path.read_bytes() + b"\x01\x02")
    with pytest.raises(UserError, match="cut short in record 1"):
        count_records(str(path))


def test_not_a_record_file(tmp_path: Path) -> None:
    path = tmp_path / "x.record"
    path.write_text("image,xmin,ymin,xmax,ymax,label\n")
    with pytest.raises(UserError, match="x.record: is no TFRecord file"):
        count_records(str(path))


def test_damage_inside_a_record_is_found(write, example) -> None:
    path = Path(write("bad.record", [example(0), example(1)]))
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    assert count_records(str(path)) == 2  # the lengths are sound
    number, message = damaged_record(str(path))
    assert number == 1
    assert "corrupted" in message
