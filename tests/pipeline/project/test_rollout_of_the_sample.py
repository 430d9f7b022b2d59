"""Rollouts of every variant on the sample of a hand, by the installed commands alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from thinkjepa.pipeline.sample.expand import expand_shipped

NUM_TASKS, VIDEOS_A_TASK = 8, 2
CLIPS = "--thinker-frames 4 --observed-frames 8 --future-frames 8 --future-windows 8 --dense-fps 20"
SIZE = (
    "--epochs 2 --batch-size 4 --depth 2 --width 24 --heads 2 --fusion-width 16 --head-width 16 --device cpu"
)
VARIANTS = {
    "film": "--variant thinkjepa --rollout-windows 2",
    "adaln": "--variant thinkjepa --guidance adaln",
    "cross": "--variant thinkjepa --guidance cross",
    "jepa": "--variant jepa",
    "vlm": "--variant vlm",
}


def command(name: str, *arguments: object) -> str:
    line = [str(Path(sys.executable).parent / name), *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.soak
def test_every_variant_is_rolled_out_to_4_8_16_and_32_steps(tmp_path: Path, tiny_models: Path) -> None:
    expand_shipped(tmp_path / "all")
    for task in sorted(path for path in (tmp_path / "all").iterdir() if path.is_dir())[:NUM_TASKS]:
        for video in sorted(task.glob("*.mp4"))[:VIDEOS_A_TASK]:
            (tmp_path / "videos" / task.name).mkdir(parents=True, exist_ok=True)
            for file in (video, video.with_suffix(".hdf5")):
                shutil.move(file, tmp_path / "videos" / task.name / file.name)
    models = ("--thinker", tiny_models / "thinker", "--encoder", tiny_models / "encoder")
    places = ("--videos", tmp_path / "videos", "--cache-dir", tmp_path / "cache")
    command("thinkjepa-cache", "extract", *places, *models, *CLIPS.split())
    for name, flags in VARIANTS.items():
        out = ("--cache-dir", tmp_path / "cache", "--out", tmp_path / "runs" / name)
        command("thinkjepa-train", *out, *SIZE.split(), *flags.split())
    result = json.loads(
        command("thinkjepa-eval", "--runs", tmp_path / "runs", "--rollout", "4,8,16,32", "--json")
    )
    assert set(result["runs"]) == set(VARIANTS)
    for rolled in result["runs"].values():
        assert [item["steps"] for item in rolled["horizons"]] == [4, 8, 16, 32]
        assert rolled["horizons"][-1]["seconds"] == pytest.approx(3.2, abs=0.2)
        for item in rolled["horizons"]:
            assert {"model", "latent_persistence", "constant_pose", "constant_velocity"} <= set(
                item["trajectory"]
            )
            assert item["trajectory"]["model"]["ade_m"]["mean"] > 0
