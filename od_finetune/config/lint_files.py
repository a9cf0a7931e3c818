"""Checks of the files that a config names. Paths with a scheme (`gs://...`) are left to whoever opens them."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Iterator

from od_finetune.config.finding import ERROR, WARNING, Finding
from od_finetune.config.label_map import load_label_map
from od_finetune.errors import UserError
from od_finetune.protos import input_reader_pb2
from od_finetune.zoo import cache

_PLACEHOLDER = "PATH_TO_BE_CONFIGURED"


def checkpoint(path: str, prefix: str) -> Iterator[Finding]:
    """`prefix` is what `fine_tune_checkpoint` holds: a file, a folder, a prefix of `.index` and `.data-...`, or the
    `zoo:NAME` of a published checkpoint."""
    if not prefix:
        return
    if cache.is_name(prefix):
        try:
            cache.find(prefix)
        except UserError as error:
            yield Finding(ERROR, path, str(error))
        return
    if placeholder := _placeholder(path, prefix, "of the checkpoint to start from"):
        yield placeholder
    elif not is_remote(prefix) and not any(os.path.exists(name) for name in (prefix, f"{prefix}.index")):
        if os.path.exists(f"{prefix}.meta") or glob.glob(f"{glob.escape(prefix)}.data-*"):
            yield Finding(ERROR, path, f"{prefix}.index is missing beside the checkpoint's other files", "copy it too")
            return
        yield Finding(ERROR, path, f"no checkpoint {prefix!r}", _near_checkpoint(prefix))


def _near_checkpoint(prefix: str) -> str:
    stripped = re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", prefix)
    if stripped != prefix and os.path.exists(f"{stripped}.index"):
        return f"give it without the ending: {stripped!r}"
    folder = os.path.dirname(prefix) or "."
    if not os.path.isdir(folder):
        return f"there is no folder {folder!r} either"
    there = sorted(name.removesuffix(".index") for name in os.listdir(folder) if name.endswith(".index"))
    if not there:
        return f"{folder!r} holds no .index file"
    return f"{folder!r} holds {', '.join(there[:5])}{', ...' if len(there) > 5 else ''}"


def input_reader(path: str, reader: input_reader_pb2.InputReader, num_classes: int) -> Iterator[Finding]:
    """Records and label map of one input."""
    if reader.sample_1_of_n_examples == 0:
        yield Finding(ERROR, f"{path}.sample_1_of_n_examples", "is 0", "expected 1 (all) or more")
    inputs = reader.tf_record_input_reader.input_path
    if reader.WhichOneof("input_reader") != "external_input_reader" and not inputs:
        yield Finding(ERROR, f"{path}.tf_record_input_reader.input_path", "is not set", "name the TFRecord files")
    for index, pattern in enumerate(inputs):
        yield from _records(f"{path}.tf_record_input_reader.input_path[{index}]", pattern)
    weights = reader.sample_from_datasets_weights
    if weights and len(weights) != len(inputs):
        yield Finding(
            ERROR,
            f"{path}.sample_from_datasets_weights",
            f"has {len(weights)} weights for {len(inputs)} input_path entries",
            "expected one each",
        )
    yield from _label_map(f"{path}.label_map_path", reader.label_map_path, num_classes)


def _records(path: str, pattern: str) -> Iterator[Finding]:
    if placeholder := _placeholder(path, pattern, "of your TFRecord files"):
        yield placeholder
        return
    if is_remote(pattern):
        return
    files = [pattern] if os.path.exists(pattern) else glob.glob(pattern)
    if not files:
        yield Finding(ERROR, path, f"no file matches {pattern!r}", _near_file(pattern))
    for file in files:
        if os.path.isdir(file):
            yield Finding(ERROR, path, f"{file!r} is a folder", f"name files, such as '{file.rstrip('/')}/*.record'")
        elif os.path.getsize(file) == 0:
            yield Finding(ERROR, path, f"{file!r} is empty", "write the records anew")


def _near_file(pattern: str) -> str:
    folder = os.path.dirname(pattern) or "."
    if not os.path.isdir(folder):
        return f"there is no folder {folder!r}; relative paths start at {os.getcwd()!r}"
    near = difflib.get_close_matches(os.path.basename(pattern), os.listdir(folder), n=1)
    return f"did you mean {os.path.join(os.path.dirname(pattern), near[0])!r}?" if near else f"see {folder!r}"


def source_label_map(path: str, file: str) -> Iterator[Finding]:
    """The label map of a checkpoint's classes; ids that it leaves out cost nothing here."""
    yield from (finding for finding in _label_map(path, file, 0) if finding.severity == ERROR)


def _label_map(path: str, file: str, num_classes: int) -> Iterator[Finding]:
    if not file:
        yield Finding(ERROR, path, "is not set", "name the label map, a .pbtxt with one item { id name } per class")
        return
    if placeholder := _placeholder(path, file, "of your label map"):
        yield placeholder
        return
    if is_remote(file):
        return
    if not os.path.isfile(file):
        yield Finding(ERROR, path, f"no file {file!r}", _near_file(file))
        return
    try:
        labels = load_label_map(file)
    except UserError as error:
        yield Finding(ERROR, path, str(error))
        return
    yield from (Finding(ERROR, path, text) for text in labels.errors(num_classes or None))
    yield from (Finding(WARNING, path, text) for text in labels.warnings(num_classes or None))


def _placeholder(path: str, value: str, what: str) -> Finding | None:
    """Published configs say PATH_TO_BE_CONFIGURED where everyone has their own path."""
    if _PLACEHOLDER not in value:
        return None
    return Finding(ERROR, path, f"{value!r} still has the placeholder {_PLACEHOLDER}", f"put in the path {what}")


def is_remote(path: str) -> bool:
    """Whether a path has a scheme."""
    return "://" in path
