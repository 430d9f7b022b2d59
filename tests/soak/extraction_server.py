"""A process that has imported everything, and forks a child for each extraction: a hundred kills in minutes.

Started as a script. A line of JSON on standard input is a job; the answers are a line with the child's
process id, and, when it has ended, a line with its exit status (negative: the signal that ended it).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from thinkjepa.cache import Failure, ThinkJepaError
from thinkjepa.stages.data.plan import ClipSettings
from thinkjepa.stages.extract.run import extract
from thinkjepa.stages.extract.settings import ExecutionSettings, ModelSettings

CLIPS = ClipSettings(
    thinker_frames=4, observed_frames=4, future_frames=4, dense_fps=10.0, stride_s=0.5, future_windows=1
)


class EventFile:
    """Progress as lines of a file, whole even if the process is killed right behind them."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def begin(self, task: str, *, total: int, unit: str) -> None:
        self._write({"begin": task, "total": total})

    def advance(self, count: int) -> None:
        self._write({"advance": count})

    def failed(self, failure: Failure) -> None:
        self._write({"failed": failure.video})

    def note(self, text: str) -> None:
        self._write({"note": text})

    def _write(self, record: dict[str, Any]) -> None:
        os.write(self._descriptor, json.dumps(record).encode() + b"\n")


def die_at_call(number: int) -> list[int]:
    """Be killed right before the `number`-th system call that changes the cache; 0: only count them."""
    calls = [0]

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return wrapper

    for name in ("writev", "fsync", "replace", "unlink", "ftruncate"):
        setattr(os, name, counted(getattr(os, name)))
    return calls


def run(job: dict[str, Any]) -> int:
    """One extraction; returns its exit status."""
    torch.set_num_threads(1)
    calls, events = die_at_call(job["die_at_call"]), EventFile(Path(job["events"]))
    models = Path(job["models"])
    try:
        extract(
            Path(job["videos"]),
            Path(job["cache"]),
            clips=CLIPS,
            models=ModelSettings(
                thinker=str(models / "thinker"), encoder=str(models / "encoder"), max_new_tokens=4
            ),
            execution=ExecutionSettings(device="cpu", batch_size=2, shard_mb=4),
            progress=events,
        )
    except ThinkJepaError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    events.note(f"{calls[0]} calls")
    return 0


def main() -> None:
    for line in sys.stdin:
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            sys.stdin.close()
            os._exit(run(json.loads(line)))
        print(child, flush=True)  # noqa: T201
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), time.monotonic() - started, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
