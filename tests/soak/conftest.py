"""Extractions in forked children, and a small finished cache of every kind of file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SERVER = Path(__file__).with_name("extraction_server.py")


@dataclass(frozen=True, slots=True)
class Ended:
    """Outcome of a forked extraction. `status` is negative where a signal ended it."""

    status: int
    seconds: float
    events: list[dict[str, Any]]

    @property
    def advanced(self) -> int:
        """Clips whose batch was reported as done."""
        tasks = [event.get("begin") for event in self.events]
        start = tasks.index("extracting") if "extracting" in tasks else len(tasks)
        return sum(event.get("advance", 0) for event in self.events[start:])

    @property
    def calls(self) -> int:
        """System calls that changed the cache, of a run that came to its end."""
        return int(self.events[-1]["note"].split()[0])

    @property
    def pending(self) -> int | None:
        """Clips that the run had to compute; None where it did not come so far."""
        totals = [event["total"] for event in self.events if event.get("begin") == "extracting"]
        return totals[0] if totals else None


class Extractor:
    """Runs extractions one after the other, each in a process forked after all imports."""

    def __init__(self, videos: Path, models: Path, scratch: Path) -> None:
        self._job = {"videos": str(videos), "models": str(models)}
        self._events = scratch / "events.jsonl"
        self._server = subprocess.Popen(
            [sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, cache: Path, *, kill_after_s: float = 0.0, die_at_call: int = 0) -> Ended:
        """Extract to the end, or until the given moment, or until the given system call."""
        self._events.unlink(missing_ok=True)
        job = {**self._job, "cache": str(cache), "events": str(self._events), "die_at_call": die_at_call}
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        child = int(self._server.stdout.readline())
        killer = threading.Timer(kill_after_s, _kill, [child])
        if kill_after_s:
            killer.start()
        status, seconds = self._server.stdout.readline().split()
        killer.cancel()
        lines = self._events.read_text().splitlines() if self._events.exists() else []
        return Ended(int(status), float(seconds), [json.loads(line) for line in lines])

    def close(self) -> None:
        self._server.communicate()


def _kill(child: int) -> None:
    """The server has reaped it at most a moment ago, and forks nothing before it is asked again."""
    try:
        os.kill(child, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.fixture(scope="session")
def soak_videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """Six videos of two or three clips each, and one that is no video."""
    folder = tmp_path_factory.mktemp("soak_videos")
    for number in range(6):
        make_video(folder / f"task{number % 3}" / f"{number}.mp4", num_frames=60 + number, size=(64, 64))
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="session")
def extractor(
    soak_videos: Path, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Extractor]:
    running = Extractor(soak_videos, tiny_models, tmp_path_factory.mktemp("events"))
    yield running
    running.close()


@pytest.fixture(scope="session")
def uninterrupted(extractor: Extractor, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """The cache that a run from beginning to end makes, and how that run went; tests must not change it."""
    cache = tmp_path_factory.mktemp("uninterrupted") / "cache"
    ended = extractor.run(cache)
    assert ended.status == 0
    return cache, ended
