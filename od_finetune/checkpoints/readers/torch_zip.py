"""PyTorch's archive (since 1.6): a zip of `<name>/data.pkl`, and of `<name>/data/<key>` for each storage, uncompressed.

An archive that somebody packed again may be compressed; one that unpacks to more than twice its size is refused.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator

from od_finetune.checkpoints.readers import values
from od_finetune.errors import UserError

KIND = "PyTorch"
# What zipfile and zlib raise for archives that are damaged.
ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)
_PICKLE = re.compile(r"[^/]*/data\.pkl")
_LOCAL = b"PK\x03\x04"
_SLACK = 1 << 20  # bytes that small files may unpack to beyond their size


class Archive:
    """An archive whose directory was read and checked."""

    def __init__(self, path: str) -> None:
        """Raises UnreadableError where the directory is damaged, UserError for what must not be unpacked."""
        self.path = path
        with self.guarded():
            _check_directory_size(path)
            self._file = zipfile.ZipFile(path)  # closes itself when the archive is forgotten
        members = self._file.infolist()
        self._members = {member.filename: member for member in members}
        pickles = [name for name in self._members if _PICKLE.fullmatch(name)]
        if len(self._members) != len(members) or len(pickles) != 1:
            raise values.damaged(path, KIND, f"it has {len(pickles)} members data.pkl, expected one")
        self._root = pickles[0].removesuffix("data.pkl")
        self._check(members)

    def _check(self, members: list[zipfile.ZipInfo]) -> None:
        size, unpacked = os.path.getsize(self.path), sum(member.file_size for member in members)
        if self.size("constants.pkl") is not None and any("/code/" in name for name in self._members):
            raise UserError(
                f"{self.path}: a TorchScript archive, which holds a program; save its weights alone: "
                "torch.save(torch.jit.load(...).state_dict(), 'weights.pth')"
            )
        if any(member.flag_bits & 1 for member in members):
            raise UserError(f"{self.path}: an encrypted archive; save the checkpoint without a password")
        if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
            raise UserError(f"{self.path}: compressed in a way that PyTorch cannot read; pack it with zip -0")
        if unpacked > 2 * size + _SLACK:
            raise UserError(
                f"{self.path}: says that it unpacks to {unpacked} bytes, the file has {size}; PyTorch does not "
                "compress: if it was packed again, pack it with zip -0"
            )

    def size(self, name: str) -> int | None:
        """Bytes of a member, unpacked; None if there is none of this name."""
        member = self._members.get(self._root + name)
        return None if member is None else member.file_size

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[io.BufferedIOBase]:
        """A member as a stream; its checksum is compared once it was read to its end.

        Raises:
          UnreadableError: the member is gone or damaged; also for what the caller's reading of it raises.
        """
        with self.guarded(), self._file.open(self._root + name) as stream:
            yield stream

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Turns zipfile's errors into UnreadableError."""
        try:
            yield
        except UserError:
            raise
        except (*ERRORS, KeyError) as error:
            what = str(error) or type(error).__name__
            if "CRC" in what:
                what += " (or torch.serialization.set_crc32_options(False) was on: save it without)"
            raise values.damaged(self.path, KIND, what) from None


def sniff(path: str) -> bool:
    """Whether the file is such an archive, whole or not."""
    start = values.head(path, 256)
    if not start.startswith(_LOCAL):
        return False
    name_length = int.from_bytes(start[26:28], "little")
    if _PICKLE.fullmatch(start[30 : 30 + name_length].decode("latin-1")):
        return True  # torch.save writes it first, so an archive that was cut short still shows what it was
    try:
        _check_directory_size(path)
        with zipfile.ZipFile(path) as file:
            return any(_PICKLE.fullmatch(name) for name in file.namelist())
    except ERRORS:
        return False


def _check_directory_size(path: str) -> None:
    """zipfile reads an archive's whole directory and makes ten times its size of it: not of an absurd one.

    Raises:
      BadZipFile: there is no directory, or it is too large to be one of an archive of this size.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        file.seek(max(0, size - (1 << 16) - 22))
        tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) - end < 22:
        raise zipfile.BadZipFile("it ends without a directory")
    directory = int.from_bytes(tail[end + 12 : end + 16], "little")
    locator = tail[max(0, end - 20) : end]
    if locator.startswith(b"PK\x06\x07"):
        with values.open_at(path, min(int.from_bytes(locator[8:16], "little"), size)) as file:
            directory = int.from_bytes(file.read(56)[40:48], "little")
    if directory > (4 << 20) + size // 8:
        raise zipfile.BadZipFile(f"its directory has {directory} bytes of {size}")
