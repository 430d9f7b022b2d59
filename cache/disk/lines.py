"""Files of checked JSON lines that survive a kill at any moment: journals, assignments and the ledger.

A line is `<crc32c of the rest, 8 hex digits> <JSON>`, where the rest is what follows the space, without the
newline. Lines are only appended. A last line without its newline is torn: its writer was killed, and it
was never committed.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Self

from thinkjepa.cache.disk.files import checksum, explained_os_errors, fsync_folder, make_folder, write_all
from thinkjepa.cache.disk.json_text import parse_json
from thinkjepa.cache.records import CacheError, canonical_json

Record = dict[str, Any]

POLL_S = 0.1

NEWLINE = b"\n"


class LineFile:
    """A file of checked lines that one process has open. Others wait. A context manager.

    The lock is the operating system's (`flock`), so a process that was killed holds nothing.
    """

    def __init__(self, path: Path, *, patience_s: float | None = None) -> None:
        """Open the file, or create it.

        None waits for another process for as long as it takes. Raises CacheError where the wait takes longer
        than `patience_s`.
        """
        self.path = path
        with explained_os_errors("write", path):
            make_folder(path.parent)
            self._file = _opened_alone(path, patience_s)

    def resume(self) -> list[Record]:
        """The records before the first damaged line. The rest is cut off, the file's name synced."""
        with explained_os_errors("write", self.path):
            records, end = _committed(self.path.read_bytes())
            self._file.truncate(end)
            fsync_folder(self.path.parent)
        return records

    def append(self, records: Iterable[Mapping[str, Any]], *, durable: bool = True) -> None:
        """Append records. A torn last line is cut off first. `durable` syncs the records to the disk."""
        with explained_os_errors("write", self.path):
            is_new = self._cut_torn_line() == 0
            write_all(self._file.fileno(), [encoded(records)])
            if durable:
                os.fsync(self._file.fileno())
                if is_new:
                    fsync_folder(self.path.parent)

    def close(self) -> None:
        """Let others open it."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cut_torn_line(self) -> int:
        """Cut off what comes after the last newline. Returns the bytes that are left."""
        end = self._file.seek(0, os.SEEK_END)
        if end:
            self._file.seek(end - 1)
            if self._file.read(1) != NEWLINE:
                self._file.seek(0)
                end = self._file.truncate(self._file.read().rfind(NEWLINE) + 1)
        return end


def encoded(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Records as lines."""
    bodies = (canonical_json(dict(record)).encode() for record in records)
    return b"".join(b"%s %s\n" % (checksum([body]).encode(), body) for body in bodies)


def read_lines(path: Path) -> list[Record]:
    """The records before the first damaged line, none where there is no file."""
    if not path.exists():
        return []
    with explained_os_errors("read", path):
        return _committed(path.read_bytes())[0]


def checked_lines(content: bytes) -> tuple[list[Record], list[str]]:
    """All records whose lines are undamaged, and a message for each damaged line."""
    records: list[Record] = []
    damage: list[str] = []
    for number, (record, _) in enumerate(_scan(content), start=1):
        if record is None:
            damage.append(f"line {number} is damaged (crc32c differs)")
        else:
            records.append(record)
    return records, damage


def _committed(content: bytes) -> tuple[list[Record], int]:
    """Records before the first damaged line, and where the last of them ends."""
    records, committed = [], 0
    for record, end in _scan(content):
        if record is None:
            break
        records.append(record)
        committed = end
    return records, committed


def _scan(content: bytes) -> Iterator[tuple[Record | None, int]]:
    """Each line's record, None where it is damaged, and where it ends. A torn last line is left out."""
    end = 0
    *lines, rest = content.split(NEWLINE)
    for line in lines:
        end += len(line) + 1
        yield _decoded(line), end
    if _decoded(rest[:-1]) is not None:  # its newline itself is damaged
        yield None, len(content)


def _decoded(line: bytes) -> Record | None:
    body = line[9:]
    if not body or line[:9] != f"{checksum([body])} ".encode():
        return None
    try:
        record = parse_json(body)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _opened_alone(path: Path, patience_s: float | None) -> FileIO:
    """The file opened and locked, and still the one that the path names."""
    flags = fcntl.LOCK_EX if patience_s is None else fcntl.LOCK_EX | fcntl.LOCK_NB
    deadline = time.monotonic() + (patience_s or 0)
    while True:
        file = path.open("a+b", buffering=0)
        try:
            fcntl.flock(file, flags)
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
