"""Kills a command at any of its steps that change a folder, in a forked child.

A step is a rename, an unlink, a mkdir, a rmdir, an opening for writing, a gathering write or a sync. The
child is killed right before it. A gathering write is cut in half: its first half is in the file.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

Work = Callable[[], None]

Step = Callable[[str], None]
"""Receives the name of a step before it is taken."""

Fault = Callable[[Work], Work]
"""Gets the kill, when the child begins, and returns what is done at the step instead."""

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}
"""Audit events of the interpreter, raised before the system call."""

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

NEVER = 0


def watch(root: Path, step: Step) -> None:
    """Call `step` before every step of this process that changes `root`. It cannot be undone: fork first."""
    inside = os.path.realpath(root)

    def is_inside(path: object) -> bool:
        if isinstance(path, int):
            return True
        return os.path.realpath(os.fsdecode(path)).startswith(inside)  # type: ignore[arg-type]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITING and not isinstance(path, int) and is_inside(path):
                step("open")
        elif event in CHANGES:
            by_folder = isinstance(arguments[-1], int) and arguments[-1] >= 0  # relative to an open folder
            if by_folder or is_inside(arguments[0]):
                step(event)

    def synced(call: Callable[[int], None]) -> Callable[[int], None]:
        def wrapper(descriptor: int) -> None:
            step("sync")
            call(descriptor)

        return wrapper

    os.fsync, os.fdatasync = synced(os.fsync), synced(os.fdatasync)
    sys.addaudithook(hook)


def torn_writes(step: Step) -> None:
    """Call `step` within every gathering write, when its first half is in the file."""

    def writev(descriptor: int, buffers: Sequence[Any]) -> int:
        content = b"".join(map(bytes, buffers))
        half = os.write(descriptor, content[: len(content) // 2])
        step("write")
        return half + os.write(descriptor, content[half:])

    os.writev = writev


def killed_at(point: int, work: Work, root: Path, *, at_point: Fault | None = None) -> int | None:
    """The number of steps of a command that came to its end, or None where it was killed at step `point`.

    `NEVER` kills at none. `at_point` does more in the child. An error of the command is raised as
    AssertionError.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        _run(point, work, root, write_end, at_point or (lambda kill: kill))
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        report = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == -signal.SIGKILL:
        return None
    assert status == 0, report
    return int(report)


def _run(point: int, work: Work, root: Path, pipe: int, at_point: Fault) -> NoReturn:
    taken, lock = [0], threading.RLock()

    def step(name: str) -> None:
        with lock:
            taken[0] += 1
            if taken[0] == point:
                fault()

    status = 1
    try:
        torn_writes(step)
        watch(root, step)
        fault = at_point(lambda: os.kill(os.getpid(), signal.SIGKILL))
        work()
        step("end")
        os.write(pipe, str(taken[0]).encode())
        status = 0
    except BaseException:
        os.write(pipe, traceback.format_exc().encode())
    finally:
        os._exit(status)
