"""Walking over messages with the paths that overrides, findings and positions use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message


def submessages(field: FieldDescriptor, value: object, path: str) -> Iterator[tuple[str, Message]]:
    """(path, message) of every message that the field at `path` holds: itself, list elements, values of a map."""
    if not field.message_type:
        return
    if isinstance(value, Mapping):
        entries = ((f"{path}[{key}]", value[key]) for key in value)
        yield from ((entry_path, entry) for entry_path, entry in entries if isinstance(entry, Message))
    elif field.is_repeated:
        yield from ((f"{path}[{index}]", element) for index, element in enumerate(value))
    else:
        yield path, value


def field_paths(message: Message, prefix: str = "") -> Iterator[str]:
    """Paths of all fields, set or not, of `message` and of the messages that are set in it."""
    there = dict((field.name, value) for field, value in message.ListFields())
    for field in message.DESCRIPTOR.fields:
        path = f"{prefix}{field.name}"
        yield path
        if field.name in there:
            for inner_path, inner in submessages(field, there[field.name], path):
                yield from field_paths(inner, f"{inner_path}.")
