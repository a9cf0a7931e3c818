"""Where in a config's text each field stands; the protobuf parser keeps no positions."""

from __future__ import annotations

import re

from google.protobuf.descriptor import Descriptor, FieldDescriptor

_TOKEN = re.compile(
    r"""(?P<skip>\s+|\#[^\n]*)
      | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
      | (?P<open>[{<])
      | (?P<close>[}>])
      | (?P<word>[-+.\w]+)
      | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)


def field_lines(text: str, root: Descriptor) -> dict[str, int]:
    """Field path -> line (from 1) for text that parses as `root`.

    Elements of repeated fields have an index in their path (`eval_input_reader[0].shuffle`), also where they stand in
    one `[a, b]` list. Entries of maps have only the path of the map.
    """
    return _Walk(text).message(root, "")


class _Walk:
    """A recursive walk over the tokens. It trusts that the text has parsed before."""

    def __init__(self, text: str):
        self.tokens: list[tuple[str, str, int]] = []
        line = 1
        for match in _TOKEN.finditer(text):
            if match.lastgroup != "skip":
                self.tokens.append((str(match.lastgroup), match.group(), line))
            line += match.group().count("\n")
        self.next = 0

    def _peek(self) -> tuple[str, str, int]:
        return self.tokens[self.next] if self.next < len(self.tokens) else ("end", "", 0)

    def message(self, descriptor: Descriptor, prefix: str) -> dict[str, int]:
        lines: dict[str, int] = {}
        counts: dict[str, int] = {}
        while self._peek()[0] not in ("close", "end"):
            kind, name, line = self._peek()
            self.next += 1
            field = descriptor.fields_by_name.get(name) if kind == "word" else None
            if field is None:
                continue
            if self._peek()[1] == ":":
                self.next += 1
            is_list = self._peek()[1] == "["
            self.next += is_list
            if is_list and self._peek()[1] == "]":
                self.next += 1
                continue
            while self._peek()[0] != "end":
                path = f"{prefix}{name}"
                lines.setdefault(path, line)
                if field.is_repeated and not _is_map(field):
                    path += f"[{counts.get(name, 0)}]"
                    counts[name] = counts.get(name, 0) + 1
                    lines[path] = self._peek()[2] if is_list else line
                lines.update(self._value(field, path))
                if not is_list:
                    break
                separator = self._peek()[1]
                self.next += 1
                if separator == "]":
                    break
        return lines

    def _value(self, field: FieldDescriptor, path: str) -> dict[str, int]:
        """Consumes one value; strings may come in several adjacent pieces."""
        kind = self._peek()[0]
        self.next += 1
        if kind == "open":
            inner = self.message(field.message_type, f"{path}.")
            self.next += 1
            return {} if _is_map(field) else inner
        while kind == "string" and self._peek()[0] == "string":
            self.next += 1
        return {}


def _is_map(field: FieldDescriptor) -> bool:
    return bool(field.message_type and field.message_type.GetOptions().map_entry)
