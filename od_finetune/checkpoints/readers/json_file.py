"""JSON that lists the parts of a checkpoint: read within bounds, and the files that it names kept to its folder."""

from __future__ import annotations

import json
import os
import re

from od_finetune.checkpoints.readers import values
from od_finetune.errors import UserError

_MAX_SIZE = 16 << 20  # bytes; the topology of the largest published detectors takes a few million
_MAX_VALUES = 1 << 20  # each takes some 64 bytes once it is read


def starts_as_object(path: str) -> bool:
    """Whether a file begins as a JSON object does."""
    return re.match(rb"(\xef\xbb\xbf)?\s*\{", values.head(path, 64)) is not None


def read(path: str, kind: str) -> dict:
    """A JSON object.

    Args:
      kind: of the checkpoint, for messages.

    Raises:
      UnreadableError: it is no JSON object, or an absurdly large one.
    """
    size = os.path.getsize(path)
    if size > _MAX_SIZE:
        raise values.damaged(path, kind, f"it has {size} bytes of JSON, expected at most {_MAX_SIZE}")
    with open(path, "rb") as file:
        data = file.read(_MAX_SIZE)
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > _MAX_VALUES:
        raise values.damaged(path, kind, f"its JSON has more than {_MAX_VALUES} values")
    try:
        found = json.loads(data)
        json.dumps(found, ensure_ascii=False).encode()  # halves of surrogate pairs could not be shown to anybody
    except (ValueError, RecursionError) as error:
        raise values.damaged(path, kind, f"its JSON cannot be read: {values.brief(str(error))}") from None
    if not isinstance(found, dict):
        raise values.damaged(path, kind, f"its JSON is {values.brief(found)}, expected an object")
    return found


def sibling(path: str, name: object) -> str:
    """The path of a file that the JSON file at `path` names.

    Raises:
      UserError: it would lie outside of that file's folder.
    """
    parts = re.split(r"[/\\]", name) if isinstance(name, str) else [""]
    if any(part in ("", ".", "..") or ":" in part or "\0" in part for part in parts):
        raise UserError(
            f"{path}: names the file {values.brief(name)}, expected one in the same folder; other files are not read"
        )
    return os.path.join(os.path.dirname(path), *parts)


def missing(path: str, kind: str, files: list[str]) -> UserError:
    """The error for files that are not there."""
    names = values.shown([os.path.relpath(file, os.path.dirname(path) or ".") for file in files])
    return values.damaged(path, kind, f"{len(files)} of the files that it names are missing: {names}")
