"""Random streams with names: pure functions of a seed, apart from each other and from torch's global one."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def named_generator(seed: int, *names: object) -> torch.Generator:
    """A CPU generator for one purpose, say `(seed, "order", epoch)`: the same arguments, the same stream."""
    key = ":".join(str(part) for part in (seed, *names))
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little", signed=True)
    return torch.Generator().manual_seed(number)


def epoch_order(num_items: int, *, seed: int, epoch: int) -> list[int]:
    """The order of an epoch's items, a permutation that `(num_items, seed, epoch)` alone determines."""
    generator = named_generator(seed, "order", epoch)
    order: list[int] = torch.randperm(num_items, generator=generator).tolist()
    return order


def is_dropped(clip_id: str, purpose: str, *, share: float, seed: int, epoch: int, step: int) -> bool:
    """True if a clip is drawn for `purpose` at this step: `share` of all, by these arguments alone."""
    return bool(torch.rand((), generator=named_generator(seed, purpose, epoch, step, clip_id)) < share)


@contextmanager
def repeatable_kernels(device: torch.device) -> Iterator[None]:
    """Ask torch for deterministic kernels on CUDA, where attention's backward otherwise is not.

    CPU kernels are deterministic for a given number of threads, so nothing changes there. The workspace
    setting is cuBLAS's own condition, read when its first handle is made.
    """
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
