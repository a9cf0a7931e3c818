"""`--set path=value`: changes to a config from the command line.

A path is field names joined by dots, from the top of the config; `[2]` picks an element of a repeated field, `[+]`
appends one, `[key]` picks an entry of a map. A repeated field that holds exactly one message may go without index.

Values: numbers; `true`/`false`; names of enum values; strings with or without quotes; `{...}` text format for a message
(which replaces it) and `[a, b]` for a whole list; nothing at all empties a list. Naming a member of a oneof clears the
other members.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from od_finetune.errors import UserError

_STEP = re.compile(r"(?P<name>[A-Za-z_]\w*)(?:\[(?P<index>[^\]]*)\])?(?:\.|$)")
_NO_FIELD = re.compile(r'Message type "(?P<type>[^"]+)" has no field named "(?P<name>[^"]+)"')
_INTEGERS = {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64}
_UNSIGNED = {FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64}
_FLOATS = {FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE}
_BOOLS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


class OverrideError(UserError):
    """An override that names no field, or holds a value of the wrong type."""


def apply(config: Message, overrides: Iterable[str]) -> None:
    """Applies overrides in order, in place. Either all of one override applies, or OverrideError is raised."""
    for override in overrides:
        path, separator, value = override.partition("=")
        if not separator:
            raise OverrideError(f"--set {override}: expected path=value, e.g. train_config.batch_size=4")
        _Override(path.strip(), value.strip()).apply(config)


def split_path(path: str) -> list[tuple[str, str | None]]:
    """`a.b[0].c` -> [("a", None), ("b", "0"), ("c", None)]; an empty list if it is no path."""
    steps, position = [], 0
    while position < len(path):
        match = _STEP.match(path, position)
        if match is None:
            return []
        steps.append((match["name"], match["index"]))
        position = match.end()
    return [] if path.endswith(".") else steps


class _Override:
    """One path and its value; both are kept for error messages."""

    def __init__(self, path: str, value: str):
        self.path = path
        self.value = value

    def error(self, text: str) -> OverrideError:
        return OverrideError(f"--set {self.path}={self.value}: {text}")

    def apply(self, config: Message) -> None:
        steps = split_path(self.path)
        if not steps:
            raise self.error("not a path; expected field names joined by dots, e.g. eval_input_reader[0].shuffle=false")
        # On a copy, so that a value of the wrong type leaves no empty message behind.
        changed = type(config)()
        changed.CopyFrom(config)
        owner: Message = changed
        for name, index in steps[:-1]:
            owner = self._descend(owner, self._field(owner, name), index)
        name, index = steps[-1]
        self._assign(owner, self._field(owner, name), index)
        config.CopyFrom(changed)

    def _field(self, owner: Message, name: str) -> FieldDescriptor:
        fields = owner.DESCRIPTOR.fields_by_name
        if name in fields:
            return fields[name]
        raise self.error(_no_field(owner.DESCRIPTOR, name))

    def _descend(self, owner: Message, field: FieldDescriptor, index: str | None) -> Message:
        if not field.message_type:
            raise self.error(f"{field.name} is {describe(field)}, it has no fields below it")
        value = getattr(owner, field.name)
        if _is_map(field):
            value_field = field.message_type.fields_by_name["value"]
            if index is None or not value_field.message_type:
                raise self.error(f"{field.name} is {describe(field)}; set an entry with {field.name}[key]=value")
            return value[self._key(field, index)]
        if not field.is_repeated:
            if index is not None:
                raise self.error(f"{field.name} is not repeated; leave out the [{index}]")
            value.SetInParent()
            return value
        if index == "+":
            return value.add()
        if index is None and len(value) != 1:
            raise self.error(f"{field.name} is repeated and has {len(value)} elements; write {field.name}[0] or [+]")
        return value[self._position(field, value, index or "0")]

    def _assign(self, owner: Message, field: FieldDescriptor, index: str | None) -> None:
        if _is_map(field) and index is not None:
            self._assign_entry(owner, field, index)
        elif not field.is_repeated:
            if index is not None:
                raise self.error(f"{field.name} is not repeated; leave out the [{index}]")
            if field.message_type:
                getattr(owner, field.name).CopyFrom(self._message(field, self.value))
                getattr(owner, field.name).SetInParent()
            else:
                self._checked(field, setattr, owner, field.name, self._scalar(field, self.value))
        elif index is None:
            elements = self._list(owner, field)
            owner.ClearField(field.name)
            getattr(owner, field.name).MergeFrom(elements)
        else:
            self._assign_element(getattr(owner, field.name), field, index)

    def _assign_element(self, elements: Any, field: FieldDescriptor, index: str) -> None:
        if field.message_type:
            value = self._message(field, self.value)
            element = elements.add() if index == "+" else elements[self._position(field, elements, index)]
            element.CopyFrom(value)
        elif index == "+":
            self._checked(field, elements.append, self._scalar(field, self.value))
        else:
            position = self._position(field, elements, index)
            self._checked(field, elements.__setitem__, position, self._scalar(field, self.value))

    def _assign_entry(self, owner: Message, field: FieldDescriptor, index: str) -> None:
        key, value_field = self._key(field, index), field.message_type.fields_by_name["value"]
        entries = getattr(owner, field.name)
        if value_field.message_type:
            entries[key].CopyFrom(self._message(value_field, self.value))
        else:
            self._checked(value_field, entries.__setitem__, key, self._scalar(value_field, self.value))

    def _key(self, field: FieldDescriptor, index: str) -> Any:
        return self._scalar(field.message_type.fields_by_name["key"], index)

    def _position(self, field: FieldDescriptor, elements: Any, index: str) -> int:
        if not re.fullmatch(r"-?\d+", index):
            raise self.error(f"[{index}] is no index of {field.name}; expected a number, or [+] to append")
        position = int(index)
        if not -len(elements) <= position < len(elements):
            raise self.error(f"{field.name} has {len(elements)} elements, there is no [{index}]; append with [+]")
        return position

    def _list(self, owner: Message, field: FieldDescriptor) -> Any:
        """The elements that a value without index stands for: a text-format list, or one element."""
        holder = type(owner)()
        if not self.value:
            return getattr(holder, field.name)
        is_list = self.value.startswith("[")
        if is_list or _is_map(field) or field.message_type:
            try:
                text_format.Merge(f"{field.name}: {self.value}", holder)
                return getattr(holder, field.name)
            except text_format.ParseError as error:
                # `[abc]+` is a regular expression, not a list.
                if not is_list or field.cpp_type != FieldDescriptor.CPPTYPE_STRING:
                    raise self.error(f"expected {describe(field)}: {_reason(error)}") from None
        self._checked(field, getattr(holder, field.name).append, self._scalar(field, self.value))
        return getattr(holder, field.name)

    def _message(self, field: FieldDescriptor, value: str) -> Message:
        from google.protobuf import message_factory

        if not (value.startswith("{") and value.endswith("}")):
            raise self.error(f"{field.name} is {describe(field)}; set a field below it, or write {{field: value ...}}")
        parsed = message_factory.GetMessageClass(field.message_type)()
        try:
            text_format.Merge(value[1:-1], parsed)
        except text_format.ParseError as error:
            raise self.error(f"expected {describe(field)}: {_reason(error)}") from None
        return parsed

    def _scalar(self, field: FieldDescriptor, value: str) -> Any:
        kind = field.cpp_type
        try:
            if kind == FieldDescriptor.CPPTYPE_STRING:
                return _unquoted(value)
            if kind == FieldDescriptor.CPPTYPE_BOOL:
                return _BOOLS[value.lower()]
            if kind in _INTEGERS or kind in _UNSIGNED:
                return int(value, 0)
            if kind in _FLOATS:
                return float(value)
            return _enum_number(field, value)
        except (ValueError, KeyError):
            raise self.error(f"expected {describe(field)}, found {value!r}") from None

    def _checked(self, field: FieldDescriptor, function: Any, *arguments: Any) -> None:
        """Runs an assignment; protobuf checks ranges itself."""
        try:
            function(*arguments)
        except (ValueError, TypeError) as error:
            raise self.error(f"expected {describe(field)}: {error}") from None


def describe(field: FieldDescriptor) -> str:
    """What a field takes, in words: `a float`, `one of NONE, RELU`, `a list of strings`, `a message (Ssd)`."""
    if _is_map(field):
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        return f"a map from {_noun(key)} to {_noun(value)}"
    if field.is_repeated:
        return f"a list of {field.message_type.name} messages" if field.message_type else f"a list of {_noun(field)}s"
    if field.enum_type:
        return "one of " + ", ".join(field.enum_type.values_by_name)
    noun = _noun(field)
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"


def _noun(field: FieldDescriptor) -> str:
    kind = field.cpp_type
    if field.message_type:
        return f"message ({field.message_type.name})"
    if field.enum_type:
        return f"{field.enum_type.name} value"
    if kind in _INTEGERS:
        return "integer"
    if kind in _UNSIGNED:
        return "non-negative integer"
    if kind in _FLOATS:
        return "float"
    return "bool (true or false)" if kind == FieldDescriptor.CPPTYPE_BOOL else "string"


def _is_map(field: FieldDescriptor) -> bool:
    return bool(field.message_type and field.message_type.GetOptions().map_entry)


def _enum_number(field: FieldDescriptor, value: str) -> int:
    values = field.enum_type.values_by_name
    if value in values:
        return values[value].number
    return field.enum_type.values_by_number[int(value)].number


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value


def _reason(error: text_format.ParseError) -> str:
    if match := _NO_FIELD.search(str(error)):
        return _no_field(descriptor_pool.Default().FindMessageTypeByName(match["type"]), match["name"])
    return re.sub(r"^\d+:\d+ : ", "", str(error)).replace("od_finetune.protos.", "").strip()


def _no_field(descriptor: Descriptor, name: str) -> str:
    fields = descriptor.fields_by_name
    near = difflib.get_close_matches(name, fields, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(fields) or 'no fields'}"
    return f"{descriptor.name} has no field {name!r}; {hint}"
