"""Decoding and writing beside the models. On a CPU they share its cores, and stand back behind them."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from thinkjepa.stages.data.decode_process import VideoDecoder

BEHIND_MODELS = 10
"""Niceness of what shares cores with the models, and has a whole batch's time.

A model of one thread on two cores waits for a core 1 % of its time; it was 2.5 % where decoding, with a
thread for every core, and writing were as nice as it.
"""


def decoder_beside(device: str, *, timeout_s: float) -> VideoDecoder:
    """A decoder for models on a device, by its type; on a CPU with half as many threads as they."""
    threads = max(1, torch.get_num_threads() // 2) if device == "cpu" else 0
    return VideoDecoder(timeout_s=timeout_s, threads=threads)


def thread_beside(device: str, *, name: str) -> ThreadPoolExecutor:
    """One thread for work beside models on a device; on a CPU it is nice, as are processes that it starts."""
    shares_cores = device == "cpu" and sys.platform == "linux"  # elsewhere only whole processes are nice
    return ThreadPoolExecutor(1, thread_name_prefix=name, initializer=_stand_back if shares_cores else None)


def _stand_back() -> None:
    me = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, me, os.getpriority(os.PRIO_PROCESS, me) + BEHIND_MODELS)
