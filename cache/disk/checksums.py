"""The ledger checksums.jsonl: a checksum for every small file of a cache.

It is a file of checked lines. A file's new content is announced (`writing`), put in place, and then
confirmed (`written`). Between the two either content is right, so a run killed anywhere raises no false
alarm. Shards and journals carry checksums of their own.
"""

from __future__ import annotations

import errno
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from thinkjepa.cache.disk.files import (
    checksum,
    crc32c,
    explained_os_errors,
    fsync_folder,
    remove_file,
    replace_file,
)
from thinkjepa.cache.disk.layout import cache_json
from thinkjepa.cache.disk.lines import LineFile, checked_lines, encoded
from thinkjepa.cache.records import CacheError

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
"""Patterns of temporary names, of `replace_file` and of zarr-python."""

TRIES = 5
"""A file may be replaced between reading the ledger and the file: then both are read again."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: a file's announced or confirmed content, or its removal."""

    file: str
    state: Literal["writing", "written", "removed"]
    bytes: int = 0
    crc32c: str = ""


@dataclass(slots=True)
class Ledger:
    """Content of the ledger. `damage` names the lines that are not as they were written."""

    entries: dict[str, list[Entry]] = field(default_factory=dict)
    """Per file the last confirmed content or removal, and what was announced after it."""
    damage: list[str] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        """Take the next line into account."""
        settled = entry.state != "writing"
        self.entries[entry.file] = [entry] if settled else [*self.entries.get(entry.file, []), entry]

    def fault(self, root: Path, file: str) -> str:
        """The fault of a listed file in words, or an empty string."""
        entries = self.entries[file]
        try:
            found = _summed(root / file)
        except FileNotFoundError:
            return "" if entries[0].state != "written" else "is missing"
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        if entries[-1].state == "removed" or _is_listed(found, entries):
            return ""
        return f"is damaged or was changed from outside (crc32c differs from {NAME})"


def _entry(file: str, state: Literal["writing", "written"], content: bytes | memoryview) -> Entry:
    return Entry(file, state, memoryview(content).nbytes, checksum([content]))


Sum = tuple[int, str]
"""Bytes of a file, and their crc32c."""

PIECE_BYTES = 8 * 2**20


def _summed(path: Path) -> Sum:
    """The sum of a file, read in pieces. Raises OSError."""
    crc = size = 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE_BYTES):
            crc, size = crc32c(np.frombuffer(piece, dtype=np.uint8), crc), size + len(piece)
    return size, f"{crc:08x}"


def _is_listed(found: Sum, entries: Sequence[Entry]) -> bool:
    return any(found == (item.bytes, item.crc32c) for item in entries)


def root_of(path: Path) -> Path | None:
    """The cache that a small file belongs to, or None."""
    return next((parent for parent in list(path.parents)[:DEEPEST] if cache_json(parent).exists()), None)


def replace_listed(path: Path, content: bytes | memoryview) -> None:
    """Replace a small file of a cache, and list its checksum in the ledger."""
    root = path.parent if path.name == cache_json(path.parent).name else root_of(path)
    if root is None:
        replace_file(path, content)
        return
    file = path.relative_to(root).as_posix()
    _append(root, [_entry(file, "writing", content)])
    replace_file(path, content)
    _append(root, [_entry(file, "written", content)], durable=False)


def remove_listed(path: Path) -> None:
    """Remove a small file of a cache."""
    root = root_of(path)
    if root is not None:
        _append(root, [Entry(path.relative_to(root).as_posix(), "removed")])
    remove_file(path)


def remove_tree(root: Path, folder: Path) -> None:
    """Remove a folder of a cache, durably. Its small files are gone from the ledger before the first goes."""
    inside = f"{folder.relative_to(root).as_posix()}/"
    listed = {file for file in read_ledger(root).entries if file.startswith(inside)}
    listed |= {file for file in small_files(root) if file.startswith(inside)}
    if listed:
        _append(root, [Entry(file, "removed") for file in sorted(listed)])
    with explained_os_errors("remove", folder):
        shutil.rmtree(folder)
        fsync_folder(folder.parent)


def read_listed(path: Path) -> bytes:
    """The content of a small file. Raises CacheError where it is not as written, and OSError."""
    root = root_of(path)
    content = b""
    for _ in range(TRIES):
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would block for ever
            raise OSError(errno.EINVAL, "is no file")
        content = path.read_bytes()
        entries = [] if root is None else read_ledger(root).entries.get(path.relative_to(root).as_posix(), [])
        if not entries or _is_listed((len(content), checksum([content])), entries):
            return content
    raise CacheError(
        f"{str(path)!r} is damaged or was changed from outside (crc32c {checksum([content])} is not in "
        f"{NAME}): restore it from a copy"
    )


def is_as_listed(root: Path, path: Path, ledger: Ledger) -> bool:
    """True if a small file of a cache has a content that its ledger lists, or is not listed.

    The file is read once, as long as it does not change. Raises OSError.
    """
    file = path.relative_to(root).as_posix()
    for attempt in range(TRIES):
        entries = (read_ledger(root) if attempt else ledger).entries.get(file, [])
        status = path.stat()
        if not entries or _is_listed(_summed_once(path, status.st_size, status.st_mtime_ns), entries):
            return True
    return False


@lru_cache(maxsize=2**16)
def _summed_once(path: Path, size: int, changed_ns: int) -> Sum:
    return _summed(path)


def adopt(root: Path) -> None:
    """List the small files that are not listed yet: of an older version, or written by zarr or by hand.

    The caller has the cache locked.
    """
    ledger = read_ledger(root)
    unlisted = [file for file in small_files(root) if file not in ledger.entries]
    if unlisted:
        _append(root, [_present(root, file) for file in unlisted])


def sweep(root: Path) -> None:
    """Remove the staging files of killed runs. The caller has the cache locked.

    splits/ and selections/ are left alone: training writes them without that lock.
    """
    folders = {Path(pattern).parent.as_posix() for pattern in (*PATTERNS, "*/journal/*")}
    for folder in sorted(folders - {"splits", "selections"}):
        for pattern in STAGING:
            for path in root.glob(f"{folder}/{pattern}"):
                remove_file(path)


def tidy(root: Path) -> None:
    """Rewrite the ledger with one line for each file, sorted, so that equal caches end with equal bytes.

    The caller has the cache locked. A damaged ledger stays as it is, so that verify can name it.
    """
    path = root / NAME
    with LineFile(path), explained_os_errors("write", path):
        ledger = read_ledger(root)
        if ledger.damage:
            return
        kept = [item for name in sorted(ledger.entries) for item in _settled(root, ledger, name)]
        after = encoded(map(asdict, kept))
        if after != path.read_bytes():
            replace_file(path, after)


def _settled(root: Path, ledger: Ledger, file: str) -> list[Entry]:
    """The one line that describes a file, or all of them where the file has none of these contents."""
    entries = ledger.entries[file]
    if ledger.fault(root, file):
        return entries
    return [_present(root, file)] if (root / file).exists() else []


def small_files(root: Path) -> list[str]:
    """Paths of all small files inside a cache, sorted."""
    return sorted(path.relative_to(root).as_posix() for pattern in PATTERNS for path in root.glob(pattern))


def ledger_faults(root: Path) -> Iterator[tuple[str, str]]:
    """Small files that are not as they were written, and the fault of each. The ledger may be one."""
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
    """The ledger of a cache, empty where there is none."""
    ledger = Ledger()
    try:
        content = (root / NAME).read_bytes()
    except FileNotFoundError:
        return ledger
    records, ledger.damage = checked_lines(content)
    for number, record in enumerate(records, start=1):
        try:
            ledger.add(_checked_entry(Entry(**record)))
        except TypeError:
            ledger.damage.append(f"record {number} is none of a file")
    return ledger


def _checked_entry(entry: Entry) -> Entry:
    """An entry of a file inside the cache. Raises TypeError for another, which would lead out of it."""
    file = entry.file
    if not isinstance(file, str) or "\0" in file or Path(file).is_absolute() or ".." in Path(file).parts:
        raise TypeError(file)
    return entry


def _present(root: Path, file: str) -> Entry:
    return _entry(file, "written", (root / file).read_bytes())


def _append(root: Path, entries: list[Entry], *, durable: bool = True) -> None:
    """Append under the file's own lock: training lists its splits without the lock of the cache."""
    with LineFile(root / NAME) as file:
        file.append(map(asdict, entries), durable=durable)
