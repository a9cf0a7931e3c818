"""The arguments of a pickle's opcodes, read from a stream within a budget of bytes and opcodes."""

from __future__ import annotations

from od_finetune.checkpoints.readers.values import Stream, brief

OBJECT = 64  # bytes that a small Python object takes, with what refers to it
SLOT = 8  # bytes that a reference takes
_MAX_OPCODES = 20_000_000  # some ten seconds of work
_LONGEST_NUMBER = 256  # bytes; Python's generators of random numbers pickle numbers of 17
_LONGEST_LINE = 4096


class MalformedPickle(ValueError):
    """The bytes are no well-formed pickle, or ask for more than their budget; the message says what."""


class PickleInput:
    """A stream with the number of its bytes that are left and the memory that may still be used.

    No length in the file is believed before so many bytes are there, and every value is paid for before it is made.
    """

    def __init__(self, stream: Stream, size: int, budget: int) -> None:
        self._stream = stream
        self.left = size
        self._budget = budget
        self._opcodes = 0

    def opcode(self) -> bytes:
        """The next opcode, counted."""
        self._opcodes += 1
        if self._opcodes > _MAX_OPCODES:
            raise MalformedPickle(f"it has more than {_MAX_OPCODES} opcodes")
        self.pay(SLOT)
        return self.raw(1)

    def pay(self, cost: int) -> None:
        """Takes `cost` bytes of memory off the budget."""
        self._budget -= cost
        if self._budget < 0:
            raise MalformedPickle("it unpacks to far more than the file's size")

    def expect(self, size: int) -> None:
        """Checks that so many bytes are left."""
        if size > self.left:
            raise MalformedPickle(f"it ends {brief(size - self.left)} bytes early")

    def raw(self, size: int) -> bytes:
        """So many bytes, not paid for."""
        self.expect(size)
        data = self._stream.read(size)
        self.left -= len(data)
        if len(data) != size:
            raise MalformedPickle(f"it ends {size - len(data)} bytes early")
        return data

    def unsigned(self, size: int) -> int:
        """A little-endian number of `size` bytes."""
        return int.from_bytes(self.raw(size), "little")

    def signed(self, size: int) -> int:
        """A little-endian two's complement number of `size` bytes."""
        if not 0 <= size <= _LONGEST_NUMBER:
            raise MalformedPickle(f"it has a number of {size} bytes, expected at most {_LONGEST_NUMBER}")
        self.pay(OBJECT + size)
        return int.from_bytes(self.raw(size), "little", signed=True)

    def blob(self, size: int) -> bytes:
        """So many bytes, paid for."""
        self.expect(size)
        self.pay(OBJECT + size)
        return self.raw(size)

    def text(self, size: int) -> str:
        """UTF-8 of `size` bytes."""
        self.expect(size)
        self.pay(OBJECT + 4 * size)  # a character takes up to four bytes
        return _decoded(self.raw(size), "utf-8")

    def old_string(self, size: int) -> str | bytes:
        """A string of Python 2, which had one type for text and bytes."""
        self.expect(size)
        self.pay(OBJECT + 4 * size)
        return _text_or_bytes(self.raw(size))

    def line(self) -> bytes:
        """What is left of the line, without its end."""
        line = bytearray()
        while (byte := self.raw(1)) != b"\n":
            line += byte
            if len(line) > _LONGEST_LINE:
                raise MalformedPickle(f"it has a line of more than {_LONGEST_LINE} characters")
        self.pay(OBJECT + 4 * len(line))
        return bytes(line)

    def text_line(self, encoding: str = "utf-8") -> str:
        """A line of text."""
        return _decoded(self.line(), encoding)

    def quoted_line(self) -> str | bytes:
        """A string of Python 2 in quotes; one with escapes is refused, no checkpoint's names have any."""
        line = self.line()
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1] or b"\\" in line:
            raise MalformedPickle(f"{brief(line)} is no quoted string that a checkpoint has")
        return _text_or_bytes(line[1:-1])

    def int_line(self) -> int | bool:
        """A decimal number; protocol 0 writes False as 00 and True as 01."""
        line = self.line()
        if line in (b"00", b"01"):
            return line == b"01"
        try:
            if len(line) <= _LONGEST_NUMBER:
                return int(line.removesuffix(b"L"))
        except ValueError:
            pass
        raise MalformedPickle(f"{brief(line)} is no whole number of at most {_LONGEST_NUMBER} digits")

    def float_line(self) -> float:
        """A number as text."""
        line = self.line()
        try:
            return float(line)
        except ValueError:
            raise MalformedPickle(f"{brief(line)} is no number") from None


def _decoded(data: bytes, encoding: str) -> str:
    try:
        text = data.decode(encoding)
        text.encode("utf-8")  # halves of surrogate pairs could not be shown to anybody
    except UnicodeError:
        raise MalformedPickle("it has a string that is no text") from None
    return text


def _text_or_bytes(data: bytes) -> str | bytes:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data
