"""Limits of a child process that reads files of others: each one ends what goes past it."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from thinkjepa.stages import confinement
from thinkjepa.stages.confinement import default_memory_bytes
from thinkjepa.stages.data.decoding import client
from thinkjepa.stages.data.decoding.client import DecodeError, VideoDecoder

GENEROUS_S = 60.0


def in_a_child(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Python that is confined to 400 MB, without numpy or torch."""
    begin = "from thinkjepa.stages.confinement import allow_cpu, confine\nconfine(memory_bytes=400 << 20)\n"
    return subprocess.run(
        [sys.executable, "-c", begin + code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=GENEROUS_S,
        check=False,
    )


def test_memory_beyond_the_limit_is_not_there(tmp_path: Path) -> None:
    assert in_a_child("print(len(bytearray(100 << 20)))", tmp_path).stdout == f"{100 << 20}\n"
    assert "MemoryError" in in_a_child("bytearray(500 << 20)", tmp_path).stderr


def test_no_file_can_be_written_and_no_limit_raised_again(tmp_path: Path) -> None:
    done = in_a_child("open('written', 'wb', buffering=0).write(b'1')", tmp_path)
    assert "File too large" in done.stderr
    assert (tmp_path / "written").read_bytes() == b""
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9))"
    assert "not allowed to raise" in in_a_child(code, tmp_path).stderr


def test_a_calculation_without_end_is_ended_and_the_time_starts_anew_for_each_piece(tmp_path: Path) -> None:
    spin = (
        "import time\ndef spin(seconds):\n    begun = time.process_time()\n"
        "    while time.process_time() < begun + seconds: pass\n"
    )
    pieces = "for _ in range(4):\n    allow_cpu(0.5)\n    spin(0.5)\nprint('done')"
    assert in_a_child(spin + pieces, tmp_path).stdout == "done\n"
    assert in_a_child(f"{spin}allow_cpu(0.5)\nspin(60)", tmp_path).returncode == -signal.SIGXCPU
    assert list(tmp_path.iterdir()) == [], "no core is dumped"


def test_the_decoder_runs_within_all_of_them(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    path = make_video(tmp_path / "v.mp4", num_frames=10)
    with VideoDecoder(timeout_s=GENEROUS_S, threads=1) as decoder:
        decoder.frames(path, [3])
        assert decoder.pid is not None
        child = psutil.Process(decoder.pid)
        memory = default_memory_bytes()
        assert child.rlimit(resource.RLIMIT_DATA) == (memory, memory)
        assert child.rlimit(resource.RLIMIT_FSIZE) == (0, 0)
        assert child.rlimit(resource.RLIMIT_CORE) == (0, 0)
        used_s = sum(child.cpu_times()[:2])
        assert 0 < child.rlimit(resource.RLIMIT_CPU)[0] - used_s < GENEROUS_S + 2


def test_a_decoder_without_time_left_costs_one_video(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    path = make_video(tmp_path / "v.mp4", num_frames=10)
    with VideoDecoder(timeout_s=GENEROUS_S) as decoder:
        decoder.open(path)
        assert decoder.pid is not None
        psutil.Process(decoder.pid).send_signal(signal.SIGXCPU)
        with pytest.raises(DecodeError, match="used up its processor time"):
            decoder.frames(path, [3])
        assert decoder.frames(path, [3]).shape[0] == 1


def test_a_small_file_of_huge_frames_is_refused_before_it_takes_the_memory(
    tmp_path: Path, make_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of kilobytes may hold frames of a gigabyte. Here the limit is small in place of the frames."""
    path = make_video(tmp_path / "v.mp4", num_frames=10, size=(640, 480))
    monkeypatch.setattr(client, "default_memory_bytes", lambda: 3 * 640 * 480 * 3)
    with VideoDecoder(timeout_s=GENEROUS_S) as decoder:
        assert np.shape(decoder.frames(path, [1])) == (1, 480, 640, 3)
        with pytest.raises(DecodeError, match=r"4 frames of 640x480 px take .* a decoder may take"):
            next(decoder.stream(path, range(10), at_once=2))


def test_a_decoder_says_that_memory_was_not_enough(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    """The child's own limit, set from outside to what it has, with room for the index only."""
    path = make_video(tmp_path / "v.mp4", num_frames=4, size=(2560, 1440), codec="mpeg4")
    small = make_video(tmp_path / "small.mp4", num_frames=4)
    with VideoDecoder(timeout_s=GENEROUS_S, threads=1) as decoder:
        decoder.open(small)
        assert decoder.pid is not None
        child = psutil.Process(decoder.pid)
        taken = child.memory_info().data
        child.rlimit(resource.RLIMIT_DATA, (taken + (2 << 20), taken + (2 << 20)))
        with pytest.raises(DecodeError, match=r"in .* GB, the most that a decoder may take"):
            decoder.open(path)


def test_half_of_a_small_machine_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confinement.os, "sysconf", lambda name: 4096 if "SIZE" in name else 2**20)
    assert default_memory_bytes() == 2 << 30
    monkeypatch.setattr(confinement.os, "sysconf", lambda name: 4096 if "SIZE" in name else 2**30)
    assert default_memory_bytes() == 16 << 30
