"""Append-only files of JSON lines, each with its own checksum, for work that may be killed."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from thinkjepa.cache.disk.files import crc32c, explained_os_errors, fsync_folder, replace_file
from thinkjepa.cache.records import CacheError, canonical_json

POLL_S = 0.1


class Journal:
    """A journal that one process appends to: nobody else can open it until it is closed.

    The lock is the operating system's (`flock`), so a process that was killed holds nothing.
    """

    def __init__(self, path: Path, *, patience_s: float) -> None:
        """Open or create. Raises CacheError where another process has it open for all of `patience_s`."""
        self.path = path
        with explained_os_errors("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _opened_alone(path, patience_s)
            self.lines, whole = _whole_lines(path.read_bytes())
            self._file.truncate(whole)  # a torn tail was never committed, and nothing may be glued to it
            if not whole:
                fsync_folder(path.parent)

    def append(self, record: Mapping[str, Any]) -> None:
        """Append one record and make it durable."""
        with explained_os_errors("write", self.path):
            self._file.write(encoded_line(record))
            os.fsync(self._file.fileno())

    def rewrite(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Put other records in place of all, at once, and close."""
        replace_file(self.path, b"".join(map(encoded_line, records)))
        self.close()

    def remove(self) -> None:
        """Take the file away while it is still ours."""
        with explained_os_errors("remove", self.path):
            self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let others open it."""
        self._file.close()


def _opened_alone(path: Path, patience_s: float) -> Any:
    deadline = time.monotonic() + patience_s
    while True:
        file = path.open("ab", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                return file
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                file.close()
                raise CacheError(
                    f"{str(path)!r} is still being written by another process: end that process, or wait"
                ) from error
            time.sleep(POLL_S)
        file.close()


def encoded_line(record: Mapping[str, Any]) -> bytes:
    """`<crc32c of the rest, 8 hex digits> <JSON>` and a newline."""
    body = canonical_json(dict(record)).encode()
    return b"%08x %s\n" % (_checksum(body), body)


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one record to a file that nobody else writes, and make it durable."""
    with explained_os_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            file.seek(0)
            _, whole = _whole_lines(file.read())
            file.truncate(whole)
            file.write(encoded_line(record))
            os.fsync(file.fileno())
        fsync_folder(path.parent)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Whole records in order, up to a torn tail (a run killed while appending); none without a file."""
    if not path.exists():
        return []
    with explained_os_errors("read", path):
        return _whole_lines(path.read_bytes())[0]


def remove(path: Path) -> None:
    with explained_os_errors("remove", path):
        path.unlink(missing_ok=True)


def _whole_lines(content: bytes) -> tuple[list[dict[str, Any]], int]:
    """Records before the first line that is not whole, and how many bytes they take."""
    records: list[dict[str, Any]] = []
    whole = 0
    for line in content.splitlines(keepends=True):
        body = line[9:-1]
        if not line.endswith(b"\n") or line[:9] != b"%08x " % _checksum(body):
            break
        records.append(json.loads(body))
        whole += len(line)
    return records, whole


def _checksum(body: bytes) -> int:
    return crc32c(np.frombuffer(body, dtype=np.uint8))
