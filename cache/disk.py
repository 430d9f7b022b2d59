"""Durable small files, and operating-system errors in words."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thinkjepa.cache.errors import CacheError

NOTHING_LOST = "free space and run the same command again, nothing committed is lost"

REMEDIES = {
    errno.ENOSPC: f"the disk is full: {NOTHING_LOST}",
    errno.EDQUOT: f"the disk quota is used up: {NOTHING_LOST}",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "permission denied: check the folder's owner and mode",
    errno.EPERM: "permission denied: check the folder's owner and mode",
    errno.EMFILE: "too many open files: raise the limit with `ulimit -n`",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EFBIG: "file too large for this file system or limit (`ulimit -f`)",
}


@contextmanager
def explained_os_errors(doing: str, path: Path) -> Iterator[None]:
    """Turn an OSError into a CacheError that says what was being done, where, and the remedy."""
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


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Write `content` so that a reader finds the old file or the new one, never a part of it."""
    with explained_os_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with staging.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            staging.replace(path)
        except BaseException:
            staging.unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)
