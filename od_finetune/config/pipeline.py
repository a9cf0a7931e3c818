"""Reading and writing `pipeline.config`, with errors that say where and what instead."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pool, message, text_format

from od_finetune import files
from od_finetune.config import overrides as overrides_lib
from od_finetune.errors import UserError
from od_finetune.protos.pipeline_pb2 import TrainEvalPipelineConfig

SAVED_NAME = "pipeline.config"

_NO_FIELD = re.compile(r'Message type "(?P<type>[^"]+)" has no field named "(?P<name>[^"]+)"')
_NO_ENUM_VALUE = re.compile(r'Enum type "(?P<type>[^"]+)" has no value (?:named|with number) (?P<name>\S+?)\.?$')
# Fields of a model message that change neither its variables nor what they are trained for.
_EVALUATION_ONLY = frozenset({"post_processing", "second_stage_post_processing"})


class ConfigError(UserError):
    """A config that cannot be read. `line` and `column` (from 1) say where, if known."""

    def __init__(self, text: str, line: int | None = None, column: int | None = None):
        super().__init__(text)
        self.line = line
        self.column = column


def load(path: str | os.PathLike, overrides: Iterable[str] = ()) -> TrainEvalPipelineConfig:
    """Reads the config at `path` and applies `--set` style overrides (`"train_config.batch_size=4"`) in order.

    Raises:
      ConfigError: no such file, not text, or a syntax error (with line, column and the nearest valid name).
      OverrideError: an override that names no field or holds a value of the wrong type.
    """
    config = parse(read_text(path), str(path))
    overrides_lib.apply(config, overrides)
    return config


def read_text(path: str | os.PathLike) -> str:
    """The text of a config file."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a pipeline.config") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; give the path of a pipeline.config in it") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not a text file (byte {error.start} is no UTF-8); a pipeline.config is text, "
            "did you mean the one beside this file?"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def parse(text: str, name: str = "config") -> TrainEvalPipelineConfig:
    """Parses config text; `name` is what errors call it."""
    config = TrainEvalPipelineConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        raise _explain(error, text, name) from None
    return config


def _explain(error: text_format.ParseError, text: str, name: str) -> ConfigError:
    what = re.sub(r"^\d+:\d+ : ", "", str(error)).replace("od_finetune.protos.", "").strip()
    line, column = error.GetLine(), error.GetColumn()
    hint = ""
    if match := _NO_FIELD.search(str(error)):
        descriptor = descriptor_pool.Default().FindMessageTypeByName(match["type"])
        line, column = _locate(text, match["name"], line, column)
        what = f"{descriptor.name} has no field {match['name']!r}"
        hint = "; " + nearest_hint(match["name"], [field.name for field in descriptor.fields])
    elif match := _NO_ENUM_VALUE.search(str(error)):
        descriptor = descriptor_pool.Default().FindEnumTypeByName(match["type"])
        line, column = _locate(text, match["name"], line, column)
        what = f"{match['name']!r} is no value of {descriptor.name}"
        hint = "; choose one of " + ", ".join(descriptor.values_by_name)
    place = f"{name}:{line}:{column}" if line is not None else name
    return ConfigError(f"{place}: {what}{hint}", line, column)


def _locate(text: str, word: str, line: int | None, column: int | None) -> tuple[int | None, int | None]:
    """Where `word` stands: the parser reports the token after an unknown name, which may be on a later line."""
    if line is None:
        return line, column
    lines = text.splitlines()
    word_pattern = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")
    for index in range(min(line, len(lines)) - 1, -1, -1):
        matches = [m.start() + 1 for m in word_pattern.finditer(lines[index].split("#")[0])]
        if index == line - 1 and column is not None:
            matches = [start for start in matches if start <= column]
        if matches:
            return index + 1, matches[-1]
    return line, column


def nearest_hint(name: str, choices: Iterable[str]) -> str:
    """`did you mean 'x'?`, or the list of choices where none is near."""
    choices = list(choices)
    if near := difflib.get_close_matches(name, choices, n=1, cutoff=0.6):
        return f"did you mean {near[0]!r}?"
    return "choose one of " + ", ".join(choices) if choices else "it has no fields"


def to_text(config: message.Message) -> str:
    """The config as text, in the order of the field numbers."""
    return text_format.MessageToString(config)


def save(config: TrainEvalPipelineConfig, model_dir: str | os.PathLike) -> Path:
    """Writes `model_dir/pipeline.config`; a reader sees the old file or the new one, never half of one."""
    target = Path(model_dir) / SAVED_NAME
    files.write_text(target, to_text(config))
    return target


def differences(old: message.Message, new: message.Message, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (path, old value, new value) where two messages of one type differ in effect.

    An unset scalar equals one that is set to its default. A message that only one of them has is one difference, with
    None for the other; lists that differ in length are one difference.
    """
    for field in old.DESCRIPTOR.fields:
        path = f"{prefix}{field.name}"
        first, second = getattr(old, field.name), getattr(new, field.name)
        if field.is_repeated:
            is_list_of_messages = field.message_type and not field.message_type.GetOptions().map_entry
            if is_list_of_messages and len(first) == len(second):
                for index, (a, b) in enumerate(zip(first, second, strict=True)):
                    yield from differences(a, b, f"{path}[{index}].")
            elif first != second:
                yield path, first, second
        elif field.message_type:
            has = old.HasField(field.name), new.HasField(field.name)
            if all(has):
                yield from differences(first, second, f"{path}.")
            elif any(has):
                yield path, first if has[0] else None, second if has[1] else None
        elif first != second:
            yield path, first, second


def model_differences(old: TrainEvalPipelineConfig, new: TrainEvalPipelineConfig) -> list[str]:
    """The fields below `model` in which two configs differ, as `path: old -> new`; empty where one's checkpoints fit
    the other. Post-processing is left out: it may change between a training and its evaluation."""
    return [
        f"{path}: {_short(a)} -> {_short(b)}"
        for path, a, b in differences(old.model, new.model, "model.")
        if not _EVALUATION_ONLY & set(re.split(r"[.\[]", path))
    ]


def _short(value: Any) -> str:
    if value is None:
        return "(not set)"
    if isinstance(value, message.Message):
        text = text_format.MessageToString(value, as_one_line=True)
        return f"{{{text[:60]}{'...' if len(text) > 60 else ''}}}"
    return repr(value) if isinstance(value, (str, bool)) else f"{value}"
