"""Published checkpoints by name (`zoo:NAME`): downloaded once, kept in a cache directory, verified at every use.

The environment: OD_FINETUNE_CACHE names the directory (else `od_finetune` in XDG_CACHE_HOME or ~/.cache),
OD_FINETUNE_ZOO_URL a mirror that has the same paths, OD_FINETUNE_OFFLINE=1 forbids the network.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import fcntl
import gzip
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from od_finetune import files
from od_finetune.errors import UnreadableError, UserError, first_line
from od_finetune.zoo import download
from od_finetune.zoo.table import CHECKSUMS, ENDING, ENTRIES, Checksum, Entry

logger = logging.getLogger(__name__)

SCHEME = "zoo:"
CACHE, MIRROR, OFFLINE = "OD_FINETUNE_CACHE", "OD_FINETUNE_ZOO_URL", "OD_FINETUNE_OFFLINE"

_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Record:
    """What is written beside an archive when it is complete."""

    url: str  # empty: it was put there by hand
    size: int
    sha256: str
    etag: str = ""
    last_modified: str = ""


def is_name(path: str) -> bool:
    """Whether a checkpoint's path is `zoo:NAME`."""
    return path.startswith(SCHEME)


def find(name: str) -> Entry:
    """The entry of a name, with or without `zoo:`: the archive's, or the title in the zoo's table.

    Raises:
      UserError: there is none; the message has the nearest names.
    """
    wanted = name.removeprefix(SCHEME).removesuffix(ENDING)
    for entry in ENTRIES:
        if wanted in (entry.name, entry.title):
            return entry
    choices = {spelling.lower(): entry.name for entry in ENTRIES for spelling in (entry.title, entry.name)}
    near = difflib.get_close_matches(wanted.lower(), choices, n=5, cutoff=0.5)
    named = list(dict.fromkeys(choices[spelling] for spelling in near))
    hint = f"the nearest: {', '.join(named)}" if named else "none is like it"
    raise UserError(f"{SCHEME}{wanted}: no checkpoint of the zoo; {hint}. `od-finetune zoo list` lists all of them.")


def directory() -> Path:
    """Where archives are kept."""
    chosen = os.environ.get(CACHE)
    if chosen:
        return Path(chosen).expanduser() / "zoo"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "od_finetune" / "zoo"


def archive(entry: Entry) -> Path:
    """The file that holds, or will hold, an entry's archive."""
    return directory() / f"{entry.name}{ENDING}"


def url(entry: Entry) -> str:
    """Where an entry is downloaded from.

    Raises:
      UserError: the mirror named in the environment is no http address.
    """
    base = os.environ.get(MIRROR) or entry.base_url
    if not base.startswith(("http://", "https://")):
        raise UserError(f"{MIRROR}: found {base!r}, expected an address that begins with http:// or https://")
    return f"{base.rstrip('/')}/{entry.path}"


def fetch(name: str) -> Path:
    """The archive of a name, downloaded if it is not there yet and verified if it is.

    Raises:
      UserError: no such name, no network, no room, or the download is not the archive it should be.
      UnreadableError: the archive in the cache is damaged.
    """
    entry = find(name)
    path = archive(entry)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            if not path.exists():
                _download(entry, path)
            elif (record := read_record(path)) is not None:
                _verify(path, record)
            else:
                _admit(path, entry, download.Version(""))
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise UserError(f"{path}: {reason}; name another cache directory in {CACHE}") from None
    return path


def read_record(path: Path) -> Record | None:
    """What is known of an archive in the cache; None if it came without the cache's doing."""
    try:
        return Record(**json.loads(_record_path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _download(entry: Entry, path: Path) -> None:
    address = url(entry)
    _record_path(path).unlink(missing_ok=True)  # of an archive that was deleted
    by_hand = f"Download {address} by hand and put it there as {path}."
    if os.environ.get(OFFLINE, "0") not in ("", "0"):
        raise UserError(f"{SCHEME}{entry.name} is not in the cache, and {OFFLINE} is set. {by_hand}")
    logger.info("Downloading %s to %s", address, path)
    # A name of its own until it is known to be whole: a file called `path` can always be used.
    fresh = path.with_name(f"{path.name}.new")
    try:
        if not fresh.exists():
            version = download.download(address, fresh)
        else:  # ended between download and check
            version = download.Version(address)
    except UserError as error:
        raise UserError(f"{SCHEME}{entry.name} can't be downloaded: {error}. {by_hand}") from None
    try:
        _admit(fresh, entry, version, path)
    except UserError as error:
        fresh.unlink()
        raise UserError(f"{error} Nothing of it was kept. {by_hand}") from None
    logger.info("%s is complete (%.1f MB)", path.name, path.stat().st_size / 1e6)


def _admit(path: Path, entry: Entry, version: download.Version, final: Path | None = None) -> None:
    """Checks a new archive to its end, puts it in its place and records what it is."""
    digest = _sha256(path)
    if (known := CHECKSUMS.get(entry.name)) is not None:
        _compare(path, known, version.url)
    _read_through(path, version.url)
    record = Record(version.url, path.stat().st_size, digest, version.etag, version.last_modified)
    final = final or path
    files.write_json(_record_path(final), dataclasses.asdict(record))
    os.replace(path, final)


def _verify(path: Path, record: Record) -> None:
    size = path.stat().st_size
    found = f"{size} bytes" if size != record.size else f"SHA-256 {_sha256(path)}"
    expected = f"{record.size} bytes" if size != record.size else f"SHA-256 {record.sha256}"
    if found != expected:
        raise UnreadableError(
            f"{path} has changed since it was downloaded: it has {found}, it had {expected}. Delete it, and it is "
            "downloaded anew."
        )


def _compare(path: Path, known: Checksum, source: str) -> None:
    size = path.stat().st_size
    if known.size is not None and size != known.size:
        raise UnreadableError(f"{source or path}: is {size} bytes long, but the published archive has {known.size}.")
    found = _digest(path, known.algorithm)
    if found != known.digest:
        raise UnreadableError(
            f"{source or path}: its {known.algorithm.upper()} is {found}, but that of the published archive is "
            f"{known.digest}."
        )


def _read_through(path: Path, source: str) -> None:
    """Gzip ends with a checksum, so this finds what is cut short, damaged or no archive at all."""
    try:
        with gzip.open(path) as file:
            while file.read(_CHUNK):
                pass
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        with open(path, "rb") as file:
            beginning = file.read(40)
        raise UnreadableError(
            f"{source or path}: no complete {ENDING} ({error}); it begins with {beginning!r}."
        ) from None


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keeps other processes from the same archive. The system lifts the lock if this process dies."""
    with open(path.with_name(f".{path.name}.lock"), "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("Another process is at %s; waiting for it", path.name)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _sha256(path: Path) -> str:
    return _digest(path, "sha256")


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
