from __future__ import annotations

from pathlib import Path

import pytest

from od_finetune.config.label_map import load_label_map
from od_finetune.errors import UserError


def test_reads_names_and_display_names(tmp_path: Path) -> None:
    path = tmp_path / "map.pbtxt"
    cat = "id: 1 name: 'x' display_name: 'cat' keypoints { id: 1 label: 'ear' } keypoints { id: 0 label: 'nose' }"
    items = (cat, "id: 2 name: 'dog'", "id: 3 display_name: 'é'")
    path.write_text(" ".join(f"item {{ {item} }}" for item in items), encoding="utf-8")
    labels = load_label_map(str(path)).check(3).labels
    assert labels == ((1, "x", "cat", ((1, "ear"), (0, "nose"))), (2, "dog", "dog", ()), (3, "é", "é", ()))


def test_coco_map_has_gaps(shared: Path) -> None:
    labels = load_label_map(str(shared / "data/ssdlite_mobilenet_v2_coco/mscoco_label_map.pbtxt")).check(90)
    assert (len(labels.labels), labels.max_id, labels.ids()["zebra"]) == (80, 90, 24)
    assert len(labels.warnings(90)) == 1


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="label_map_path: no file .*none.pbtxt"):
        load_label_map(str(tmp_path / "none.pbtxt"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"item {\n  id: 1\n  nam: 'cat'\n}\n", r"map.pbtxt:3:3: .*no field named \"nam\""),
        (b"item {\n  id: one\n}\n", r"map.pbtxt:2:7: "),
        (b"item { name: 'cat' }", r"item 1 \('cat'\) has no id"),
        (b"\xff\xfe", "not text"),
    ],
)
def test_bad_content(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "map.pbtxt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=expected):
        load_label_map(str(path))
