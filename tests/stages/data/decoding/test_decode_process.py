"""The decoder in its child process: exact frames, and every way it can end."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from thinkjepa.stages.data.decoding.client import DecodeError, VideoDecoder, check_times
from thinkjepa.stages.errors import StageError

TIMEOUT_S = 20.0


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4"), ("mov", "libx264")],
)
def test_any_order_of_indices_gives_exactly_those_frames(
    tmp_path: Path,
    make_video: Callable[..., Path],
    read_frame_number: Callable[..., int],
    suffix: str,
    codec: str,
) -> None:
    path = make_video(tmp_path / f"v.{suffix}", num_frames=60, fps=27, codec=codec)
    wanted = [59, 0, 31, 31, 1, 58, 12]
    with VideoDecoder(timeout_s=TIMEOUT_S) as decoder:
        info = decoder.open(path)
        frames = decoder.frames(path, wanted)
    assert [read_frame_number(frame) for frame in frames] == wanted
    assert len(info.times_s) == 60
    assert np.allclose(info.times_s, np.arange(60) / 27, atol=1e-3)


def test_a_stream_that_is_left_does_not_disturb_the_next_one(
    tmp_path: Path, make_video: Callable[..., Path], read_frame_number: Callable[..., int]
) -> None:
    path = make_video(tmp_path / "v.mp4", num_frames=40)
    wanted = [0, 3, 4, 20, 21, 39, 38]
    with VideoDecoder(timeout_s=TIMEOUT_S) as decoder:
        stacks = list(decoder.stream(path, wanted[:-1], at_once=4))
        assert [[read_frame_number(frame) for frame in stack] for stack in stacks] == [
            [0, 3, 4, 20],
            [21, 39],
        ]
        first = next(decoder.stream(path, [7, 8, 9], at_once=1))
        assert read_frame_number(first[0]) == 7
        assert [read_frame_number(frame) for frame in decoder.frames(path, wanted)] == wanted
        assert len(decoder.open(path).times_s) == 40


def test_variable_frame_times_are_kept(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    times_s = [0.0, 0.04, 0.3, 0.31, 0.9, 1.0, 1.7, 1.75]
    path = make_video(tmp_path / "v.mp4", num_frames=8, timestamps=times_s)
    with VideoDecoder(timeout_s=TIMEOUT_S) as decoder:
        assert np.allclose(decoder.open(path).times_s, times_s, atol=1e-3)


@pytest.mark.parametrize("content", [b"", b"this is not a video", b"\x00" * 5000])
def test_what_is_no_video_is_an_error_and_the_decoder_goes_on(
    tmp_path: Path, make_video: Callable[..., Path], content: bytes
) -> None:
    bad, good = tmp_path / "bad.mp4", make_video(tmp_path / "good.mp4", num_frames=10)
    bad.write_bytes(content)
    with VideoDecoder(timeout_s=TIMEOUT_S) as decoder:
        with pytest.raises(DecodeError, match="cannot be decoded"):
            decoder.open(bad)
        assert len(decoder.open(good).times_s) == 10


@pytest.mark.parametrize("size", [(98, 130), (102, 68), (720, 1280), (40, 64), (48, 96), (144, 128)])
def test_odd_sizes_are_decoded_exactly(
    tmp_path: Path,
    make_video: Callable[..., Path],
    read_frame_number: Callable[..., int],
    size: tuple[int, int],
) -> None:
    path = make_video(tmp_path / "v.mp4", num_frames=40, size=size)
    with VideoDecoder(timeout_s=TIMEOUT_S) as decoder:
        frames = decoder.frames(path, [39, 3, 20, 21, 0])
    assert frames.shape == (5, size[1], size[0], 3)
    assert [read_frame_number(frame) for frame in frames] == [39, 3, 20, 21, 0]


def test_a_video_that_does_not_open_leaves_the_one_before_readable(
    tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    good, bad = make_video(tmp_path / "good.mp4", num_frames=10), tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    with VideoDecoder(timeout_s=TIMEOUT_S) as decoder:
        decoder.open(good)
        with pytest.raises(DecodeError):
            decoder.open(bad)
        assert decoder.frames(good, [3]).shape[0] == 1


def test_a_hanging_decoder_is_ended_and_the_next_video_read(
    tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    path = make_video(tmp_path / "v.mp4", num_frames=10)
    with VideoDecoder(timeout_s=0.5) as decoder:
        decoder.open(path)
        pid = decoder.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(DecodeError, match=r"no answer from the decoder for 0\.5 s"):
            decoder.frames(path, [3])
        assert not psutil.pid_exists(pid)
        decoder.timeout_s = TIMEOUT_S
        assert decoder.frames(path, [3]).shape[0] == 1


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (signal.SIGABRT, r"ended by itself \(signal 6\): the file is malformed"),
        (signal.SIGKILL, r"was killed \(signal 9\), perhaps for lack of memory"),
    ],
)
def test_a_crashing_decoder_costs_one_video(
    tmp_path: Path, make_video: Callable[..., Path], number: signal.Signals, told: str
) -> None:
    path = make_video(tmp_path / "v.mp4", num_frames=10)
    with VideoDecoder(timeout_s=TIMEOUT_S) as decoder:
        decoder.open(path)
        assert decoder.pid is not None
        os.kill(decoder.pid, number)
        with pytest.raises(DecodeError, match=told):
            decoder.frames(path, [3])
        assert decoder.frames(path, [3]).shape[0] == 1


def test_a_hanging_decoder_does_not_outlive_a_killed_parent(
    tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    path = make_video(tmp_path / "v.mp4", num_frames=10)
    script = (
        "import os, signal, sys, time\nfrom pathlib import Path\n"
        "from thinkjepa.stages.data.decoding.client import VideoDecoder\n"
        "decoder = VideoDecoder(timeout_s=60)\ndecoder.open(Path(sys.argv[1]))\n"
        "os.kill(decoder.pid, signal.SIGSTOP)\nprint(decoder.pid, flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the decoder still runs"
        time.sleep(0.05)


def test_a_name_that_looks_like_a_protocol_is_a_file(
    tmp_path: Path, make_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_video(tmp_path / "plain.mp4", num_frames=10).rename(tmp_path / "concat:x|y.mp4")
    monkeypatch.chdir(tmp_path)
    with VideoDecoder(timeout_s=TIMEOUT_S) as decoder:
        assert len(decoder.open(Path("concat:x|y.mp4")).times_s) == 10


@pytest.mark.parametrize("times_s", [[0.0, 0.1, 0.1], [0.0, 0.2, 0.1], [0.0, float("nan"), 0.2]])
def test_frame_times_that_are_not_real_are_refused(times_s: list[float]) -> None:
    with pytest.raises(DecodeError, match=r"do not increase|no time"):
        check_times(np.array(times_s))


def test_memory_does_not_grow_while_nobody_asks(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    """A decoder that runs ahead would take 0.7 GB for this video."""
    path = make_video(tmp_path / "v.mp4", num_frames=1500, size=(480, 320), codec="mpeg4")
    with VideoDecoder(timeout_s=TIMEOUT_S) as decoder:
        decoder.open(path)
        decoder.frames(path, [0, 5, 10])
        assert decoder.pid is not None
        child = psutil.Process(decoder.pid)
        before = child.memory_info().rss
        for _ in range(3):
            decoder.frames(path, [20, 30])
            time.sleep(0.5)
        assert child.memory_info().rss - before < 100e6


def test_memory_does_not_grow_with_the_number_of_videos(
    tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    """Each of them, also one that breaks off, would leave some 20 MB of decoder and frames."""
    good = make_video(tmp_path / "good.mp4", num_frames=10, size=(1280, 720), codec="mpeg4")
    cut = tmp_path / "cut.avi"
    whole = make_video(tmp_path / "whole.avi", num_frames=10, size=(1280, 720), codec="mpeg4")
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    sizes = []
    with VideoDecoder(timeout_s=TIMEOUT_S) as decoder:
        for _ in range(12):
            decoder.frames(good, [0, 5, 9])
            with pytest.raises(DecodeError):
                decoder.open(cut)
            assert decoder.pid is not None
            sizes.append(psutil.Process(decoder.pid).memory_info().rss)
    assert sizes[-1] - sizes[3] < 30e6


def test_a_stack_is_what_was_asked_for_until_the_next_one_is(
    tmp_path: Path, make_video: Callable[..., Path], read_frame_number: Callable[..., int]
) -> None:
    """The child is slower and faster than the reader, and its memory goes round many times."""
    path = make_video(tmp_path / "v.mp4", num_frames=40)
    for at_once in (1, 3, 7, 39, 40, 100):
        with VideoDecoder(timeout_s=TIMEOUT_S) as decoder:
            numbers = []
            for count, stack in enumerate(decoder.stream(path, range(40), at_once=at_once)):
                time.sleep(0.02 if count % 3 == 0 else 0)
                numbers += [read_frame_number(frame) for frame in stack]
            assert numbers == list(range(40))


def test_no_room_for_frames_is_no_fault_of_the_video(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    path = make_video(tmp_path / "v.mp4", num_frames=10, size=(640, 480))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with VideoDecoder(timeout_s=TIMEOUT_S) as decoder:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, limits[1]))
        try:
            with pytest.raises(StageError, match="no memory for 2 frames of 640x480 px") as raised:
                decoder.frames(path, [3, 4])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not isinstance(raised.value, DecodeError)
        assert len(decoder.frames(path, [3, 4])) == 2


def test_videos_of_other_sizes_share_the_memory(
    tmp_path: Path, make_video: Callable[..., Path], read_frame_number: Callable[..., int]
) -> None:
    sizes = [(64, 48), (320, 240), (128, 96), (640, 480), (64, 48)]
    paths = [make_video(tmp_path / f"{n}.mp4", num_frames=20, size=size) for n, size in enumerate(sizes)]
    with VideoDecoder(timeout_s=TIMEOUT_S) as decoder:
        for path, (width, height) in zip(paths * 2, sizes * 2, strict=True):
            frames = decoder.frames(path, [3, 17, 18])
            assert frames.shape == (3, height, width, 3)
            assert [read_frame_number(frame) for frame in frames] == [3, 17, 18]
