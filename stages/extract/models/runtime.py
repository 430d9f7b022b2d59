"""The runtime of the frozen models: precision, versions, memory, threads next to them, the device's speed."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import transformers

from thinkjepa.stages.data.decoding.client import VideoDecoder
from thinkjepa.stages.extract.models.weights import ModelFolder


def choose_dtype(text: str, device: torch.device) -> str:
    """The name of a dtype. `auto` is bfloat16 on an accelerator and float32 on the CPU."""
    if text != "auto":
        return text
    return "float32" if device.type == "cpu" else "bfloat16"


def quiet_transformers() -> None:
    """Let transformers log errors only, and ask nothing: its progress bars and hints would break ours.

    Its one question is whether to run a model's own code, which is never done.
    """
    transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # it refuses at once instead of asking
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def library_versions() -> dict[str, str]:
    """Major and minor versions of torch and transformers. Another one is another origin."""
    return {
        module.__name__: ".".join(str(module.__version__).split(".")[:2]) for module in (torch, transformers)
    }


def run_source(folder: ModelFolder, device: torch.device) -> dict[str, Any]:
    """Model, versions, device and threads of a run. Bit-identical features need the same of all of it."""
    return {
        "model": folder.name,
        "revision": folder.revision,
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""

LARGEST_KEPT_BYTES = 32 * 2**20
"""Blocks up to this size come from the heap, not from mappings of their own. It is glibc's maximum."""

KEPT_BYTES = 128 * 2**20
"""Free memory that is kept at the heap's end."""


def keep_freed_memory() -> None:
    """Keep freed memory for the next forward, from now on in this process. Without glibc, do nothing.

    A forward of V-JEPA 2 on a CPU met 25,000 page faults a clip, 2 % of its time, without a lower peak.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


NICENESS = 10
"""Niceness of work that shares cores with the models and has a whole batch's time.

A model of one thread on two cores waits for a core 1 % of its time. It was 2.5 % where decoding, with a
thread for every core, and writing were as nice as it.
"""


def decoder_beside(device: str, *, timeout_s: float) -> VideoDecoder:
    """A decoder that runs next to models on a device type. On a CPU it has half as many threads as they."""
    threads = max(1, torch.get_num_threads() // 2) if device == "cpu" else 0
    return VideoDecoder(timeout_s=timeout_s, threads=threads)


def thread_beside(device: str, *, name: str) -> ThreadPoolExecutor:
    """One thread for work next to models. On a CPU it is nice, as are processes that it starts."""
    shares_cores = device == "cpu" and sys.platform == "linux"  # elsewhere only whole processes are nice
    return ThreadPoolExecutor(1, thread_name_prefix=name, initializer=_be_nice if shares_cores else None)


def _be_nice() -> None:
    me = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, me, os.getpriority(os.PRIO_PROCESS, me) + NICENESS)


PEAK_SECONDS = 1.0
CPU_MATRIX_SIDE = 1024
ACCELERATOR_MATRIX_SIDE = 8192
"""A product of this side is 1.1 TFLOP: long against the start of a kernel. A CPU is busy with 2 GFLOP."""

TERA = 1e12


def measured_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of square matrix products in `dtype`, over about a second."""
    side = CPU_MATRIX_SIDE if device.type == "cpu" else ACCELERATOR_MATRIX_SIDE
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    float((matrix @ matrix)[0, 0])
    started, products = time.perf_counter(), 0
    while (seconds := time.perf_counter() - started) < PEAK_SECONDS:
        float((matrix @ matrix)[0, 0])  # reading a value waits for the device
        products += 1
    return max(1, products) * 2 * side**3 / seconds / TERA
