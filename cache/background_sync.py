"""The disk's side of writing, while the next clip is checked: bytes written and made durable in threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

SYNC_BYTES = 24 << 20
"""Unsynced bytes that start a sync: large enough for sequential writes, small beside a batch."""

BUFFERS_AT_ONCE = 512
"""Parts of one gathering write; Linux takes 1,024."""

Buffers = Sequence[memoryview | bytes]


@dataclass(slots=True)
class _File:
    """What is under way for one open file."""

    writes: list[Future[None]] = field(default_factory=list)
    sync: Future[None] | None = None
    unsynced_bytes: int = 0
    failed: bool = False


class BackgroundSync:
    """Writes to open files in the order they were asked for, and syncs, at most one at a time a file.

    Copying into the page cache takes as long as checking and summing what is copied, and needs no
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
        """Wait for what is running; the files may be closed then."""
        self._writer.shutdown(wait=True)
        self._syncs.shutdown(wait=True)

    def _write(self, descriptor: int, file: _File, buffers: Buffers) -> None:
        if file.failed:  # nothing goes behind a hole
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
        """Nothing is under way when this returns or raises."""
        writes, file.writes = file.writes, []
        wait(writes)
        syncs = [file.sync] if file.sync is not None else []
        wait(syncs)
        file.sync = None
        for done in (*writes, *syncs):
            done.result()


def write_all(descriptor: int, buffers: Buffers) -> None:
    """Write all buffers one behind the other; the kernel may take less than it is given."""
    waiting = [memoryview(buffer).cast("B") for buffer in buffers]
    while waiting:
        written = os.writev(descriptor, waiting)
        while waiting and written >= len(waiting[0]):
            written -= len(waiting.pop(0))
        if waiting and written:
            waiting[0] = waiting[0][written:]
