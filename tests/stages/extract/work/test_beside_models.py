"""Decoding and writing are nicer than the models where they share their cores."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from thinkjepa.stages.data.decoding.client import VideoDecoder
from thinkjepa.stages.extract.models.runtime import NICENESS, decoder_beside, thread_beside


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only whole processes are nice")
@pytest.mark.parametrize(("device", "more"), [("cpu", NICENESS), ("cuda", 0)])
def test_on_a_cpu_a_thread_and_the_decoder_that_it_starts_are_nice(
    tmp_path: Path, make_video: Callable[..., Path], device: str, more: int
) -> None:
    path = make_video(tmp_path / "v.mp4", num_frames=10)
    before = niceness()
    wanted = min(19, before + more)
    with (
        VideoDecoder(timeout_s=60) as decoder,
        thread_beside(device, name="decode") as ahead,
    ):
        assert ahead.submit(niceness).result() == wanted
        ahead.submit(decoder.open, path).result()
        assert decoder.pid is not None
        assert psutil.Process(decoder.pid).nice() == wanted
        assert os.getsid(decoder.pid) == os.getsid(0), "niceness weighs within a session only"
        assert os.getpgid(decoder.pid) != os.getpgid(0)
    assert niceness() == psutil.Process().nice() == before


@pytest.mark.parametrize(("device", "threads", "wanted"), [("cpu", 1, 1), ("cpu", 8, 4), ("cuda", 8, 0)])
def test_a_decoder_has_half_the_threads_of_models_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, device: str, threads: int, wanted: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with decoder_beside(device, timeout_s=60) as decoder:
        assert decoder.threads == wanted
