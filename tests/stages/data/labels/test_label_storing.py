"""Labels that a cache holds, and whose files change, break or go."""

from __future__ import annotations

from pathlib import Path

import pytest

from thinkjepa.cache import FeatureCache, WriteSession, file_digest
from thinkjepa.stages.data.labels.readers import LabelFolder
from thinkjepa.stages.data.labels.storing import LabelReport, store_labels
from thinkjepa.stages.data.videos import SourceVideo, file_signature
from thinkjepa.stages.progress import Progress

FRAMES = 4


class Notes(Progress):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two files that stand for videos, each with labels."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("0", "1"):
        (folder / f"{name}.mp4").write_bytes(name.encode())
        (folder / f"{name}.csv").write_text(f"frame,joint,x,y,z\n{FRAMES - 1},a,0,0,{name}\n")
    return folder


def stored(videos: Path, cache: Path) -> tuple[LabelReport, list[str]]:
    """Store the folder's labels. Returns the report, and the notes."""
    paths, progress = sorted(videos.glob("*.mp4")), Notes()
    sources = [
        SourceVideo(path, path.name, digest=file_digest(path), signature=file_signature(path))
        for path in paths
    ]
    with WriteSession(cache) as session:
        report = store_labels(
            session,
            sources,
            LabelFolder(videos, paths),
            num_frames=lambda video: FRAMES,
            progress=progress,
        )
    return report, progress.notes


def frames(cache: Path) -> dict[str, int]:
    return {item.video: item.num_frames for item in FeatureCache.open(cache).labels}


def test_labels_whose_file_is_gone_are_withdrawn_once_and_said_to_be(videos: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert stored(videos, cache)[0].added == 2
    (videos / "1.csv").unlink()
    report, notes = stored(videos, cache)
    assert (report.labelled_videos, report.unlabelled_videos, report.withdrawn_videos) == (1, 1, 1)
    assert notes == ["hand labels withdrawn, their file is gone: '1.mp4'"]
    assert frames(cache) == {"0.mp4": FRAMES, "1.mp4": 0}
    again, notes = stored(videos, cache)
    assert (again.unlabelled_videos, again.withdrawn_videos, notes) == (1, 0, [])


def test_videos_of_a_folder_without_labels_keep_those_from_elsewhere(videos: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    stored(videos, cache)
    for path in videos.glob("*.csv"):
        path.unlink()
    report, notes = stored(videos, cache)
    assert (report.withdrawn_videos, report.kept_videos) == (0, 2)
    assert len(notes) == 1
    assert "2 of its videos keep those that the cache holds from elsewhere" in notes[0]
    assert frames(cache) == {"0.mp4": FRAMES, "1.mp4": FRAMES}


def test_labels_of_a_file_that_changes_while_it_is_read_are_not_stored(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thinkjepa.stages.data.labels import client

    read = client.LabelProcess.read

    def slow_read(process: client.LabelProcess, path: Path, **options: str | None) -> object:
        labels = read(process, path, **options)
        path.write_text(path.read_text() + "0,b,0,0,1\n")
        return labels

    monkeypatch.setattr(client.LabelProcess, "read", slow_read)
    report, _ = stored(videos, tmp_path / "cache")
    assert [item.reason for item in report.failures] == [
        f"'{name}.csv' has changed while it was read: run the same command again" for name in "01"
    ]
    assert frames(tmp_path / "cache") == {}
