"""Extractions that are killed, stopped, or run out of disk: nothing is lost, and the next run goes on."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

RunExtract = Callable[..., Any]
TreeDigest = Callable[[Path], dict[str, str]]

AT_ONCE_S = 20
"""Far below --decode-timeout and above what a process takes to end on a busy machine."""


@pytest.fixture(scope="session")
def extract_command(extract_arguments: Callable[..., Sequence[object]]) -> Callable[[Path, Path], list[str]]:
    """The command line of `run_extract`, to be started and not awaited."""

    def command(videos: Path, cache_dir: Path) -> list[str]:
        arguments = extract_arguments(videos, cache_dir)
        return [str(Path(sys.executable).parent / "thinkjepa-cache"), *map(str, arguments)]

    return command


def wait_for_a_batch(cache_dir: Path, run: subprocess.Popen[Any]) -> None:
    """Return once a running extraction has committed its first batch."""
    deadline = time.monotonic() + 120
    while not any(path.stat().st_size > 200 for path in cache_dir.glob("*/journal/*.jsonl")):
        assert time.monotonic() < deadline
        assert run.poll() is None
        time.sleep(0.01)


def test_a_killed_run_continues_to_the_same_cache(
    tmp_path: Path,
    videos: Path,
    extracted: Path,
    run_extract: RunExtract,
    extract_command: Callable[[Path, Path], list[str]],
    tree_digest: TreeDigest,
) -> None:
    cache_dir = tmp_path / "cache"
    command = extract_command(videos, cache_dir)
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as run:
        wait_for_a_batch(cache_dir, run)
        os.kill(run.pid, signal.SIGKILL)
    assert list(cache_dir.glob("*/journal/*.jsonl"))
    outcome = run_extract(videos, cache_dir)
    assert outcome.status == 0, outcome.stderr
    assert outcome.json["already_there"] + outcome.json["extracted"] > 0
    assert tree_digest(cache_dir) == tree_digest(extracted)


def test_ctrl_c_says_how_to_go_on_and_loses_nothing(
    tmp_path: Path,
    videos: Path,
    extracted: Path,
    run_extract: RunExtract,
    extract_command: Callable[[Path, Path], list[str]],
    tree_digest: TreeDigest,
) -> None:
    cache_dir = tmp_path / "cache"
    command = extract_command(videos, cache_dir)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        wait_for_a_batch(cache_dir, run)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does: the whole group
        _, stderr = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "run the same command again to continue" in stderr
    assert "failed" not in stderr
    told = re.search(r"stopped: (\d+) of (\d+) clips are in '(.+)'; the same command continues", stderr)
    assert told is not None, stderr
    again = run_extract(videos, cache_dir)
    assert again.status == 0
    assert again.json["already_there"] > 0  # what the first run kept in shards that it did not finish
    kept = (again.json["already_there"], again.json["clips"], str(cache_dir))
    assert (int(told[1]), int(told[2]), told[3]) == kept
    assert tree_digest(cache_dir) == tree_digest(extracted)


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_ends_a_run_whose_reader_hangs(
    tmp_path: Path,
    videos: Path,
    run_extract: RunExtract,
    extract_command: Callable[[Path, Path], list[str]],
    presses: int,
) -> None:
    """The first waits for the batch in flight, which comes with the reader's time-out; a second does not."""
    cache_dir, many_clips = tmp_path / "cache", ("--stride-s", "0.4")
    patience = ("--decode-timeout", "8" if presses == 1 else "600")
    command = [*extract_command(videos, cache_dir), *many_clips, *patience]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        wait_for_a_batch(cache_dir, run)
        (reader,) = psutil.Process(run.pid).children()
        reader.suspend()
        time.sleep(3)  # until what was decoded before is through the models
        os.killpg(run.pid, signal.SIGINT)
        if presses == 2:
            with pytest.raises(subprocess.TimeoutExpired):
                run.wait(timeout=2)
            os.killpg(run.pid, signal.SIGINT)
        _, stderr = run.communicate(timeout=AT_ONCE_S)
    assert run.returncode == 130
    assert "Ctrl-C again ends at once" in stderr
    assert not reader.is_running()
    untouched = tmp_path / "untouched"
    shutil.copytree(cache_dir, untouched)
    again = run_extract(videos, cache_dir, *many_clips)
    lost = again.json["failed_clips"]
    assert again.json["failed_before"] == lost
    assert again.json["already_there"] + again.json["extracted"] == again.json["clips"] - lost
    assert (lost > 0) == (presses == 1), (
        "the reader's time-out costs what it was asked for, and is not forgotten"
    )
    assert again.status == (3 if lost else 0), again.stderr
    assert all("no answer from the decoder for 8 s" in item["reason"] for item in again.json["failures"])
    last = run_extract(videos, cache_dir, *many_clips, "--retry-failed")
    assert last.status == 0, last.stderr
    assert last.json["extracted"] == lost
    at_once = run_extract(videos, untouched, *many_clips, "--retry-failed")
    assert at_once.status == 0, at_once.stderr
    assert at_once.json["failed_before"] == at_once.json["failed_clips"] == 0
    assert run_extract(videos, untouched, *many_clips).json["already_there"] == at_once.json["clips"]


def test_a_full_disk_is_one_line_and_loses_nothing(
    tmp_path: Path, videos: Path, extracted: Path, run_extract: RunExtract, tree_digest: TreeDigest
) -> None:
    """A limit on the size of a file stands in for the disk: the same write fails in the same place."""
    cache_dir = tmp_path / "cache"
    outcome = run_extract(videos, cache_dir, shell_prefix="ulimit -f 2000; trap '' XFSZ")
    assert outcome.status == 2, outcome.stderr
    assert "error: cannot write" in outcome.stderr
    assert "file too large" in outcome.stderr
    assert run_extract(videos, cache_dir).status == 0
    assert tree_digest(cache_dir) == tree_digest(extracted)


def test_a_full_tmpfs_is_one_line_and_loses_nothing(
    tmp_path: Path, videos: Path, extracted: Path, run_extract: RunExtract, tree_digest: TreeDigest
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        told = run_extract(videos, small / "cache")
        assert told.status == 2, told.stderr
        assert "clips without features take about" in told.stderr.splitlines()[-1]
        outcome = run_extract(videos, small / "cache", "--ignore-space")
        assert outcome.status == 2, outcome.stderr
        assert "the disk is full" in outcome.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        assert run_extract(videos, small / "cache", "--ignore-space").status == 0
        assert tree_digest(small / "cache") == tree_digest(extracted)
    finally:
        subprocess.run(["umount", str(small)], check=True)
