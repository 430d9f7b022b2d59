"""`thinkjepa-sample`, run as a user runs it."""

import json
import subprocess
from collections.abc import Callable
from functools import partial

import pytest
from commands import run_command

from thinkjepa.pipeline.cli import sample as sample_app

SHORT = ("--seconds", "0.5", "--fps", "10", "--width", "64", "--height", "48")

Result = subprocess.CompletedProcess[str]
Sample = Callable[..., Result]


@pytest.fixture
def sample(call_main: Callable[..., Result]) -> Sample:
    return partial(call_main, sample_app.main, "thinkjepa-sample")


def assert_one_line_error(result: Result, *words: str) -> None:
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def test_the_command_says_that_the_models_are_untrained(tmp_path):
    result = run_command("thinkjepa-sample", "models", tmp_path / "models")
    assert result.returncode == 0, result.stderr
    assert "UNTRAINED" in result.stdout
    assert result.stderr == ""


def test_models_command_replaces_models_of_another_seed(tmp_path, sample):
    out = tmp_path / "models"
    assert sample("models", out).returncode == 0
    again = sample("models", out, "--seed", 1, "--json")
    assert again.returncode == 0, again.stderr
    report = json.loads(again.stdout)
    assert report == {
        "thinker": str(out / "thinker"),
        "encoder": str(out / "encoder"),
        "seed": 1,
        "trained": False,
    }
    assert "seed 1" in (out / "thinker" / "README.md").read_text()


def test_videos_command_replaces_what_it_wrote_before(tmp_path, sample):
    out = tmp_path / "videos"
    assert sample("videos", out, "--num-videos", 5, *SHORT).returncode == 0
    again = sample("videos", out, "--num-videos", 4, *SHORT, "--json")
    assert again.returncode == 0, again.stderr
    names = ["bounce/0.mp4", "orbit/0.mp4", "slide/0.mp4", "swing/0.mp4"]
    assert json.loads(again.stdout)["videos"] == names
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.mp4")) == names


def test_a_folder_with_other_files_is_left_alone_unless_forced(tmp_path, sample):
    mine = tmp_path / "slide" / "mine.mp4"
    mine.parent.mkdir()
    mine.write_bytes(b"precious")
    assert_one_line_error(sample("videos", tmp_path, *SHORT), str(tmp_path), "--force")
    assert list(tmp_path.rglob("*.mp4")) == [mine]

    assert sample("videos", tmp_path, *SHORT, "--num-videos", 1, "--force").returncode == 0
    assert sample("videos", tmp_path, *SHORT, "--num-videos", 1).returncode == 0
    assert mine.read_bytes() == b"precious"


def test_files_beside_the_models_outlive_later_runs(tmp_path, sample):
    mine = tmp_path / "thinker" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("precious")
    assert sample("models", tmp_path, "--force").returncode == 0
    assert sample("models", tmp_path, "--seed", 1).returncode == 0
    assert mine.read_text() == "precious"


def test_sample_models_do_not_replace_sample_videos(tmp_path, sample):
    assert sample("videos", tmp_path, *SHORT, "--num-videos", 1).returncode == 0
    assert_one_line_error(sample("models", tmp_path), "holds no sample models")
    assert (tmp_path / "bounce" / "0.mp4").is_file()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path, sample):
    path = tmp_path / "file"
    path.write_text("text")
    assert_one_line_error(sample("models", path), "is a file")


def test_impossible_videos_are_refused_before_anything_is_written(tmp_path, sample):
    out = tmp_path / "videos"
    assert_one_line_error(sample("videos", out, "--width", 63), "63x120 px", "even")
    assert_one_line_error(sample("videos", out, "--seconds", 0), "no frame")
    assert_one_line_error(sample("videos", out, "--num-videos", 0), "--num-videos")
    assert not out.exists()


def test_a_damaged_mark_is_reported_and_never_followed_outside(tmp_path, sample):
    outside = tmp_path / "outside.mp4"
    outside.write_bytes(b"precious")
    out = tmp_path / "videos"
    out.mkdir()
    mark = out / ".thinkjepa-sample.json"
    mark.write_text('{"kind": "videos", "files": ["../outside.mp4"]}')
    assert_one_line_error(sample("videos", out, *SHORT), str(mark), "outside its folder")
    mark.write_text("{")
    assert_one_line_error(sample("videos", out, *SHORT), str(mark), "damaged")
    assert outside.read_bytes() == b"precious"


def test_expand_command_writes_episodes_and_replaces_its_own(tmp_path, sample):
    out = tmp_path / "hands"
    assert sample("expand", out).returncode == 0
    again = sample("expand", out, "--json")
    assert again.returncode == 0, again.stderr
    report = json.loads(again.stdout)
    assert len(report["videos"]) >= 90
    assert (out / report["videos"][0]).with_suffix(".hdf5").is_file()


def test_expand_refuses_a_folder_without_poses(tmp_path, sample):
    assert_one_line_error(sample("expand", tmp_path / "out", "--episodes", tmp_path), "poses.npz")
