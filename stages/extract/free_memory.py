"""Freed memory given back to the system: large tensors come and go in three threads, and malloc keeps it."""

from __future__ import annotations

import ctypes
import sys
import time

EVERY_S = 1.0
"""At most so often: it takes some milliseconds, of a thread that does not hold up the models."""


class FreeMemory:
    """Gives freed memory back now and then. A third less stays resident with clips of 720p on a CPU."""

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
        self._last_s = -EVERY_S

    def give_back(self) -> None:
        """Where malloc can (glibc), and the last time was long enough ago."""
        if self._trim is not None and time.monotonic() - self._last_s >= EVERY_S:
            self._trim(0)
            self._last_s = time.monotonic()
