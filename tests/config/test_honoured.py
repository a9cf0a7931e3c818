"""The tables of honoured fields against the compiled protos and against the code."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor import Descriptor

import od_finetune
from od_finetune import protos
from od_finetune.config import honoured, honoured_tables
from od_finetune.config.augmentation import TABLE

SOURCES = Path(od_finetune.__file__).parent
# These talk about fields without acting on them.
TALKERS = {"honoured.py", "honoured_tables.py", "lint.py", "lint_checks.py", "lint_deep.py", "lint_files.py",
           "lint_reads.py"}
# Where fields become named parameters by way of their descriptor or of a tuple's field names.
BY_PARAMETER_NAME = ["boxes/nms.py", *(f"data/{path.name}" for path in SOURCES.glob("data/augment_*.py"))]


def nested(message: Descriptor) -> Iterator[Descriptor]:
    if not message.GetOptions().map_entry:
        yield message
    for child in message.nested_types:
        yield from nested(child)


def all_messages() -> dict[str, Descriptor]:
    messages = {}
    for info in pkgutil.iter_modules(protos.__path__):
        module = importlib.import_module(f"{protos.__name__}.{info.name}")
        for top in module.DESCRIPTOR.message_types_by_name.values():
            messages.update({honoured.message_name(message): message for message in nested(top)})
    return messages


def test_every_field_is_in_exactly_one_table():
    wrong = []
    for name, message in all_messages().items():
        for field in message.fields:
            found = honoured.statuses(message, field.name)
            if len(found) != 1:
                wrong.append((name, field.name, found))
    assert wrong == []


def test_the_steps_that_are_not_listed_are_those_that_exist():
    steps = all_messages()[honoured_tables.STEPS].fields_by_name
    assert {name for name, step in steps.items() if honoured.status(step) is honoured.Status.HONOURED} == set(TABLE)


def test_the_tables_name_only_what_exists():
    messages = all_messages()
    for table in (honoured_tables.HONOURED, honoured_tables.UNHONOURED, honoured_tables.WITHOUT_EFFECT):
        for name, fields in table.items():
            assert name in messages, name
            listed = fields.split() if isinstance(fields, str) else list(fields)
            listed = [field for field in listed if field != honoured_tables.ALL]
            assert len(listed) == len(set(listed)), name
            assert [field for field in listed if field not in messages[name].fields_by_name] == [], name


def test_every_deprecated_field_has_a_replacement_and_the_reverse_is_a_field():
    messages = all_messages()
    deprecated = {
        (name, field.name)
        for name, message in messages.items()
        for field in message.fields
        if field.GetOptions().deprecated
    }
    assert deprecated - set(honoured_tables.REPLACED_BY) == set()
    for name, field in honoured_tables.REPLACED_BY:
        assert field in messages[name].fields_by_name


def names_in(path: Path, parameters: bool) -> Iterator[str]:
    """What code could read a field with: attributes, strings, keywords; with `parameters` also those of functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg
        elif parameters and isinstance(node, ast.arg):
            yield node.arg
        elif parameters and isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def composed_names(path: Path) -> Iterator[re.Pattern]:
    """Patterns of f-strings that look like parts of names, such as f"min_{name}"."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
            literal = "".join(part for part in parts if part)
            if literal and re.fullmatch(r"[a-z_]{4,}", literal):
                yield re.compile("".join(re.escape(part) if part else r"[a-z_]+" for part in parts))


def test_what_is_called_honoured_is_read_somewhere():
    """Guards against a table that promises what no code does."""
    readers = [path for path in (SOURCES / "config").glob("*.py") if path.name not in TALKERS]
    readers.append(SOURCES / "experiment.py")
    names = {name for path in readers for name in names_in(path, parameters=False)}
    names |= {name for path in BY_PARAMETER_NAME for name in names_in(SOURCES / path, parameters=True)}
    patterns = [pattern for path in readers for pattern in composed_names(path)]
    unread = []
    for message_name, message in all_messages().items():
        for field in message.fields:
            if honoured.status(field) is not honoured.Status.HONOURED or field.name in names:
                continue
            # A member of a oneof may be what is left when the others are ruled out.
            by_oneof = field.containing_oneof is not None and field.containing_oneof.name in names
            if not by_oneof and not any(pattern.fullmatch(field.name) for pattern in patterns):
                unread.append(f"{message_name}.{field.name}")
    assert unread == []
