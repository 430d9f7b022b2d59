"""One process at a time writes a folder, and its death frees the folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from thinkjepa.cache import CacheError
from thinkjepa.cache.disk.layout import holder_file, lock_file
from thinkjepa.cache.disk.lock import WriteLock

HOLD = """
import sys, time
from pathlib import Path
from thinkjepa.cache.disk.lock import WriteLock

with WriteLock(Path(sys.argv[1]), file=sys.argv[2], remedy="wait"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def holding(folder: Path, file: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock, until it is killed or the context ends."""
    line = [sys.executable, "-c", HOLD, str(folder), file]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


@pytest.mark.parametrize("file", ["", "future.mp4"])
def test_another_process_is_refused_and_learns_who_writes(tmp_path: Path, file: str) -> None:
    with holding(tmp_path / "run", file) as process:
        with pytest.raises(CacheError) as refused, WriteLock(tmp_path / "run", file=file, remedy="go away"):
            pass
        assert f"{str(tmp_path / 'run' / file)!r} is being written by process {process.pid} of " in str(
            refused.value
        )
        assert str(refused.value).endswith(": go away")
        process.communicate("\n")
    with WriteLock(tmp_path / "run", file=file, remedy="go away") as lock:
        assert json.loads(holder_file(tmp_path / "run", file).read_text())["pid"] == os.getpid()
        assert lock.token


@pytest.mark.parametrize("file", ["", "future.mp4"])
def test_the_lock_of_a_killed_process_is_free(tmp_path: Path, file: str) -> None:
    with holding(tmp_path, file) as process:
        process.send_signal(signal.SIGKILL)
    assert holder_file(tmp_path, file).exists(), "the control: nothing was tidied up"
    with WriteLock(tmp_path, file=file, remedy="go away"):
        pass


def test_a_waiting_process_learns_for_whom_and_comes_next(tmp_path: Path) -> None:
    with holding(tmp_path) as process:

        def end(note: str) -> None:
            assert f"is being written by process {process.pid} of " in note
            assert note.endswith(": waiting for it to end")
            process.communicate("\n")

        with WriteLock(tmp_path, remedy="go away", on_wait=end):
            assert process.poll() == 0


def test_files_of_one_folder_are_written_at_once_and_leave_nothing(tmp_path: Path) -> None:
    with WriteLock(tmp_path, file="a.mp4", remedy=""), WriteLock(tmp_path, file="b.mp4", remedy=""):
        assert lock_file(tmp_path, "a.mp4").exists()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match=r"cannot lock .*: a part of the path is a file"):
        WriteLock(tmp_path / "file" / "run", remedy="").__enter__()
