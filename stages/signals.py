"""Early ends of a run, after the batch in flight: Ctrl-C, SIGTERM, and too many failures.

A second Ctrl-C ends at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
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
    """Note SIGINT and SIGTERM for as long as the context lasts; a second SIGINT ends the run at once."""
    stopping = Stopping()

    def note(number: int, frame: FrameType | None) -> None:
        if stopping.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        stopping.signal = number
        progress.note("stopping after the batch in flight; Ctrl-C again ends at once")

    with _handled(note, signal.SIGINT, signal.SIGTERM):
        yield stopping


@contextmanager
def noted_sigterm() -> Iterator[Stopping]:
    """Note SIGTERM for as long as the context lasts; SIGINT ends the run at once, as ever."""
    stopping = Stopping()

    def note(number: int, frame: FrameType | None) -> None:
        stopping.signal = number

    with _handled(note, signal.SIGTERM):
        yield stopping


@contextmanager
def _handled(note: Callable[[int, FrameType | None], None], *numbers: int) -> Iterator[None]:
    """Have `note` called at signals for as long as the context lasts; never outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
