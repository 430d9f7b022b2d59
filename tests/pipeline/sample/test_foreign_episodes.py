"""A folder of episodes from others: no name and no link in it leads out of it, or out of where it goes."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
from commands import run_command
from hands.archive import write_archive

from thinkjepa.pipeline.sample.episodes import POSES_FILE, ArchiveError, read_archive
from thinkjepa.pipeline.sample.expand import expand

HANDS = Path(str(files("thinkjepa.pipeline.sample") / "hands"))

pytestmark = pytest.mark.skipif(not HANDS.is_dir(), reason="this checkout holds no rendered episodes")


def episodes_at(folder: Path, video: str) -> Path:
    """A folder of one episode, whose archive gives its video a path."""
    skeleton, episodes = read_archive(HANDS / POSES_FILE)
    folder.mkdir()
    named = replace(episodes[0], facts=replace(episodes[0].facts, video=video))
    write_archive(folder / POSES_FILE, skeleton, [named])
    path = folder / video
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"a video")
    return folder


@pytest.mark.parametrize("name", ["../outside.mp4", "a/../../outside.mp4", "{}/outside.mp4", "a/\x1b[2J.mp4"])
def test_a_video_whose_name_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    folder = episodes_at(tmp_path / "episodes", name.format(tmp_path / "absolute"))
    before = sorted(tmp_path.rglob("*"))
    done = run_command("thinkjepa-sample", "expand", tmp_path / "out", "--episodes", folder)
    assert done.returncode == 2, done.stdout
    assert "a video in it is called" in done.stderr
    assert "\x1b" not in done.stderr
    out = tmp_path / "out"
    assert sorted(path for path in tmp_path.rglob("*") if out not in (path, path.parent)) == before


def test_a_video_that_is_a_link_out_of_the_folder_is_not_read(tmp_path: Path) -> None:
    folder = episodes_at(tmp_path / "episodes", "task/0.mp4")
    (tmp_path / "private").write_text("mine")
    (folder / "task" / "0.mp4").unlink()
    (folder / "task" / "0.mp4").symlink_to(tmp_path / "private")
    with pytest.raises(ArchiveError, match="not the video"):
        expand(folder, tmp_path / "out")


def test_links_where_files_go_are_replaced_or_refused(tmp_path: Path) -> None:
    folder, out = episodes_at(tmp_path / "episodes", "task/0.mp4"), tmp_path / "out"
    (out / "task").mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_text("mine")
    links = [out / "episodes.json", out / "task" / "0.mp4", out / "task" / "0.hdf5"]
    for link in links:
        link.symlink_to(victim)
    tables = [out / "clips.csv", out / "classes.csv"]
    assert sorted(expand(folder, out)) == sorted([*links, *tables])
    assert victim.read_text() == "mine"
    assert (out / "task" / "0.mp4").read_bytes() == b"a video"
    for link in links:
        link.unlink()
    (out / "task").rmdir()
    (out / "task").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(ArchiveError, match="a link that leads out of"):
        expand(folder, out)
    assert list((tmp_path / "elsewhere").iterdir()) == []
