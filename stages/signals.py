"""Early ends of a run, after the batch in flight: Ctrl-C, SIGTERM, and too many failures.

A second Ctrl-C ends at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from thinkjepa.stages.progress import Progress

EXIT_TERMINATED = 128 + signal.SIGTERM


class Stopping:
    """Requests to end a run early: a signal, or more failures than are accepted."""

    def __init__(self) -> None:
        self.signal: int = 0
        self.over_limit = False

    @property
    def asked(self) -> bool:
        return self.signal != 0 or self.over_limit

    def end(self) -> None:
        """End the run as the signal would have: with KeyboardInterrupt, or SystemExit for SIGTERM."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal:
            raise SystemExit(EXIT_TERMINATED)


@contextmanager
def noted_signals(progress: Progress) -> Iterator[Stopping]:
    """Note SIGINT and SIGTERM for as long as the context lasts; nothing is noted outside the main thread."""
    stopping = Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return

    def note(number: int, frame: FrameType | None) -> None:
        if stopping.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        stopping.signal = number
        progress.note("stopping after the batch in flight; Ctrl-C again ends at once")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def noted_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, for as long as the context lasts; never set outside the main thread."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        asked.set()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
