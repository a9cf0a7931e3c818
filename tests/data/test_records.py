from __future__ import annotations

import logging
from pathlib import Path

import pytest

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
    assert "s-0 holds no record" in caplog.text


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
