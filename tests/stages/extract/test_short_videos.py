"""Videos that are whole but too short for a clip: counted and listed, and no failures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thinkjepa.cache import FeatureCache

Command = Callable[..., Any]
NEEDED = "which needs 1.50 s (8 + 8 frames at 10 fps)"


@pytest.fixture
def folder(tmp_path: Path, make_video: Callable[..., Path]) -> Path:
    """One video with clips and three that are shorter than one."""
    folder = tmp_path / "videos"
    make_video(folder / "whole.mp4", num_frames=60)
    for number in range(3):
        make_video(folder / f"short{number}.mp4", num_frames=10 + 3 * number)
    return folder


def test_short_videos_are_listed_and_do_not_count_against_the_limit(
    tmp_path: Path, folder: Path, run_extract: Command, run_command: Command
) -> None:
    outcome = run_extract(folder, tmp_path / "cache", "--max-failures", "5%")
    report = outcome.json
    assert (outcome.status, report["failures"], report["failed_videos"]) == (0, [], 0)
    assert [item["video"] for item in report["too_short"]] == [f"short{number}.mp4" for number in range(3)]
    assert report["too_short"][0]["duration_s"] == pytest.approx(0.3)
    told = " ".join(outcome.stderr.split())
    assert f"3 videos are too short for a clip, {NEEDED}: 'short0.mp4' (0.30 s), 'short1.mp4'" in told
    info = run_command("thinkjepa-cache", "info", tmp_path / "cache", "--json").json
    assert (len(info["too_short"]), info["failures"]) == (3, [])
    text = run_command("thinkjepa-cache", "info", tmp_path / "cache").stdout
    assert "3 videos too short for a clip at the settings of the last run" in text
    assert "'short2.mp4' too short: 0.50 s, a clip needs 1.50 s" in text


def test_broken_videos_alone_count_against_the_limit(
    tmp_path: Path, folder: Path, run_extract: Command
) -> None:
    (folder / "broken.mp4").write_text("no video")
    assert run_extract(folder, tmp_path / "cache", "--max-failures", 1).status == 0
    outcome = run_extract(folder, tmp_path / "cache", "--max-failures", 0)
    assert (outcome.status, outcome.json["failed_videos"], outcome.json["stopped_early"]) == (3, 1, True)


def test_a_folder_of_nothing_but_short_videos_is_refused_in_one_line(
    tmp_path: Path, folder: Path, run_extract: Command
) -> None:
    (folder / "whole.mp4").unlink()
    (folder / "broken.mp4").write_text("no video")
    outcome = run_extract(folder, tmp_path / "cache")
    assert (outcome.status, outcome.stdout) == (2, "")
    assert outcome.stderr.splitlines()[-1] == (
        f"error: nothing to extract: all 3 videos that open are too short for a clip, {NEEDED}; the longest, "
        "'short2.mp4', lasts 0.50 s, and 1 cannot be read: fewer --observed-frames and --future-frames, or a "
        "higher --dense-fps, cut shorter clips"
    )
    assert FeatureCache.open(tmp_path / "cache").feature_sets == {}


def test_a_release_clip_needs_two_frames(
    tmp_path: Path, make_video: Callable[..., Path], run_extract: Command
) -> None:
    make_video(tmp_path / "videos" / "one.mp4", num_frames=1)
    outcome = run_extract(tmp_path / "videos", tmp_path / "cache", "--preset", "release")
    assert outcome.status == 2
    assert "the only video is too short for a clip, which needs 2 frames; " in outcome.stderr


def test_an_estimate_lists_short_videos_apart_from_failures(
    folder: Path, tiny_models: Path, run_command: Command
) -> None:
    small = ("--thinker-frames", 8, "--observed-frames", 8, "--future-frames", 8, "--dense-fps", 10)
    models = ("--thinker", tiny_models / "thinker", "--encoder", tiny_models / "encoder", "--tflops", 1)
    arguments = ("estimate", "--videos", folder, *models, *small)
    outcome = run_command("thinkjepa-cache", *arguments)
    assert outcome.status == 0, outcome.stderr
    assert f"3 videos are too short for a clip, {NEEDED}: " in outcome.stdout
    assert "fails" not in outcome.stdout
    figures = run_command("thinkjepa-cache", *arguments, "--json").json
    assert (figures["failed_videos"], figures["failures"], len(figures["too_short"])) == (0, [], 3)
