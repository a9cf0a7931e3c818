"""Reading a label map file (`StringIntLabelMap` in text format)."""

from __future__ import annotations

import os
import re

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
    content = _read(path)
    try:
        text = content.decode("utf-8")
        message = text_format.Parse(text, string_int_label_map_pb2.StringIntLabelMap())
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text ({error}); expected a label map in protobuf text format") from error
    except text_format.ParseError as error:
        raise UserError(_parse_message(path, error)) from error
    labels = []
    for number, item in enumerate(message.item, 1):
        if not item.HasField("id"):
            name = item.name or item.display_name
            raise UserError(f"{path}: item {number} ({name!r}) has no id, expected one from 1")
        keypoints = tuple((point.id, point.label) for point in item.keypoints)
        labels.append(Label(item.id, item.name or item.display_name, item.display_name or item.name, keypoints))
    return LabelMap(tuple(labels), path)


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
