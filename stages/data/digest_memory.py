"""Digests of files that were read before, so that a folder is looked at without reading it again.

As git's index does it: a file whose size, change times and inode are those of the last reading is taken to
hold the same bytes. One that was touched shortly before it was read is not remembered, as a later write may
fall into the same tick of the clock. What stays unseen is a write that leaves all of these as they were, for
instance under a clock that was turned back.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from thinkjepa.cache.disk import replace_file

CLOCK_GRAIN_NS = 2_000_000_000
"""The coarsest time stamps in use: FAT has them every two seconds."""

Seen = list[int | str]
"""Size, modification and change time (ns), inode, digest."""


class DigestMemory:
    """The digests in a file, which is rewritten by `save`. A damaged one is no memory, not an error."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = _read(path)
        self._now: dict[str, Seen] = {}

    def digest(self, path: Path, read: Callable[[Path], str]) -> str:
        """The digest of a file, from `read` where it is not remembered. Raises OSError."""
        key, signature = str(path.absolute()), _signature(path)
        known = self._before.get(key)
        if known is not None and known[:-1] == signature:
            self._now[key] = known
            return str(known[-1])
        started_ns = time.time_ns()
        digest = read(path)
        if max(signature[1:3]) < started_ns - CLOCK_GRAIN_NS and _signature(path) == signature:
            self._now[key] = [*signature, digest]
        return digest

    def save(self) -> None:
        """Keep what was asked for in this run. Raises CacheError where it cannot be written."""
        if self._now != self._before:
            replace_file(self._path, json.dumps(self._now, separators=(",", ":")).encode())


def _signature(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _read(path: Path) -> dict[str, Seen]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    whole = isinstance(found, dict) and all(isinstance(seen, list) for seen in found.values())
    return found if whole else {}
