"""Files on disk: atomic replacement, syncs, checksums, containment, and operating-system errors in words."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from thinkjepa.cache.records import CacheError

NOTHING_LOST = "free space and run the same command again, nothing committed is lost"

REMEDIES = {
    errno.ENOSPC: f"the disk is full: {NOTHING_LOST}",
    errno.EDQUOT: f"the disk quota is used up: {NOTHING_LOST}",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "permission denied: check the folder's owner and mode",
    errno.EPERM: "permission denied: check the folder's owner and mode",
    errno.EMFILE: "too many open files: raise the limit with `ulimit -n`",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.ENAMETOOLONG: "a name in the path is too long: 255 bytes are allowed",
    errno.EAGAIN: "no further process or thread can be started: end some, or raise the limit (`ulimit -u`)",
    errno.ENOMEM: "no memory is left: end other processes",
    errno.EFBIG: "file too large for this file system or limit (`ulimit -f`)",
    errno.ELOOP: "a link is in its place, and is not followed: remove the link",
}


NEW_FILE_MODE = 0o666
"""Permissions of a new file, before the umask, as `open` has them."""


@contextmanager
def explained_os_errors(doing: str, path: Path) -> Iterator[None]:
    """Turn an OSError into a CacheError that states the action, the path and the remedy."""
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, error.strerror or str(error))
        raise CacheError(f"cannot {doing} {str(error.filename or path)!r}: {remedy}") from error


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a file's own fsync does not cover its entry."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def staging_name(path: Path) -> Path:
    """A new temporary name next to a file. Nobody can put a link there before, as nobody can guess it.

    Such a file is to be opened with mode `x`, which follows no link in any case.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def open_unlinked(path: Path, mode: str) -> FileIO:
    """Open a file, unbuffered, whose name others may know. Raises OSError where the name is a link's."""
    return FileIO(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, NEW_FILE_MODE))


def make_folder(folder: Path) -> None:
    """Create a folder durably, with those above it that are missing."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        fsync_folder(path.parent)


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Replace a file atomically: a reader finds the old content or the new one, never a part."""
    with explained_os_errors("write", path):
        make_folder(path.parent)
        staging = staging_name(path)
        try:
            with staging.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            staging.replace(path)
        except BaseException:
            staging.unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)


def name_file(staging: Path, path: Path) -> None:
    """Give a file that is written its name, in place of an older one, after its content is on the disk."""
    with explained_os_errors("write", path):
        with staging.open("rb") as file:
            os.fsync(file.fileno())
        staging.replace(path)
        fsync_folder(path.parent)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it to another file system: durably, in place of an older one."""
    make_folder(target.parent)
    staging = staging_name(target)
    try:
        try:
            os.link(source, staging)
        except OSError:  # another file system, or one without links
            with source.open("rb") as original, staging.open("xb") as copy:
                shutil.copyfileobj(original, copy)
        name_file(staging, target)
    finally:
        staging.unlink(missing_ok=True)


def remove_file(path: Path) -> None:
    """Remove a file durably, if it is there."""
    with explained_os_errors("remove", path):
        try:
            path.unlink()
        except FileNotFoundError:
            return
        fsync_folder(path.parent)


DEEPEST = 3
"""Folders from a cache to `features.zarr/<set>/<array>`. Links to shards are checked when opened."""


def refuse_links_out(root: Path) -> None:
    """Raise CacheError where a folder or small file of a cache is a link that leads out of it."""
    with explained_os_errors("read", root):
        for link in _links(root, DEEPEST):
            require_inside(root, link)


def require_inside(root: Path, path: Path) -> None:
    """Raise CacheError where a path of a cache leads, by a link in any of its parts, out of the cache."""
    real = os.path.realpath(path)
    if not Path(real).is_relative_to(os.path.realpath(root)):
        raise CacheError(
            f"{str(path)!r} is a link that leads out of the cache, to {real!r}: "
            "put what it leads to in its place"
        )


def _links(folder: Path, depth: int) -> Iterator[Path]:
    with os.scandir(folder) as scanned:
        entries = list(scanned)
    for entry in entries:
        if entry.is_symlink():
            yield Path(entry.path)
        elif depth and entry.is_dir():
            yield from _links(Path(entry.path), depth - 1)


Bytes = npt.NDArray[np.uint8]


def crc32c(raw: Bytes, crc: int = 0) -> int:
    """crc32c of bytes, continuing from `crc`. The library takes only read-only buffers."""
    view = raw.view()
    view.setflags(write=False)
    return int(google_crc32c.extend(crc, view)) if crc else int(google_crc32c.value(view))


def checksum(parts: Iterable[bytes | memoryview | npt.NDArray[Any]]) -> str:
    """crc32c, as 8 hex digits, of the bytes of contiguous parts one after the other."""
    crc = 0
    for part in parts:
        crc = crc32c(np.frombuffer(part, dtype=np.uint8), crc)
    return f"{crc:08x}"


SYNC_BYTES = 24 << 20
"""Unsynced bytes that start a sync: large enough for sequential writes, small against a batch."""

BUFFERS_AT_ONCE = 512
"""Parts of one gathering write. Linux takes 1,024."""

Buffers = Sequence[memoryview | bytes]


@dataclass(slots=True)
class _File:
    """Pending work for one open file."""

    writes: list[Future[None]] = field(default_factory=list)
    sync: Future[None] | None = None
    unsynced_bytes: int = 0
    failed: bool = False


class BackgroundSync:
    """Writes to open files in the order of the calls, and syncs, at most one at a time for a file.

    Copying into the page cache takes as long as checking and summing the same bytes, and needs no
    interpreter: two threads write a quarter faster than one.
    """

    def __init__(self) -> None:
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="write")
        self._syncs = ThreadPoolExecutor(max_workers=4, thread_name_prefix="sync")
        self._files: dict[int, _File] = {}

    def write(self, descriptor: int, buffers: Buffers) -> None:
        """Append buffers, whose bytes must stay as they are until `finish` or `close`."""
        file = self._files.setdefault(descriptor, _File())
        file.writes.append(self._writer.submit(self._write, descriptor, file, buffers))

    def start(self, descriptor: int) -> None:
        """Begin a sync of everything written so far. Raises OSError where a write or the last sync failed."""
        file = self._files.setdefault(descriptor, _File())
        self._settle(file)
        file.sync = self._syncs.submit(os.fdatasync, descriptor)
        file.unsynced_bytes = 0

    def finish(self, descriptor: int) -> None:
        """Return when all writes and the sync begun last are done. Raises OSError where one failed."""
        file = self._files.pop(descriptor, None)
        if file is not None:
            self._settle(file)

    def close(self) -> None:
        """Wait for all work. The files may be closed then."""
        self._writer.shutdown(wait=True)
        self._syncs.shutdown(wait=True)

    def _write(self, descriptor: int, file: _File, buffers: Buffers) -> None:
        if file.failed:  # nothing is written after a hole
            return
        try:
            for start in range(0, len(buffers), BUFFERS_AT_ONCE):
                write_all(descriptor, buffers[start : start + BUFFERS_AT_ONCE])
            file.unsynced_bytes += sum(map(len, buffers))
            if file.unsynced_bytes >= SYNC_BYTES and (file.sync is None or file.sync.done()):
                if file.sync is not None:
                    file.sync.result()
                file.sync, file.unsynced_bytes = self._syncs.submit(os.fdatasync, descriptor), 0
        except BaseException:
            file.failed = True
            raise

    @staticmethod
    def _settle(file: _File) -> None:
        """Wait for all pending work of a file, also where it raises."""
        writes, file.writes = file.writes, []
        wait(writes)
        syncs = [file.sync] if file.sync is not None else []
        wait(syncs)
        file.sync = None
        for done in (*writes, *syncs):
            done.result()


def write_all(descriptor: int, buffers: Buffers) -> None:
    """Write all buffers one after the other. The kernel may take less than it is given."""
    waiting = [memoryview(buffer).cast("B") for buffer in buffers]
    while waiting:
        written = os.writev(descriptor, waiting)
        while waiting and written >= len(waiting[0]):
            written -= len(waiting.pop(0))
        if waiting and written:
            waiting[0] = waiting[0][written:]
