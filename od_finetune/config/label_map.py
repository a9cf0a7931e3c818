"""Reading a label map file (`StringIntLabelMap` in text format)."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from google.protobuf import text_format

from od_finetune.data.label_map import Label, LabelMap
from od_finetune.errors import UserError
from od_finetune.protos import string_int_label_map_pb2


def load_label_map(path: str) -> LabelMap:
    """Reads the label map at `path`; what its ids mean for a model is `LabelMap.check(num_classes)`.

    An item without a name takes its display name and the other way round.

    Raises:
      UserError: no such file; not a label map, with line and column.
    """
    message = _parse(path)
    labels = []
    for number, item in enumerate(message.item, 1):
        if not item.HasField("id"):
            name = item.name or item.display_name
            raise UserError(f"{path}: item {number} ({name!r}) has no id, expected one from 1")
        labels.append(Label(item.id, item.name or item.display_name, item.display_name or item.name))
    return LabelMap(tuple(labels), path)


class ClassKeypoints(NamedTuple):
    """The keypoints that a label map gives one of its classes."""

    class_id: int  # 1-based
    ids: tuple[int, ...]  # among the keypoints of all classes, from 0
    labels: tuple[str, ...]


def load_keypoints(path: str) -> dict[str, ClassKeypoints]:
    """The keypoints of the classes that have some in the label map at `path`, by class name.

    Raises:
      UserError: as `load_label_map`; or an id is given to two keypoints.
    """
    found: dict[str, ClassKeypoints] = {}
    owners: dict[int, str] = {}
    for item in _parse(path).item:
        for keypoint in item.keypoints:
            other = owners.setdefault(keypoint.id, f"{keypoint.label!r} of {item.name!r}")
            if other != f"{keypoint.label!r} of {item.name!r}":
                raise UserError(f"{path}: id {keypoint.id} is given to the keypoints {other} and {keypoint.label!r} of "
                                f"{item.name!r}, expected each id once")
        if item.keypoints:
            ids, labels = zip(*((keypoint.id, keypoint.label) for keypoint in item.keypoints), strict=True)
            found[item.name or item.display_name] = ClassKeypoints(item.id, ids, labels)
    return found


def _parse(path: str) -> string_int_label_map_pb2.StringIntLabelMap:
    content = _read(path)
    try:
        text = content.decode("utf-8")
        return text_format.Parse(text, string_int_label_map_pb2.StringIntLabelMap())
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text ({error}); expected a label map in protobuf text format") from error
    except text_format.ParseError as error:
        raise UserError(_parse_message(path, error)) from error


def _read(path: str) -> bytes:
    if "://" in path:  # only such paths are worth the seconds that loading TensorFlow takes
        from tensorflow.io import gfile

        if gfile.exists(path):
            with gfile.GFile(path, "rb") as file:
                return file.read()
    elif os.path.isfile(path):
        with open(path, "rb") as file:
            return file.read()
    raise UserError(f"label_map_path: no file {path!r}; expected a .pbtxt with one item {{ id name }} per class")


def _parse_message(path: str, error: text_format.ParseError) -> str:
    """The parser's complaint as `path:line:column: what`, without the package name it drags along."""
    line, column = error.GetLine(), error.GetColumn()
    what = re.sub(r"^\d+:\d+ : ", "", str(error)).replace("od_finetune.protos.", "")
    return f"{path}:{line}:{column}: {what}; expected items like: item {{ id: 1 name: 'cat' }}"
