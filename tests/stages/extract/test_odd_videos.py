"""Stage one on a folder of good and bad videos: the good are read exactly, the bad are listed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import odd_videos
import psutil
import pytest

from thinkjepa.cache import FeatureCache
from thinkjepa.stages.data.decoding.client import DecodeError, VideoDecoder

TIMEOUT_S = 60.0
TIME_STEP_S = 1e-3
"""Matroska's clock."""
FEW = ("--thinker-frames", 4, "--observed-frames", 4, "--future-frames", 4, "--stride-s", 60)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Any:
    """The folder of odd videos, which tests must not change."""
    folder = tmp_path_factory.mktemp("odd") / "videos"
    folder.mkdir()
    return odd_videos.write_odd_videos(folder, make_video)


def test_every_frame_of_every_good_video_carries_its_own_number(
    odd: Any, read_frame_number: Callable[..., int]
) -> None:
    """In order, backwards and alone; and a time finds the frame that is shown then."""
    with VideoDecoder(timeout_s=TIMEOUT_S) as decoder:
        for name, good in odd.good.items():
            path = odd.folder / name
            info = decoder.open(path)
            assert (info.width_px, info.height_px) == good.size, name
            assert np.allclose(info.times_s, good.times_s, atol=TIME_STEP_S), name
            total = len(good.times_s)
            step = 7 if good.size[0] > 1000 else 1  # 60 frames of 4K are 1.5 GB
            for order in (range(0, total, step), range(total - 1, -1, -7), [total // 2], [total - 1, 0]):
                frames = decoder.frames(path, list(order))
                numbers = [read_frame_number(np.rot90(frame, -good.turns)) for frame in frames]
                assert numbers == [good.first_number + index for index in order], name


def test_a_container_that_promises_more_frames_than_it_holds_does_not_open(odd: Any) -> None:
    with VideoDecoder(timeout_s=TIMEOUT_S) as decoder, pytest.raises(DecodeError, match="cannot be decoded"):
        decoder.open(odd.folder / "promises-more.mkv")


def test_a_folder_of_odd_videos_is_extracted_and_every_bad_one_is_listed(
    odd: Any, tmp_path: Path, run_extract: Callable[..., Any]
) -> None:
    outcome = run_extract(odd.folder, tmp_path / "cache", *FEW, "--decode-timeout", TIMEOUT_S)
    assert outcome.status == 3, outcome.stderr
    report = outcome.json
    assert len(odd.good) + len(odd.bad) + len(odd.too_short) == report["videos"] >= 25
    short = {item["video"]: round(item["duration_s"], 6) for item in report["too_short"]}
    assert short == odd.too_short
    failures = {failure["video"]: failure for failure in report["failures"]}
    assert set(failures) == set(odd.bad)
    for name, (stage, reason) in odd.bad.items():
        assert failures[name]["stage"] == stage, failures[name]
        assert reason in failures[name]["reason"]
        assert "\n" not in failures[name]["reason"]
    cache = FeatureCache.open(tmp_path / "cache")
    sets = cache.choose_set("thinker").name, cache.choose_set("encoder").name
    assert {clip.video for clip in cache.select(*sets)} == set(odd.good)
    again = run_extract(odd.folder, tmp_path / "cache", *FEW, "--max-failures", len(odd.bad))
    assert (again.status, again.json["extracted"]) == (0, 0)


def test_a_video_that_hangs_its_reader_is_listed_and_the_others_extracted(
    tmp_path: Path, make_video: Callable[..., Path], extract_arguments: Callable[..., Any]
) -> None:
    """The decoder is stopped as soon as it has the file open, in the middle of reading it."""
    folder = tmp_path / "videos"
    make_video(folder / "a.mp4", num_frames=60)
    make_video(folder / "z.mp4", num_frames=60, size=(176, 128))
    hanging = make_video(folder / "hangs.mp4", num_frames=6000, size=(64, 64))
    arguments = [str(item) for item in extract_arguments(folder, tmp_path / "cache")]
    command = [str(Path(sys.executable).parent / "thinkjepa-cache"), *arguments]
    flags = [*map(str, FEW), "--decode-timeout", "10", "--json"]
    with subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        watcher = threading.Thread(target=stop_reader_of, args=(hanging, run))
        watcher.start()
        stdout, stderr = run.communicate(timeout=240)
        watcher.join()
    assert run.returncode == 3, stderr.decode()
    text = stdout.decode()
    assert "no answer from the decoder for 10 s, ended it (--decode-timeout)" in text
    assert text.count('"stage"') == 1
    cache = FeatureCache.open(tmp_path / "cache")
    sets = cache.choose_set("thinker").name, cache.choose_set("encoder").name
    assert {clip.video for clip in cache.select(*sets)} == {"a.mp4", "z.mp4"}


def stop_reader_of(path: Path, run: subprocess.Popen[bytes]) -> None:
    """SIGSTOP the child of `run` that opens `path`; ends when it has or the run is over."""
    while run.poll() is None:
        for child in psutil.Process(run.pid).children(recursive=True):
            try:
                held = {str(link.readlink()) for link in Path(f"/proc/{child.pid}/fd").iterdir()}
            except OSError:  # a file or a process that just went away
                continue
            if str(path) in held:
                os.kill(child.pid, signal.SIGSTOP)
                return
        time.sleep(0.002)


def test_a_video_that_may_not_be_read_is_listed(
    tmp_path: Path, make_video: Callable[..., Path], extract_arguments: Callable[..., Any]
) -> None:
    """As root without the right to read everything, which no permission stops otherwise."""
    folder = tmp_path / "videos"
    make_video(folder / "good.mp4", num_frames=60)
    locked = make_video(folder / "locked.mp4", num_frames=60, size=(176, 128))
    locked.chmod(0)
    arguments = [str(item) for item in extract_arguments(folder, tmp_path / "cache")]
    command = [str(Path(sys.executable).parent / "thinkjepa-cache"), *arguments, *map(str, FEW), "--json"]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    if "setpriv" in done.stderr:
        pytest.skip("as root, without setpriv, every file can be read")
    assert done.returncode == 3, done.stderr
    assert '"cannot be read: Permission denied"' in done.stdout
    assert done.stdout.count('"stage"') == 1
