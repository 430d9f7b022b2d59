"""Measuring: a folder that goes away, interleaved rounds, medians, the machine."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

LOOK_S = 0.02
"""How often memory is looked at."""


@contextmanager
def work_folder(folder: Path | None, *, needed_bytes: int) -> Iterator[Path]:
    """A new folder in `folder` (or where temporary files go), removed at the end.

    Raises SystemExit where less than `needed_bytes` are free.
    """
    parent = folder or Path(tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    free = psutil.disk_usage(str(parent)).free
    if free < needed_bytes:
        raise SystemExit(
            f"{str(parent)!r} has {free / 1e9:.1f} GB free, needed are {needed_bytes / 1e9:.1f}: "
            "choose another --folder or fewer --gigabytes"
        )
    with tempfile.TemporaryDirectory(prefix="thinkjepa-bench-", dir=parent) as name:
        yield Path(name)


def interleaved(subjects: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of every subject in every round.

    Each round calls all subjects once, beginning with another one each time: whatever else the machine does
    meets all of them, and none always follows the same neighbour.
    """
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    names = list(subjects)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            began = time.perf_counter()
            subjects[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def median_ratio(peer_s: Sequence[float], ours_s: Sequence[float]) -> float:
    """Speed relative to the peer: the median over rounds of its seconds divided by ours."""
    return statistics.median(peer / ours for peer, ours in zip(peer_s, ours_s, strict=True))


def rounded(figures: Mapping[str, object]) -> dict[str, object]:
    """Floats to four significant digits; the rest as it is."""
    return {
        name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in figures.items()
    }


def report(figures: Mapping[str, object], *, as_json: bool) -> None:
    """Print the figures, a line each or as one JSON object."""
    lines = [json.dumps(figures)] if as_json else [f"{name:24} {value}" for name, value in figures.items()]
    sys.stdout.write("\n".join(lines) + "\n")


def machine(folder: Path) -> dict[str, object]:
    """Processor, cores, memory in GB and the file system of `folder`."""
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    mounts = [part for part in psutil.disk_partitions(all=True) if folder.is_relative_to(part.mountpoint)]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count() or 0,
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "file_system": max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown",
    }


class Memory:
    """Largest resident memory of this process, own and mapped, in MB and GB."""

    def __init__(self) -> None:
        self._own = self._mapped = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> dict[str, float]:
        self._done.set()
        self._thread.join()
        return {"peak_mb": self._own / 1e3, "mapped_gb": self._mapped / 1e6}

    def _watch(self) -> None:
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
            self._own = max(self._own, sizes["RssAnon"] + sizes["RssShmem"])
            self._mapped = max(self._mapped, sizes["RssFile"])
            if self._done.wait(LOOK_S):
                return
