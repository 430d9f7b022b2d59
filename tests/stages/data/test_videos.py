"""Finding and naming the videos of a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from thinkjepa.stages.data.tracked_files import folder_manifest
from thinkjepa.stages.data.videos import DigestMemory, display_name, find_videos, identify
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.progress import NoProgress

NOBODY = 65534


@contextmanager
def as_ordinary_user(folder: Path) -> Iterator[None]:
    """Without root's rights, which no permission stops; the folders above `folder` stay open to pass."""
    if os.geteuid() != 0:
        yield
        return
    for parent in [folder, *folder.parents][:-2]:
        parent.chmod(parent.stat().st_mode | 0o055)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def names(folder: Path) -> list[str]:
    return [display_name(path, folder) for path in find_videos(folder)]


def test_videos_are_found_recursively_by_suffix_and_sorted(tmp_path: Path) -> None:
    for name in ("b/2.mp4", "b/10.MKV", "a.webm", "c/d/e.avi", "c/x.mov", "c/notes.txt", "c/mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert names(tmp_path) == ["a.webm", "b/10.MKV", "b/2.mp4", "c/d/e.avi", "c/x.mov"]


def test_links_that_leave_the_folder_are_not_followed(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "videos"
    outside.mkdir()
    folder.mkdir()
    (outside / "secret.mp4").write_bytes(b"x")
    (folder / "own.mp4").write_bytes(b"y")
    (folder / "inner.mp4").symlink_to(folder / "own.mp4")
    (folder / "leak.mp4").symlink_to(outside / "secret.mp4")
    (folder / "tree").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    assert names(folder) == ["inner.mp4", "own.mp4"]


def test_hostile_names_are_only_names(tmp_path: Path) -> None:
    raw = [
        b"new\nline.mp4",
        b"caf\xc3\xa9.mp4",
        b"broken\xff.mp4",
        b"[red]x.mp4",
        b"a" * 250 + b".mp4",
        b"-rf.mp4",
    ]
    for name in raw:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(name)
    found = [identify(path, folder=tmp_path) for path in find_videos(tmp_path)]
    assert len({video.digest for video in found}) == len(raw)
    assert "broken\\udcff.mp4" in {video.name for video in found}
    for video in found:
        video.name.encode()
        assert re.fullmatch("[0-9a-f]{16}", video.video_id)


def test_folders_that_cannot_be_read_are_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    (folder / "locked").mkdir(parents=True)
    (folder / "a.mp4").write_bytes(b"x")
    (folder / "locked").chmod(0o700 if os.geteuid() == 0 else 0)
    with as_ordinary_user(folder), pytest.raises(StageError, match=r"cannot read folder .*locked"):
        find_videos(folder)
    (folder / "locked").chmod(0o700)
    with pytest.raises(StageError, match="No such file"):
        find_videos(tmp_path / "absent")
    with pytest.raises(StageError, match="is a file"):
        find_videos(folder / "a.mp4")
    with pytest.raises(StageError, match="no videos under"):
        find_videos(folder / "locked")


def test_the_manifest_changes_with_content_and_name_only(tmp_path: Path) -> None:
    def manifest() -> object:
        memory = DigestMemory(tmp_path / "digests.json")
        found = folder_manifest(tmp_path, progress=NoProgress(), memory=memory)
        memory.save()
        return found

    video = tmp_path / "a.mp4"
    video.write_bytes(b"one")
    first = manifest()
    os.utime(video, (1, 1))
    assert manifest() == first
    video.write_bytes(b"two")
    changed = manifest()
    assert changed != first
    video.rename(tmp_path / "b.mp4")
    assert manifest() not in (first, changed)


def test_an_unreadable_video_is_in_the_manifest(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    make_video(tmp_path / "good.mp4", num_frames=4)
    memory = DigestMemory(tmp_path / "digests.json")
    videos = folder_manifest(tmp_path, progress=NoProgress(), memory=memory)["videos"]
    assert videos["gone.mp4"] == "unreadable"
    assert len(videos["good.mp4"]) == 64


def test_a_missing_folder_is_refused_with_flag_and_key(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"'.*none' cannot be read: .*--videos, or .* the key videos"):
        find_videos(tmp_path / "none")
