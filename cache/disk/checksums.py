"""checksums.jsonl: a checksum for every small file of a cache: no bit outside the shards is uncovered.

An append-only file of lines `<crc32c of the rest, 8 hex digits> <JSON>`. A file's new content is announced
(`writing`), then put in place, then confirmed (`written`): between the two either content is right, so a
run killed anywhere raises no false alarm. Shards and the journal carry checksums of their own.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from thinkjepa.cache.disk.files import crc32c, explained_os_errors, replace_file
from thinkjepa.cache.disk.layout import cache_json
from thinkjepa.cache.records import CacheError, canonical_json

NAME = "checksums.jsonl"

DEEPEST = 4
"""Folders between a cache and its deepest small file, `features.zarr/<set>/<array>/zarr.json`."""

PATTERNS = (
    "cache.json",
    "extraction.json",
    "failures.parquet",
    "clips/*.parquet",
    "labels/*.arrow",
    "*/index/*.parquet",
    "features.zarr/zarr.json",
    "features.zarr/*/zarr.json",
    "features.zarr/*/*/zarr.json",
    "splits/*.json",
    "selections/*.json",
)
"""The small files of a cache."""

STAGING = (".*.tmp", "zarr.*.partial")
"""Names under which our `replace_file` and zarr-python write a file before it gets its own."""

TRIES = 5
"""A file may be replaced between looking at the ledger and at the file: then both are read again."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: a file's announced or confirmed content, or its removal."""

    file: str
    state: Literal["writing", "written", "removed"]
    bytes: int = 0
    crc32c: str = ""


@dataclass(slots=True)
class Ledger:
    """What the lines say. `damage` lists lines that are not as they were written."""

    entries: dict[str, list[Entry]] = field(default_factory=dict)
    """Per file the last confirmed content or removal, and what was announced behind it."""
    damage: list[str] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        settled = entry.state != "writing"
        self.entries[entry.file] = [entry] if settled else [*self.entries.get(entry.file, []), entry]

    def fault(self, root: Path, file: str) -> str:
        """What is wrong with a listed file, or an empty string."""
        entries = self.entries[file]
        try:
            content = (root / file).read_bytes()
        except FileNotFoundError:
            return "" if entries[0].state != "written" else "is missing"
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        if entries[-1].state == "removed":
            return ""
        found = (len(content), checksum(content))
        if any(found == (item.bytes, item.crc32c) for item in entries):
            return ""
        return f"is damaged or was changed from outside (crc32c differs from {NAME})"


def checksum(content: bytes | memoryview) -> str:
    """crc32c as 8 hex digits."""
    return f"{crc32c(np.frombuffer(content, dtype=np.uint8)):08x}"


def root_of(path: Path) -> Path | None:
    """The cache that a small file belongs to, or None where it lies in none."""
    return next((parent for parent in list(path.parents)[:DEEPEST] if cache_json(parent).exists()), None)


def replace_listed(path: Path, content: bytes | memoryview) -> None:
    """`replace_file` for a small file of a cache, with its checksum in the ledger."""
    root = path.parent if path.name == cache_json(path.parent).name else root_of(path)
    if root is None:
        replace_file(path, content)
        return
    file = path.relative_to(root).as_posix()
    entry = Entry(file, "writing", memoryview(content).nbytes, checksum(content))
    _append(root, [entry], durable=True)
    replace_file(path, content)
    _append(root, [Entry(file, "written", entry.bytes, entry.crc32c)], durable=False)


def remove_listed(path: Path) -> None:
    """Remove a small file of a cache."""
    root = root_of(path)
    if root is not None:
        _append(root, [Entry(path.relative_to(root).as_posix(), "removed")], durable=True)
    with explained_os_errors("remove", path):
        path.unlink(missing_ok=True)


def read_listed(path: Path) -> bytes:
    """The content of a small file. Raises CacheError where it is not what was written, OSError as usual."""
    root = root_of(path)
    content, found = b"", ""
    for _ in range(TRIES):
        content = path.read_bytes()
        entries = [] if root is None else read_ledger(root).entries.get(path.relative_to(root).as_posix(), [])
        found = checksum(content)
        if not entries or any((item.bytes, item.crc32c) == (len(content), found) for item in entries):
            return content
    raise CacheError(
        f"{str(path)!r} is damaged or was changed from outside (crc32c {found} is not in {NAME}): "
        "restore it from a copy"
    )


def adopt(root: Path) -> None:
    """List the small files that are not listed: of an older version, or put there by zarr or by hand.

    The caller holds the cache for writing.
    """
    ledger = read_ledger(root)
    unlisted = [file for file in small_files(root) if file not in ledger.entries]
    if unlisted:
        _append(root, [_present(root, file) for file in unlisted], durable=True)


def sweep(root: Path) -> None:
    """Remove what killed runs left half-written under another name. The caller is the only writer.

    Not under splits/ and selections/, which training writes without holding the cache.
    """
    folders = {Path(pattern).parent.as_posix() for pattern in PATTERNS}
    for folder in sorted(folders - {"splits", "selections"}):
        for pattern in STAGING:
            for path in root.glob(f"{folder}/{pattern}"):
                with explained_os_errors("remove", path):
                    path.unlink(missing_ok=True)


def tidy(root: Path) -> None:
    """Write the ledger anew, a line a file, sorted: equal caches end with equal bytes, whatever led there.

    The caller holds the cache for writing. A damaged ledger stays as it is, so that verify can name it.
    """
    path = root / NAME
    with explained_os_errors("write", path), _locked(path) as file:
        file.seek(0)
        before, ledger = file.read(), read_ledger(root)
        if ledger.damage:
            return
        kept = [item for name in sorted(ledger.entries) for item in _settled(root, ledger, name)]
        after = b"".join(map(_line, kept))
        if after != before:
            replace_file(path, after)


def _settled(root: Path, ledger: Ledger, file: str) -> list[Entry]:
    """The one line that holds for a file; all of them where the file has none of these contents."""
    entries = ledger.entries[file]
    if ledger.fault(root, file):
        return entries
    return [_present(root, file)] if (root / file).exists() else []


def small_files(root: Path) -> list[str]:
    """Paths of all small files inside a cache, sorted."""
    return sorted(path.relative_to(root).as_posix() for pattern in PATTERNS for path in root.glob(pattern))


def ledger_faults(root: Path) -> Iterator[tuple[str, str]]:
    """Small files that are not as they were written, with what is wrong; the ledger itself among them."""
    for reason in read_ledger(root).damage:
        yield NAME, reason
    for file in list(read_ledger(root).entries):
        for _ in range(TRIES):
            ledger = read_ledger(root)
            reason = ledger.fault(root, file) if file in ledger.entries else ""
            if not reason:
                break
        if reason:
            yield file, reason


def read_ledger(root: Path) -> Ledger:
    """The ledger of a cache; empty where there is none."""
    ledger = Ledger()
    try:
        content = (root / NAME).read_bytes()
    except FileNotFoundError:
        return ledger
    records, ledger.damage = checked_lines(content)
    for record in records:
        ledger.add(Entry(**record))
    return ledger


def checked_lines(content: bytes) -> tuple[list[dict[str, Any]], list[str]]:
    """Records of a file of lines with checksums, and the lines that are damaged.

    A torn last line (killed while appending) is neither: it was never committed.
    """
    records: list[dict[str, Any]] = []
    damage: list[str] = []
    lines = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if _holds(line):
            records.append(json.loads(line[9:]))
        elif number < len(lines) or _holds(line[:-1]):
            damage.append(f"line {number} is damaged (crc32c differs)")
    return records, damage


def _holds(line: bytes) -> bool:
    return line[:9] == f"{checksum(line[9:])} ".encode() and len(line) > 9


def _line(entry: Entry) -> bytes:
    body = canonical_json(asdict(entry)).encode()
    return f"{checksum(body)} ".encode() + body + b"\n"


def _present(root: Path, file: str) -> Entry:
    content = (root / file).read_bytes()
    return Entry(file, "written", len(content), checksum(content))


def _append(root: Path, entries: list[Entry], *, durable: bool) -> None:
    path = root / NAME
    with explained_os_errors("write", path), _locked(path) as file:
        _cut_torn_line(file)
        file.write(b"".join(map(_line, entries)))
        file.flush()
        if durable:
            os.fsync(file.fileno())


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """The ledger opened for appending, held against other processes; training appends its splits too."""
    while True:
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                yield file
                return


def _cut_torn_line(file: BinaryIO) -> None:
    """A line without its end was never committed; the next one must not be glued to it."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
