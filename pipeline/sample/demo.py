"""The whole pipeline on the hand sample and tiny models, in a folder that a newcomer can look into."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

from thinkjepa.cache import FeatureCache, ThinkJepaError
from thinkjepa.pipeline.sample.episodes.expand import expand_shipped
from thinkjepa.pipeline.sample.models import write_tiny_models
from thinkjepa.stages.json_files import read_json

SHOWN_RUN = "results/runs/thinkjepa-0"


class DemoError(ThinkJepaError):
    """A step of the demo's pipeline failed; its own message stands above."""


def write_project(out: Path, *, seed: int) -> list[Path]:
    """Videos with labels, models, params.yaml, dvc.yaml and a DVC project without git. Returns the files."""
    write_tiny_models(out / "models", seed=seed)
    written = expand_shipped(out / "videos")
    package = files("thinkjepa.pipeline")
    for source, name in (("new_project/pipeline.yaml", "dvc.yaml"), ("sample/demo.yaml", "params.yaml")):
        (out / name).write_text(package.joinpath(source).read_text(encoding="utf-8"), encoding="utf-8")
        written.append(out / name)
    if not (out / ".dvc").exists():
        run_dvc(out, "init", "--no-scm", "--quiet")
        run_dvc(out, "config", "core.analytics", "false")
    return [*written, *(path for path in (out / "models").rglob("*") if path.is_file())]


def draw_pictures(out: Path) -> list[str]:
    """Hands over the frames, features of a test clip, and its predicted future; in `results/pictures`.

    The clip is the last one of the first test video: there the hand is on its way. Returns the commands
    that drew them, as run in `out`.
    """
    test_ids = set(read_json(out / SHOWN_RUN / "split.json")["clips"]["test"])
    test_clips = [
        clip for clip in FeatureCache.open(out / "features").clips.all() if clip.clip_id in test_ids
    ]
    clip = min(test_clips, key=lambda clip: (clip.video, -clip.split_frame))
    pictures = "results/pictures"
    commands = [
        ["thinkjepa-data", "check", "videos", "--plot", f"{pictures}/hands.png"],
        [
            "thinkjepa-cache",
            "show",
            "features",
            clip.clip_id,
            "-o",
            f"{pictures}/features.png",
            "--videos",
            "videos",
        ],
        [
            "thinkjepa-predict",
            "--run",
            SHOWN_RUN,
            "--cache-dir",
            "features",
            "--video",
            f"videos/{clip.video}",
        ],
    ]
    commands[-1] += ["--split-frame", str(clip.split_frame), "-o", f"{pictures}/future.mp4"]
    (out / pictures).mkdir(parents=True, exist_ok=True)
    for command in commands:
        _run(out, *command)
    return [" ".join(command) for command in commands]


def run_dvc(folder: Path, *arguments: str) -> None:
    """Run DVC in a folder. Raises DemoError if it fails."""
    _run(folder, "dvc", *arguments)


def _run(folder: Path, command: str, *arguments: str) -> None:
    """Run a command of this environment in a folder, what it prints on standard error."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"}
    line = [str(Path(sys.executable).parent / command), *arguments]
    done = subprocess.run(line, cwd=folder, env=environment, check=False, stdout=sys.stderr)
    if done.returncode:
        raise DemoError(
            f"{command} {' '.join(arguments)} failed in {str(folder)!r}: its message stands above"
        )
