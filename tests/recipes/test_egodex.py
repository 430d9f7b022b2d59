"""The recipe for EgoDex: its settings are read, a small folder passes, and commands have right flags."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from commands import run_command
from documents import check_call, command_lines, indented_calls
from egodex_files import WriteEgodex

from thinkjepa.pipeline.project.params import read_params
from thinkjepa.pipeline.sample.videos import write_videos
from thinkjepa.stages.data.partition import SplitRule
from thinkjepa.stages.extract.settings import ModelSettings

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "egodex"


@pytest.fixture(scope="module")
def egodex(tmp_path_factory: pytest.TempPathFactory, write_egodex: WriteEgodex) -> Path:
    """Videos of 4 s in EgoDex's folders, with labels."""
    videos = tmp_path_factory.mktemp("egodex")
    for part, seed in (("part1", 0), ("test", 1)):
        for path in write_videos(videos / part, num_videos=2, seconds=4, size=(64, 48), seed=seed):
            write_egodex(path.with_suffix(".hdf5"), num_frames=120, size=(64, 48))
    return videos


def test_the_settings_are_read_and_divide_as_egodex_does() -> None:
    params = read_params(RECIPE / "params.yaml")
    assert params.split == SplitRule(partition="official", group_by="task")
    defaults = ModelSettings()
    assert params.models == replace(defaults, encoder_fit="letterbox", dtype="bfloat16")
    assert (params.clips.observed_frames, params.clips.future_frames) == (32, 32)
    assert params.train.task == "trajectory"
    assert set(params.variants) == {"thinkjepa", "jepa", "vlm", "poses"}
    assert len(params.seeds) == 5


@pytest.mark.parametrize("call", indented_calls(RECIPE / "README.md", root=ROOT), ids=str)
def test_the_commands_have_right_flags(call) -> None:
    (words,) = command_lines(call.text)
    check_call(words)


def test_the_estimate_of_a_small_folder_counts_two_clips_of_four_videos(
    egodex: Path, tiny_models: Path, tmp_path: Path
) -> None:
    """4 s hold one clip each: its split at 2 s, 1.1 s of future; the next split would be at 6 s."""
    done = run_command(
        "thinkjepa-cache",
        *("estimate", "--params", RECIPE / "params.yaml", "--videos", egodex, "--json"),
        *("--cache-dir", tmp_path / "features", "--tflops", 400, "--device", "cpu"),
        *("--thinker", tiny_models / "thinker", "--encoder", tiny_models / "encoder"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["clips"] == 4
    assert found["hours"] > 0


def test_labels_of_the_small_folder_pass_the_check(egodex: Path) -> None:
    done = run_command("thinkjepa-data", "check", egodex, "--json")
    assert done.returncode == 0, done.stderr
