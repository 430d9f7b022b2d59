"""Progress reporting: stages emit events, the command lines render them."""

from __future__ import annotations

from typing import Protocol

from thinkjepa.cache import Failure


class Progress(Protocol):
    """Receives what happens; `NoProgress` ignores it."""

    def begin(self, task: str, *, total: int, unit: str) -> None:
        """A task of `total` units starts; the one before it is finished."""

    def advance(self, count: int) -> None:
        """`count` more units are done."""

    def failed(self, failure: Failure) -> None:
        """A video or clip has failed and is left out."""

    def note(self, text: str) -> None:
        """One line worth reading."""


class NoProgress:
    """For scripts and tests."""

    def begin(self, task: str, *, total: int, unit: str) -> None:
        return

    def advance(self, count: int) -> None:
        return

    def failed(self, failure: Failure) -> None:
        return

    def note(self, text: str) -> None:
        return
