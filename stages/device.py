"""Devices and CPU threads, chosen by one rule for extraction, training, evaluation and prediction.

Results depend on the number of threads to the last bit, so runs and feature sets record it. A thread that
waits for a core which others use is noticed and reported.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from thinkjepa.stages.errors import StageError

if TYPE_CHECKING:
    import torch

DEVICES = "auto, cpu, cuda, cuda:1, mps"

_NAME = re.compile(r"auto|(cpu|cuda|mps|xpu)(:\d+)?")


def check_device_name(text: str) -> None:
    """Raises StageError for what is no name of a device, on this machine or another."""
    if not _NAME.fullmatch(text):
        raise StageError(f"--device {text!r}: give one of {DEVICES}")


def device_name(device: torch.device) -> str:
    """A device as people know it: `cpu`, or a GPU with its name."""
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def choose_device(text: str) -> torch.device:
    """`auto` is CUDA where there is a GPU. Raises StageError for a device that is not available."""
    import torch

    check_device_name(text)
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        sentence = str(error).strip().partition("\n")[0].partition(". ")[0]  # advice and links follow
        reason = sentence[:120]
        raise StageError(f"--device {text!r} cannot be used here ({reason}): try auto or cpu") from error
    return device


THREADS_HELP = (
    "Threads of the CPU's arithmetic; 0: the cores that this process may use (its affinity, its container's "
    "quota, OMP_NUM_THREADS)."
)

BUSY_SHARE = 0.25
"""A model of two threads on two free cores waits for a core 1 to 3 % of its time."""

MEASURED_S = 20.0


def usable_cores() -> int:
    """Cores that this process may use, by its affinity and the CPU quota of its control group, at least 1."""
    from dask.system import cpu_count

    return int(cpu_count())


def chosen_threads(threads: int, *, processes: int = 1) -> int:
    """`threads`, or for 0 what torch would take, at most a share of the usable cores per local process."""
    import torch

    return threads or max(1, min(torch.get_num_threads(), usable_cores() // processes))


@contextmanager
def torch_threads(threads: int) -> Iterator[int]:
    """Let torch compute with so many threads (0 as in `chosen_threads`) while this lasts."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(chosen_threads(threads))
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


class BusyMachine:
    """Notices that the thread that made this waits for a core while it has something to do.

    Linux counts that for each thread. Unlike CPU time against wall time, it does not take waiting for a disk
    or for other threads of the process for a busy machine.
    """

    def __init__(self) -> None:
        self._began_s, self._waited_s = time.monotonic(), waited_s()
        self._noted = False

    def note(self, *, threads: int) -> str:
        """Warning for a busy machine, once. Empty otherwise, and where nothing counts the waiting."""
        now_s = time.monotonic()
        if self._noted or self._waited_s is None or now_s - self._began_s < MEASURED_S:
            return ""
        total_s = waited_s() or 0.0
        share = (total_s - self._waited_s) / (now_s - self._began_s)
        self._began_s, self._waited_s = now_s, total_s
        if share < BUSY_SHARE:
            return ""
        self._noted = True
        return busy_note(share, threads=threads)


def busy_note(share: float, *, threads: int) -> str:
    """Warning for a machine on which that share of the time was spent waiting for a core."""
    remedy = "fewer threads may be faster: --threads 1" if threads > 1 else "other processes use its cores"
    return f"this machine is busy: {100 * share:.0f} % of the time went by in waiting for a core; {remedy}"


def waited_s() -> float | None:
    """Seconds that the calling thread has waited for a core since it began; None where nobody counts."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return None


def local_processes() -> int:
    """Processes of this training on this machine, as torchrun and accelerate tell them."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
