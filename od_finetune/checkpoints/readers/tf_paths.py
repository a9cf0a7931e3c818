"""From what a person writes to the prefix of a TensorFlow checkpoint, and whether its files are all there.

A checkpoint is `<prefix>.index` and its shards `<prefix>.data-00000-of-00001`; before 2017 it was one file. A
directory may have a text file `checkpoint` that names the latest prefix; the TF2 zoo's archives keep all of it in
a subdirectory `checkpoint`.
"""

from __future__ import annotations

import os
import re

from od_finetune.errors import UnreadableError, UserError

_SHARD = re.compile(r"\.data-(\d{5})-of-(\d{5})$")
_FILE_ENDING = re.compile(r"(\.index|\.meta|\.data-\d{5}-of-\d{5})$")
# The last eight bytes of LevelDB's table format, which both the index file and the old single file are.
_TABLE_END = bytes.fromhex("57fb808b247547db")
_STATE_FILE = "checkpoint"


def resolve(path: str) -> str | None:
    """The prefix that `path` means, or None if it is no TensorFlow checkpoint at all.

    Raises:
      UserError: a state file names a checkpoint that is gone, or a directory has several and no state file.
    """
    if os.path.isdir(path):
        return _resolve_directory(path)
    if os.path.basename(path) == _STATE_FILE and os.path.isfile(path):
        return _from_state_file(path)
    if _has_files(path):
        return path
    stripped = _FILE_ENDING.sub("", path)
    if stripped != path and _has_files(stripped):
        return stripped
    return path if _is_table(path) else None


def prefixes(directory: str) -> list[str]:
    """Names of the checkpoints whose index or data lie in a directory, in order of their step."""
    found = {_FILE_ENDING.sub("", name) for name in os.listdir(directory) if _FILE_ENDING.search(name)}
    return sorted(found, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def data_files(prefix: str) -> list[str]:
    """The data shards of a checkpoint, in order; empty for the old single-file format.

    Raises:
      UserError: the index or a shard is missing or cut short: the checkpoint was not written or copied to its end.
    """
    if not _has_files(prefix):
        return []
    directory, base = os.path.dirname(prefix) or ".", os.path.basename(prefix)
    shards = [name for name in os.listdir(directory) if name.startswith(base) and _SHARD.fullmatch(name[len(base) :])]
    if not os.path.exists(prefix + ".index"):
        raise _half_written(prefix, f"{base}.index is missing (it is written last)")
    if not _is_table(prefix + ".index"):
        size = os.path.getsize(prefix + ".index")
        raise _half_written(prefix, f"{base}.index ({size} bytes) is cut short or no index")
    if not shards:
        raise _half_written(prefix, f"there is {base}.index, but no {base}.data-00000-of-00001")
    total = max(int(_SHARD.search(name)[2]) for name in shards)
    expected = [f"{base}.data-{i:05d}-of-{total:05d}" for i in range(total)]
    missing = [name for name in expected if name not in shards]
    if missing:
        raise _half_written(prefix, f"{len(missing)} of {total} data files are missing: {', '.join(missing[:3])}")
    return [os.path.join(directory, name) for name in expected]


def _half_written(prefix: str, what: str) -> UnreadableError:
    return UnreadableError(
        f"{prefix}: a half-written or incompletely copied checkpoint: {what}. Copy all of its files again, "
        "or use an earlier checkpoint."
    )


def _has_files(prefix: str) -> bool:
    if os.path.isfile(prefix + ".index"):
        return True
    directory, base = os.path.dirname(prefix) or ".", os.path.basename(prefix)
    if not base or not os.path.isdir(directory):
        return False
    return any(name.startswith(base) and _SHARD.fullmatch(name[len(base) :]) for name in os.listdir(directory))


def _is_table(path: str) -> bool:
    if not os.path.isfile(path) or os.path.getsize(path) < len(_TABLE_END):
        return False
    with open(path, "rb") as file:
        file.seek(-len(_TABLE_END), os.SEEK_END)
        return file.read() == _TABLE_END


def _resolve_directory(directory: str) -> str | None:
    state = os.path.join(directory, _STATE_FILE)
    if os.path.isfile(state):
        return _from_state_file(state)
    found = prefixes(directory)
    if len(found) == 1:
        return os.path.join(directory, found[0])
    if found:
        raise UserError(
            f"{directory}: has {len(found)} checkpoints and no state file '{_STATE_FILE}' that says which is the "
            f"latest: {', '.join(found[:10])}. Name one, e.g. {os.path.join(directory, found[-1])}."
        )
    return _resolve_directory(state) if os.path.isdir(state) else None


def _from_state_file(state: str) -> str:
    with open(state, encoding="utf-8", errors="replace") as file:
        match = re.search(r'^\s*model_checkpoint_path\s*:\s*"((?:[^"\\]|\\.)*)"', file.read(), re.MULTILINE)
    if match is None:
        raise UserError(f"{state}: no checkpoint state file: it has no line model_checkpoint_path: \"...\".")
    named = re.sub(r"\\(.)", r"\1", match[1])
    directory = os.path.dirname(state) or "."
    # The path is absolute where the writer ran; a directory that was moved still has the files beside the state file.
    for candidate in (os.path.join(directory, named), os.path.join(directory, os.path.basename(named))):
        if _has_files(candidate) or _is_table(candidate):
            return candidate
    left = prefixes(directory)
    raise UserError(
        f"{state}: names the checkpoint {named}, which is gone. "
        + (f"The directory has: {', '.join(left[-10:])}. Name one." if left else "The directory has no other.")
    )
