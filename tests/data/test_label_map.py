from __future__ import annotations

import pytest

from od_finetune.data.label_map import Label, LabelMap
from od_finetune.errors import UserError


def _map(*items: tuple[int, str]) -> LabelMap:
    return LabelMap(tuple(Label(id_, name, name.upper()) for id_, name in items), "map.pbtxt")


def test_ids_by_name_and_display_name() -> None:
    labels = LabelMap((Label(1, "/m/1", "cat"), Label(2, "cat", "dog")))
    assert labels.ids() == {"/m/1": 1, "cat": 2, "dog": 2}  # a name wins over another label's display name
    assert labels.ids(use_display_name=True) == {"cat": 1, "dog": 2}
    assert labels.names() == {1: "/m/1", 2: "cat"}
    assert labels.names(use_display_name=True) == {1: "cat", 2: "dog"}


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([], "holds no item"),
        ([(0, "background"), (1, "cat")], "'background' has id 0, expected ids from 1"),
        ([(1, "cat"), (1, "dog")], "id 1 is given to 2 items ('cat', 'dog')"),
        ([(1, "cat"), (2, "cat")], "name 'cat' is given to 2 items"),
        ([(1, "cat"), (4, "dog")], "largest id is 4, but the model has num_classes 3"),
    ],
)
def test_errors(items: list[tuple[int, str]], expected: str) -> None:
    with pytest.raises(UserError) as raised:
        _map(*items).check(num_classes=3)
    assert "map.pbtxt" in str(raised.value)
    assert expected in str(raised.value)


def test_gaps_and_spare_classes_only_warn() -> None:
    labels = _map((1, "a"), (4, "b"), (5, "c"), (9, "d")).check(9)
    assert labels.max_id == 9
    assert "no item for id 2-3, 6-8: 4 labels, ids up to 9" in labels.warnings(9)[0]
    assert "num_classes 12" in labels.warnings(12)[1]
    assert _map((1, "a"), (2, "b")).warnings(2) == []


def test_keypoints_of_all_classes() -> None:
    person = Label(1, "person", "person", ((0, "nose"), (1, "hand")))
    labels = LabelMap((person, Label(2, "dog", "dog", ((0, "nose"), (2, "tail")))), "map.pbtxt")
    assert labels.check().keypoint_ids() == {"nose": 0, "hand": 1, "tail": 2}


@pytest.mark.parametrize(
    ("keypoints", "expected"),
    [
        (((0, "nose"), (0, "hand")), "keypoint id 0 is given to 2 keypoints, expected each once"),
        (((0, "nose"), (1, "nose")), "keypoint label 'nose' is given to 2 keypoints, expected each once"),
        (((-1, "nose"),), "keypoint 'nose' has id -1, expected ids from 0"),
    ],
)
def test_keypoints_that_can_not_be_told_apart(keypoints: tuple, expected: str) -> None:
    (error,) = LabelMap((Label(1, "person", "person", keypoints),), "map.pbtxt").errors()
    assert error == f"map.pbtxt: {expected}"
