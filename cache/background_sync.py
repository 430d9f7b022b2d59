"""Making files durable while more is being written: the disk works during checks and checksums."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor

SYNC_BYTES = 24 << 20
"""Unsynced bytes that start a sync: large enough for sequential writes, small beside a batch."""


class BackgroundSync:
    """Syncs of open files in threads of its own, at most one at a time for a file."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="sync")
        self._running: dict[int, Future[None]] = {}

    def start(self, descriptor: int) -> bool:
        """Begin a sync of what was written so far. False where the last one of this file is not done.

        Raises OSError where the last one failed.
        """
        running = self._running.get(descriptor)
        if running is not None:
            if not running.done():
                return False
            running.result()
        self._running[descriptor] = self._pool.submit(os.fdatasync, descriptor)
        return True

    def finish(self, descriptor: int) -> None:
        """Return when the sync that was begun last is done. Raises OSError where it failed."""
        running = self._running.pop(descriptor, None)
        if running is not None:
            running.result()

    def close(self) -> None:
        """Wait for what is running; the files may be closed then."""
        self._pool.shutdown(wait=True)
