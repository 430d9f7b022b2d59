"""Videos slower than the dense windows, through the installed command."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from thinkjepa.cache import FeatureCache

RunCommand = Callable[..., Any]
MakeVideo = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_video: MakeVideo) -> Path:
    folder = tmp_path_factory.mktemp("rates")
    make_video(folder / "10.mp4", num_frames=40, fps=10)
    make_video(folder / "25.mkv", num_frames=60, fps=25)
    make_video(folder / "29.97.mp4", num_frames=70, fps=Fraction(30000, 1001))
    return folder


def test_repeats_are_told_before_and_after_an_extraction_and_of_its_cache(
    tmp_path: Path, folder: Path, run_extract: RunCommand, run_command: RunCommand
) -> None:
    done = run_extract(folder, tmp_path / "cache", "--dense-fps", 30)
    assert done.status == 0, done.stderr
    repeated = done.json["repeated_frames"]
    assert done.json["dense_fps"] == 30
    assert (repeated["slowest_video"], repeated["slowest_fps"]) == ("10.mp4", 10)
    assert 0 < repeated["clips"] < repeated["of_clips"] == done.json["clips"]  # 29.97 repeats none
    assert "repeat the frame before them" in done.stderr.split("extracting")[0]
    without = done.json["histories"]
    assert (without["clips"], without["of_clips"]) == (3, done.json["clips"])  # the first clip of each video
    assert f"3 of {done.json['clips']} clips" in done.stderr.split("extracting")[0]
    info = run_command("thinkjepa-cache", "info", tmp_path / "cache")
    assert f"in {repeated['clips']} of {repeated['of_clips']} clips: '10.mp4' has 10 frames" in info.stdout
    said = run_command("thinkjepa-cache", "info", tmp_path / "cache", "--json").json["feature_sets"]
    (encoder,) = [item for item in said if item["kind"] == "encoder"]
    assert {**repeated, "warning": encoder["repeated_frames"]["warning"]} == encoder["repeated_frames"]


def test_auto_is_a_number_in_the_cache(
    tmp_path: Path, folder: Path, run_extract: RunCommand, run_command: RunCommand
) -> None:
    done = run_extract(folder, tmp_path / "cache", "--dense-fps", "auto")
    assert done.status == 0, done.stderr
    assert "--dense-fps auto: 10 frames a second, the rate of '10.mp4'; 2 of 3" in done.stderr
    assert (done.json["dense_fps"], done.json["repeated_frames"]["frames"]) == (10, 0)
    encoder = FeatureCache.open(tmp_path / "cache").choose_set("encoder")
    assert encoder.origin["sampling"]["fps"] == 10
    again = run_extract(folder, tmp_path / "cache", "--dense-fps", 10)
    assert (again.json["extracted"], again.json["encoder_set"]) == (0, encoder.name)
    other = run_extract(folder, tmp_path / "cache", "--dense-fps", 5)
    info = run_command("thinkjepa-cache", "info", tmp_path / "cache").stdout
    for name, fps in ((encoder.name, 10.0), (other.json["encoder_set"], 5.0)):
        part = info.split(f"\n{name}: ")[1].split("\n\n")[0]
        assert f"  unlike the other encoder sets: sampling.fps {fps}\n" in part


def test_a_rate_that_is_none_is_refused(tmp_path: Path, folder: Path, run_extract: RunCommand) -> None:
    for wrong in ("fast", "0", "nan"):
        done = run_extract(folder, tmp_path / "cache", "--dense-fps", wrong)
        assert (done.status, done.stderr.count("\n")) == (2, 1)
        assert "--dense-fps" in done.stderr
        assert "auto" in done.stderr
