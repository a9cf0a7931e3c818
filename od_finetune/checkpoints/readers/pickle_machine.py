"""A pickle read as data: an interpreter of its opcodes that imports nothing and calls nothing of Python's.

What a pickle names, calls or fetches by a persistent id is handed to a `Meaning`, which decides what stands for it.
Values are numbers, strings, bytes, lists, tuples, dicts, sets and what the `Meaning` gave. The standard library's
`pickletools` describes the opcodes; those that checkpoints do not have (extensions, out-of-band buffers, old-style
instances) are refused. Work and memory are bounded by `PickleInput`.
"""

from __future__ import annotations

import pickle
import struct
import sys
from collections.abc import Callable, Iterable
from typing import Protocol

from od_finetune.checkpoints.readers.pickle_input import OBJECT, SLOT, MalformedPickle, PickleInput
from od_finetune.checkpoints.readers.values import brief

_ENTRY = 104  # bytes that an entry of a dict or set takes, with its growth
_MARK = object()
# Numbers below this all have hashes of their own. A file could choose greater ones to all have the same.
_MODULUS = sys.hash_info.modulus


class Meaning(Protocol):
    """What stands for what a pickle names. Each may raise MalformedPickle or a UserError."""

    def named(self, module: str, name: str) -> object:
        """For the global `module.name`."""

    def called(self, function: object, arguments: tuple) -> object:
        """For a call of what `named` gave."""

    def built(self, target: object, state: object) -> object:
        """For `target` after its state was set."""

    def fetched(self, identity: object) -> object:
        """For the object that the file keeps under a persistent id."""


def is_key(value: object) -> bool:
    """Whether a value may be a dict's key or in a set: strings and small numbers, which no file can choose so that
    hashing them takes long (tuples that hold each other twice over do, exponentially)."""
    return isinstance(value, (str, bytes, type(None))) or (isinstance(value, int) and abs(value) < _MODULUS)


def load(source: PickleInput, meaning: Meaning) -> object:
    """The next pickle's value; `source` then stands right behind it.

    Raises:
      MalformedPickle: the bytes are no pickle that a checkpoint has; or what `meaning` raises.
    """
    machine = Machine(source, meaning)
    while (code := source.opcode()) != pickle.STOP:
        operation = _OPERATIONS.get(code)
        if operation is None:
            raise MalformedPickle(f"byte {code[0]:#04x} is no pickle opcode that a checkpoint has")
        operation(machine)
    return machine.pop()


class Machine:
    """The stack and the memo of one pickle."""

    def __init__(self, source: PickleInput, meaning: Meaning) -> None:
        self.source = source
        self.meaning = meaning
        self._stack: list = []
        self._memo: dict[int, object] = {}

    def push(self, value: object, cost: int = 0) -> None:
        self.source.pay(cost)
        self._stack.append(value)

    def top(self) -> object:
        if not self._stack or self._stack[-1] is _MARK:
            raise MalformedPickle("it takes a value where none is")
        return self._stack[-1]

    def pop(self) -> object:
        self.top()
        return self._stack.pop()

    def drop(self) -> None:
        """Takes a value or a mark away."""
        if not self._stack:
            raise MalformedPickle("it takes a value where none is")
        self._stack.pop()

    def group(self) -> list:
        """What was pushed since the last mark."""
        for start in range(len(self._stack) - 1, -1, -1):
            if self._stack[start] is _MARK:
                group = self._stack[start + 1 :]
                del self._stack[start:]
                return group
        raise MalformedPickle("it ends a group that was not begun")

    def push_tuple(self, items: Iterable) -> None:
        value = tuple(items)
        self.push(value, OBJECT + SLOT * len(value))

    def push_list(self, items: list) -> None:
        self.push(items, OBJECT + SLOT * len(items))

    def push_dict(self, items: list) -> None:
        self.push({}, 2 * OBJECT)
        self.set_items(items)

    def push_frozen_set(self, items: list) -> None:
        self.push(set(), OBJECT)
        self.add(items)

    def append(self, items: list) -> None:
        self.source.pay(SLOT * len(items))
        self._growing(list).extend(items)

    def add(self, items: list) -> None:
        if not all(map(is_key, items)):
            raise MalformedPickle("a set has a member that cannot be one")
        self.source.pay(_ENTRY * len(items))
        self._growing(set).update(items)

    def set_items(self, items: list) -> None:
        target = self._growing(dict)
        if len(items) % 2:
            raise MalformedPickle("a dict has a key without a value")
        self.source.pay(_ENTRY * (len(items) // 2))
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not is_key(key):
                raise MalformedPickle(f"a dict has {brief(key)} for a key")
            target[key] = value

    def _growing(self, kind: type) -> object:
        target = self.top()
        if type(target) is not kind:
            raise MalformedPickle(f"it adds to {brief(target)} as to a {kind.__name__}")
        return target

    def put(self, index: int) -> None:
        if not 0 <= index < 1 << 32:
            raise MalformedPickle("it remembers a value under a number that is too great")
        self.source.pay(_ENTRY)
        self._memo[index] = self.top()

    def memoize(self) -> None:
        self.put(len(self._memo))

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise MalformedPickle("it refers to a value that it did not remember")
        self.push(self._memo[index])

    def push_named(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise MalformedPickle("it names something by what is no string")
        self.push(self.meaning.named(module, name), OBJECT)

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if type(arguments) is not tuple:
            raise MalformedPickle("it calls something with what are no arguments")
        # What is made may be as long as what it is made of: paid for before, whatever it will be.
        self.source.pay(sum(map(_cost, arguments)))
        self.push(self.meaning.called(function, arguments), 4 * OBJECT)

    def build(self) -> None:
        state, target = self.pop(), self.pop()
        self.push(self.meaning.built(target, state))

    def fetch(self) -> None:
        self.push(self.meaning.fetched(self.pop()), 2 * OBJECT)


def _cost(argument: object) -> int:
    if isinstance(argument, (list, tuple, dict, set)):
        return _ENTRY * len(argument)
    return len(argument) if isinstance(argument, (str, bytes)) else 0


def _frame(machine: Machine) -> None:
    machine.source.expect(machine.source.unsigned(8))  # a hint for reading ahead


def _protocol(machine: Machine) -> None:
    if (protocol := machine.source.unsigned(1)) > pickle.HIGHEST_PROTOCOL:
        raise MalformedPickle(f"it is of protocol {protocol}, expected at most {pickle.HIGHEST_PROTOCOL}")


def _named_on_stack(machine: Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.push_named(module, name)


_O = Callable[[Machine], None]
_NUMBERS: dict[bytes, _O] = {
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.INT: lambda m: m.push(m.source.int_line()),
    pickle.LONG: lambda m: m.push(m.source.int_line()),
    pickle.BININT: lambda m: m.push(m.source.signed(4)),
    pickle.BININT1: lambda m: m.push(m.source.unsigned(1)),
    pickle.BININT2: lambda m: m.push(m.source.unsigned(2), OBJECT),
    pickle.LONG1: lambda m: m.push(m.source.signed(m.source.unsigned(1))),
    pickle.LONG4: lambda m: m.push(m.source.signed(m.source.unsigned(4))),
    pickle.FLOAT: lambda m: m.push(m.source.float_line()),
    pickle.BINFLOAT: lambda m: m.push(struct.unpack(">d", m.source.blob(8))[0]),
}
_STRINGS: dict[bytes, _O] = {
    pickle.UNICODE: lambda m: m.push(m.source.text_line("raw-unicode-escape")),
    pickle.SHORT_BINUNICODE: lambda m: m.push(m.source.text(m.source.unsigned(1))),
    pickle.BINUNICODE: lambda m: m.push(m.source.text(m.source.unsigned(4))),
    pickle.BINUNICODE8: lambda m: m.push(m.source.text(m.source.unsigned(8))),
    pickle.STRING: lambda m: m.push(m.source.quoted_line()),
    pickle.SHORT_BINSTRING: lambda m: m.push(m.source.old_string(m.source.unsigned(1))),
    pickle.BINSTRING: lambda m: m.push(m.source.old_string(m.source.unsigned(4))),
    pickle.SHORT_BINBYTES: lambda m: m.push(m.source.blob(m.source.unsigned(1))),
    pickle.BINBYTES: lambda m: m.push(m.source.blob(m.source.unsigned(4))),
    pickle.BINBYTES8: lambda m: m.push(m.source.blob(m.source.unsigned(8))),
    pickle.BYTEARRAY8: lambda m: m.push(m.source.blob(m.source.unsigned(8))),
}
_CONTAINERS: dict[bytes, _O] = {
    pickle.MARK: lambda m: m.push(_MARK),
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.TUPLE1: lambda m: m.push_tuple([m.pop()]),
    pickle.TUPLE2: lambda m: m.push_tuple([m.pop(), m.pop()][::-1]),
    pickle.TUPLE3: lambda m: m.push_tuple([m.pop(), m.pop(), m.pop()][::-1]),
    pickle.TUPLE: lambda m: m.push_tuple(m.group()),
    pickle.EMPTY_LIST: lambda m: m.push_list([]),
    pickle.LIST: lambda m: m.push_list(m.group()),
    pickle.APPEND: lambda m: m.append([m.pop()]),
    pickle.APPENDS: lambda m: m.append(m.group()),
    pickle.EMPTY_DICT: lambda m: m.push_dict([]),
    pickle.DICT: lambda m: m.push_dict(m.group()),
    pickle.SETITEM: lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    pickle.SETITEMS: lambda m: m.set_items(m.group()),
    pickle.EMPTY_SET: lambda m: m.push(set(), 4 * OBJECT),
    pickle.FROZENSET: lambda m: m.push_frozen_set(m.group()),
    pickle.ADDITEMS: lambda m: m.add(m.group()),
}
_OTHERS: dict[bytes, _O] = {
    pickle.PROTO: _protocol,
    pickle.FRAME: _frame,
    pickle.POP: Machine.drop,
    pickle.POP_MARK: lambda m: None if m.group() else None,
    pickle.DUP: lambda m: m.push(m.top()),
    pickle.PUT: lambda m: m.put(m.source.int_line()),
    pickle.BINPUT: lambda m: m.put(m.source.unsigned(1)),
    pickle.LONG_BINPUT: lambda m: m.put(m.source.unsigned(4)),
    pickle.MEMOIZE: Machine.memoize,
    pickle.GET: lambda m: m.get(m.source.int_line()),
    pickle.BINGET: lambda m: m.get(m.source.unsigned(1)),
    pickle.LONG_BINGET: lambda m: m.get(m.source.unsigned(4)),
    pickle.GLOBAL: lambda m: m.push_named(m.source.text_line(), m.source.text_line()),
    pickle.STACK_GLOBAL: _named_on_stack,
    pickle.REDUCE: Machine.call,
    pickle.NEWOBJ: Machine.call,
    pickle.BUILD: Machine.build,
    pickle.BINPERSID: Machine.fetch,
}
_OPERATIONS: dict[bytes, _O] = _NUMBERS | _STRINGS | _CONTAINERS | _OTHERS
