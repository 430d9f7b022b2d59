"""Remembered digests: nothing is read twice, and nothing that changed is taken for unchanged."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from thinkjepa.cache import file_digest
from thinkjepa.stages.data.tracked_files import UNREADABLE, folder_manifest
from thinkjepa.stages.data.videos import CLOCK_GRAIN_NS, DigestMemory
from thinkjepa.stages.progress import NoProgress


class Reader:
    """`file_digest` that lists what it reads."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, path: Path) -> str:
        self.names.append(path.name)
        return file_digest(path)


@pytest.fixture
def old_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files look older than the clock's grain as soon as they are written."""
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 2 * CLOCK_GRAIN_NS)


def ask(memory: Path, *paths: Path) -> list[str]:
    """Ask for digests in a run of its own; the names of the files that were read."""
    reader, opened = Reader(), DigestMemory(memory)
    assert [opened.digest(path, reader) for path in paths] == [file_digest(path) for path in paths]
    opened.save()
    return reader.names


@pytest.mark.usefixtures("old_clock")
def test_a_file_is_read_once_and_again_after_every_kind_of_change(tmp_path: Path) -> None:
    memory, one, two = tmp_path / "memory", tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1111")
    two.write_bytes(b"2222")
    assert ask(memory, one, two) == ["one", "two"]
    assert ask(memory, one, two) == []
    before = one.stat()
    one.write_bytes(b"3333")
    os.utime(one, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ask(memory, one, two) == ["one"], "same size, same modification time: the change time tells"
    (tmp_path / "new").write_bytes(b"4444")
    os.utime(tmp_path / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / "new").replace(one)
    assert ask(memory, one, two) == ["one"]
    assert ask(memory, two) == []
    assert ask(memory, one) == ["one"], "what a run did not ask for is forgotten"


def test_a_file_touched_within_the_clocks_grain_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    assert ask(tmp_path / "memory", tmp_path / "file") == ["file"]
    assert ask(tmp_path / "memory", tmp_path / "file") == ["file"]


@pytest.mark.usefixtures("old_clock")
def test_a_file_written_while_it_is_read_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1")

    def read(found: Path) -> str:
        digest = file_digest(found)
        found.write_bytes(b"22")
        return digest

    memory = DigestMemory(tmp_path / "memory")
    memory.digest(path, read)
    memory.save()
    assert ask(tmp_path / "memory", path) == ["file"]


@pytest.mark.usefixtures("old_clock")
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"/a": 5}', b"\xff"])
def test_a_damaged_memory_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "memory").write_bytes(content)
    (tmp_path / "file").write_bytes(b"1")
    assert ask(tmp_path / "memory", tmp_path / "file") == ["file"]
    assert ask(tmp_path / "memory", tmp_path / "file") == []


@pytest.mark.usefixtures("old_clock")
def test_a_manifest_from_memory_is_the_same_whatever_the_names(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in (b"plain.mp4", b"not utf-8 \xff.mp4", b"new\nline.mp4"):
        Path(os.fsdecode(os.fsencode(videos) + b"/" + name)).write_bytes(name)
    os.mkfifo(videos / "pipe.mp4")

    def manifest() -> dict[str, dict[str, str]]:
        memory = DigestMemory(tmp_path / "memory")
        found = folder_manifest(videos, progress=NoProgress(), memory=memory)
        memory.save()
        return found

    first = manifest()
    assert first["videos"]["pipe.mp4"] == UNREADABLE
    assert len(set(first["videos"].values())) == 4
    assert manifest() == first
    (videos / "plain.mp4").write_bytes(b"other")
    assert manifest() != first


def test_the_step_that_lists_videos_needs_neither_torch_nor_zarr() -> None:
    """It runs in every `dvc repro`."""
    code = (
        "import sys, thinkjepa.pipeline.cli.stage, thinkjepa.stages.data.tracked_files; "
        "print(sorted({'torch', 'zarr', 'accelerate', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
