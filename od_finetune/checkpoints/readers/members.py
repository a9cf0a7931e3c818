"""What lies in a tar or zip archive, listed and unpacked without trusting it.

A small archive can claim, or unpack to, any amount: every byte that comes out is counted against what its size can
honestly hold, whether it is wanted or only passed over.
"""

from __future__ import annotations

import gzip
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import IO, Any, NamedTuple

from od_finetune.errors import UnreadableError, UserError, first_line

_MOST_INFLATED = 40  # bytes per byte of archive: weights hardly shrink, graphs in text do to a tenth
_SLACK = 16 << 20
_MOST_MEMBERS = 100_000
_MOST_AT_ONCE = 8 << 20  # of a read: tarfile takes a header that claims to be long at its word
_CHUNK = 1 << 20
_UNREADABLE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
    LookupError,
)


class Member(NamedTuple):
    """A regular file in an archive; `name` is relative, with slashes, without `.` and `..`."""

    name: str
    size: int
    raw_name: str  # as the archive has it


class _Counted:
    """A file object that gives up once more comes out of it than an archive's size can honestly hold."""

    def __init__(self, file: IO[bytes], most: int, path: str) -> None:
        self._file, self._most, self._path = file, most, path

    def read(self, size: int = -1) -> bytes:
        if size is None or size < 0 or size > _MOST_AT_ONCE:
            raise UserError(f"{self._path}: refused: a header in it claims {size} bytes.")
        content = self._file.read(size)
        self._check(self._file.tell())
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check(offset)
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()

    def _check(self, position: int) -> None:
        if position > self._most:
            raise _bomb(self._path, position)


def is_tar(path: str) -> bool:
    """Whether a file is a tar archive, plain or gzipped, by the magic of its first header; damaged ones count."""
    try:
        with open(path, "rb") as file:
            head = file.read(512)
        if head[:2] == b"\x1f\x8b":
            with gzip.open(path) as file:
                head = file.read(512)
    except (OSError, EOFError, zlib.error):
        return False
    return head[257:262] == b"ustar"


def is_zip(path: str) -> bool:
    """Whether a file begins as a zip archive does."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


def zip_names(path: str) -> list[str] | None:
    """The names in a zip archive, unchecked; None where it is too damaged to have them."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except _UNREADABLE:
        return None


def listing(path: str) -> list[Member]:
    """The regular files of an archive.

    Raises:
      UnreadableError: it is damaged or cut short.
      UserError: it is refused: a name that leads out of it, a link, a device, more content than honest.
    """
    return _guarded(path, lambda: _zip_members(path) if is_zip(path) else _tar_members(path))


def content(path: str, member: Member) -> bytes:
    """A small member's bytes. Raises as `listing`."""

    def read() -> bytes:
        with _Opened(path) as archive, archive.member(member) as file:
            return file.read(member.size)

    return _guarded(path, read)


def extract(path: str, wanted: Sequence[Member], folder: str) -> None:
    """Writes members below `folder` (where nothing else is). Raises as `listing`, and where the disk is too full."""
    needed = sum(member.size for member in wanted)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{path}: its checkpoint takes {needed} bytes, {folder} has {free} free. Set TMPDIR elsewhere.")

    def write() -> None:
        with _Opened(path) as archive:
            for member in wanted:
                target = os.path.join(folder, *member.name.split("/"))
                os.makedirs(os.path.dirname(target), exist_ok=True)
                with archive.member(member) as packed, open(target, "xb") as output:
                    _copy(packed, output, member, path)

    _guarded(path, write)


class _Opened:
    """An archive of either kind, to read members of."""

    def __init__(self, path: str) -> None:
        self._archive: Any = zipfile.ZipFile(path) if is_zip(path) else _tar(path)
        self._members = {} if is_zip(path) else None

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    def member(self, member: Member) -> IO[bytes]:
        if self._members is None:
            file = self._archive.extractfile(member.raw_name)
            if file is None:
                raise ValueError(f"{member.name} is no file")
            return file
        return self._archive.open(member.raw_name)


def _tar(path: str) -> tarfile.TarFile:
    most = _most(path)
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    file = gzip.open(path) if packed else open(path, "rb")
    return tarfile.open(fileobj=_Counted(file, most, path), mode="r:", bufsize=tarfile.BLOCKSIZE)


def _tar_members(path: str) -> list[Member]:
    found = []
    with _tar(path) as archive:
        total = 0
        for count, member in enumerate(archive):
            total += member.size
            if total > _most(path) or count >= _MOST_MEMBERS:
                raise _bomb(path, total)
            if member.isdir():
                _safe(path, member.name)
            elif not member.isreg() or member.issparse():
                raise UserError(f"{path}: refused: {member.name!r} in it is a link, a device or no plain file.")
            else:
                found.append(Member(_safe(path, member.name), member.size, member.name))
        end = archive.fileobj.tell()
        if not found or end < archive.offset:
            raise tarfile.ReadError("it ends before its members do")
    return _unique(path, found)


def _zip_members(path: str) -> list[Member]:
    found = []
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        total = sum(info.file_size for info in infos)
        if total > _most(path) or len(infos) > _MOST_MEMBERS:
            raise _bomb(path, total)
        for info in infos:
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UserError(f"{path}: refused: {info.filename!r} in it is a link or a device.")
            name = _safe(path, info.filename)
            if not info.is_dir():
                found.append(Member(name, info.file_size, info.filename))
    return _unique(path, found)


def _unique(path: str, found: list[Member]) -> list[Member]:
    names = [member.name for member in found]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise UserError(f"{path}: refused: it has {twice[0]!r} twice.")
    return found


def _safe(path: str, name: str) -> str:
    """A member's name without `./`; refused where it would lead out of the archive."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if name.startswith(("/", "\\")) or ".." in parts or "\0" in name or any(":" in part for part in parts[:1]):
        raise UserError(f"{path}: refused: the name {name!r} in it leads out of the archive.")
    return "/".join(parts)


def _copy(packed: IO[bytes], output: IO[bytes], member: Member, path: str) -> None:
    left = member.size
    while left and (chunk := packed.read(min(_CHUNK, left))):
        output.write(chunk)
        left -= len(chunk)
    if left:
        raise EOFError(f"{member.name} is cut short by {left} bytes")


def _most(path: str) -> int:
    return _MOST_INFLATED * os.path.getsize(path) + _SLACK


def _bomb(path: str, size: int) -> UserError:
    return UserError(
        f"{path}: refused: it has {os.path.getsize(path)} bytes and would unpack to {size} or more. If you trust it, "
        "unpack it yourself and name the checkpoint."
    )


def _guarded(path: str, act: Callable[[], Any]) -> Any:
    try:
        return act()
    except UserError:
        raise
    except _UNREADABLE as error:
        raise UnreadableError(
            f"{path}: a damaged or incompletely downloaded archive: {first_line(error)}. Get it again."
        ) from None
