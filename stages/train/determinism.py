"""The same seed on the same machine gives the same bits."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
