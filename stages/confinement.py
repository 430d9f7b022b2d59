"""Limits of a child process that reads files of others: memory, written files, processor time.

A child calls `confine` before it opens such a file, and `allow_cpu`, `allow_memory` before each piece of
work. Past a limit an allocation fails with MemoryError and a write with OSError. A calculation that does not
end is killed by SIGXCPU, also where the parent does not watch. The parent still has its own time-out.

Imports the standard library only: a child starts in half a second.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1

MEMORY_BYTES = 16 << 30
"""A decoder with 64 threads holds 80 frames at once: 8 GB of 8K video in 10 bits."""

MEMORY_SHARE = 0.5
"""The part of this machine's memory that a child may take, where that is less than `MEMORY_BYTES`."""

KILLED_FOR_TIME = signal.SIGXCPU
"""The signal that ends a child whose processor time is used up."""


def confine(*, memory_bytes: int = 0, written_bytes: int = 0) -> None:
    """Limit this process from now on, irrevocably, and end it with its parent (on Linux).

    `memory_bytes` counts what the process allocates for itself, not files that it maps or memory that it
    shares. 0 stands for `default_memory_bytes`. `written_bytes` is the largest file that it may write: by
    default it writes none. No core is dumped: it would be as large as the memory.
    """
    die_with_parent()
    _lower(resource.RLIMIT_DATA, memory_bytes or default_memory_bytes())
    _lower(resource.RLIMIT_FSIZE, written_bytes)
    _lower(resource.RLIMIT_CORE, 0)


def allow_cpu(seconds: float) -> None:
    """Let this process calculate for `seconds` more of processor time, summed over its threads.

    A later call starts the time anew.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime + seconds) + 1  # the kernel counts whole seconds
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (limit if most < 0 else min(limit, most), most))


def allow_memory(memory_bytes: int) -> None:
    """Let this process allocate so much more than it has now, within the limit of `confine`.

    A later call counts anew. Only Linux tells a process what it has allocated.
    """
    if sys.platform != "linux":
        return
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = pages * resource.getpagesize() + memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit if most < 0 else min(limit, most), most))


def default_memory_bytes() -> int:
    """The memory of a child: half of this machine's, and 16 GiB at most."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(MEMORY_BYTES, int(MEMORY_SHARE * machine))


def die_with_parent() -> None:
    """On Linux a child that hangs does not outlive a parent that was killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _lower(kind: int, limit: int) -> None:
    """Set a limit for good. One that is lower already stays."""
    _, most = resource.getrlimit(kind)
    if most != resource.RLIM_INFINITY:
        limit = min(limit, most)
    resource.setrlimit(kind, (limit, limit))
