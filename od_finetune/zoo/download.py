"""One file over HTTP: resumed where it broke off, tried again, complete or not there at all.

What has come so far is `<target>.part`, with `<target>.part.json` beside it: of which version of the file it is. A
part is continued (HTTP Range, RFC 9110) only if the server confirms that version (If-Range).
"""

from __future__ import annotations

import dataclasses
import errno
import http.client
import json
import logging
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from od_finetune import files
from od_finetune.errors import UserError, first_line

logger = logging.getLogger(__name__)

PART, PART_RECORD = ".part", ".part.json"

_CHUNK = 1 << 18
_SECONDS_BETWEEN_REPORTS = 5.0
# Answers that another try may change; every other one from 400 on is final.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_BROKEN = (OSError, http.client.HTTPException)  # urllib's URLError and timeouts are OSErrors


@dataclasses.dataclass(frozen=True)
class Version:
    """Which version of a file a server sent."""

    url: str
    etag: str = ""
    last_modified: str = ""
    size: int | None = None  # bytes; None where the server does not say

    def validator(self) -> str:
        """What If-Range can name: it takes no weak ETag. Empty where a part can't be continued."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


class _Incomplete(Exception):
    """The connection ended before the file did."""


def download(url: str, target: Path, attempts: int = 5, wait: float = 0.5, timeout: float = 60.0) -> Version:
    """Downloads `url` to `target`, which appears when it is complete.

    Args:
      url: http or https.
      target: in a directory that exists; an earlier part of it is continued.
      attempts: how many failures in a row, without a byte of progress between them, are too many.
      wait: seconds before the second attempt, doubled with each further one.
      timeout: seconds without a byte that count as a broken connection.

    Raises:
      UserError: the server refuses, can't be reached, or sends too little again and again; or the disk is full.
    """
    part = Path(f"{target}{PART}")
    failures = 0
    while True:
        before = _size(part)
        try:
            version = _attempt(url, target, timeout)
            break
        except (*_BROKEN, _Incomplete) as error:
            _raise_if_final(url, target, error)
            failures = 1 if _size(part) > before else failures + 1
            if failures >= attempts:
                raise UserError(f"{url}: {_reason(error)} ({attempts} attempts)") from None
            pause = wait * 2 ** (failures - 1)
            logger.warning("%s: %s; trying again in %.1f s", url, _reason(error), pause)
            time.sleep(pause)
    os.replace(part, target)
    Path(f"{target}{PART_RECORD}").unlink(missing_ok=True)
    return version


def _attempt(url: str, target: Path, timeout: float) -> Version:
    """One request; the part is complete when it returns."""
    part, record = Path(f"{target}{PART}"), Path(f"{target}{PART_RECORD}")
    have, known = _size(part), _known(record)
    try:
        response = urllib.request.urlopen(_request(url, have, known), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if known and known.size == have:  # it broke off between the last byte and the renaming
            return known
        part.unlink()
        raise _Incomplete("the server has less than was downloaded before") from None
    with response:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise UserError(f"{url}: the server sends it encoded ({response.headers['Content-Encoding']})")
        start = _start(response, have)
        version = _version(url, response, start)
        with open(part, "ab" if start else "wb") as file:
            files.write_json(record, dataclasses.asdict(version))
            _check_room(url, target.parent, version.size, start)
            _receive(response, file, start, version)
            file.flush()
            os.fsync(file.fileno())
    return version


def _request(url: str, have: int, known: Version | None) -> urllib.request.Request:
    """For all of the file, or for what follows the part, provided that the file is still the one it is a part of."""
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    if have and known and known.url == url and known.validator():
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", known.validator())
    return request


def _version(url: str, response: http.client.HTTPResponse, start: int) -> Version:
    length = response.headers.get("Content-Length")
    size = start + int(length) if length is not None else None
    return Version(url, response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""), size)


def _start(response: http.client.HTTPResponse, have: int) -> int:
    """At which byte the body begins: a server may answer a range with the whole file, if that has changed."""
    if response.status != http.client.PARTIAL_CONTENT:
        return 0
    content_range = response.headers.get("Content-Range", "")
    if not content_range.startswith(f"bytes {have}-"):
        raise _Incomplete(f"asked for bytes from {have} on, got {content_range or 'an unnamed range'}")
    return have


def _receive(response: http.client.HTTPResponse, file: BinaryIO, start: int, version: Version) -> None:
    done, size, progress = start, version.size, _Progress(version.url, version.size)
    for chunk in _chunks(response):
        file.write(chunk)
        done += len(chunk)
        progress.report(done)
    if size is not None and done != size:
        raise _Incomplete(f"the connection ended after {done} of {size} bytes")


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while chunk := response.read1(_CHUNK):
        yield chunk


class _Progress:
    """Says now and then how far a download is."""

    def __init__(self, url: str, size: int | None) -> None:
        self._name, self._size = url.rpartition("/")[2], size
        self._last = time.monotonic()

    def report(self, done: int) -> None:
        if time.monotonic() - self._last >= _SECONDS_BETWEEN_REPORTS:
            self._last = time.monotonic()
            share = f" of {self._size / 1e6:.1f} MB ({done / self._size:.0%})" if self._size else " MB"
            logger.info("%s: %.1f%s", self._name, done / 1e6, share)


def _check_room(url: str, directory: Path, size: int | None, start: int) -> None:
    free = shutil.disk_usage(directory).free
    if size is not None and size - start > free:
        raise OSError(errno.ENOSPC, f"{url} needs {(size - start) / 1e6:.1f} MB, {free / 1e6:.1f} MB are free")


def _raise_if_final(url: str, target: Path, error: BaseException) -> None:
    """Turns what trying again will not change into a UserError."""
    if isinstance(error, urllib.error.HTTPError) and error.code not in _PASSING:
        raise UserError(f"{url}: the server answers {error.code} {error.reason}") from None
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f"no room in {target.parent}"
        raise UserError(
            f"{where}: {error.strerror}. Free some, or name another directory in OD_FINETUNE_CACHE; what has come so "
            "far is kept and continued"
        ) from None
    if isinstance(error, (PermissionError, IsADirectoryError, NotADirectoryError, FileNotFoundError)):
        raise UserError(f"{error.filename or target}: can't be written to ({error.strerror})") from None


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"can't be reached ({getattr(error.reason, 'strerror', None) or error.reason})"
    return first_line(error)


def _known(record: Path) -> Version | None:
    try:
        return Version(**json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
