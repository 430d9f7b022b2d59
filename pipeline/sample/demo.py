"""The sample project: what `dvc repro` needs on a laptop, and pictures of what came out."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import yaml

from thinkjepa.cache import ClipRow, FeatureCache, ThinkJepaError
from thinkjepa.cache.disk.files import explained_os_errors
from thinkjepa.pipeline.project.params import read_params
from thinkjepa.pipeline.project.setup import NewProject, set_up_project
from thinkjepa.pipeline.sample.expand import expand_shipped
from thinkjepa.pipeline.sample.folder import claim_folder, write_manifest
from thinkjepa.pipeline.sample.models import write_tiny_models
from thinkjepa.stages.json_files import read_json


def set_up_sample_project(folder: Path, *, seed: int, force: bool = False) -> NewProject:
    """Videos with labels in `folder`/videos, UNTRAINED models in `folder`/models, and a project around them.

    Sample files are written again. A folder of a user's own is refused unless `force` is given.
    """
    videos, models = folder / "videos", folder / "models"
    with explained_os_errors("write the sample", folder):
        claim_folder(videos, kind="hands", force=force)
        claim_folder(models, kind="models", force=force)
        write_manifest(videos, kind="hands", files=expand_shipped(videos))
        write_tiny_models(models, seed=seed)
        write_manifest(models, kind="models", files=[path for path in models.glob("*/*") if path.is_file()])
    settings = files("thinkjepa.pipeline.sample").joinpath("project.yaml").read_text(encoding="utf-8")
    return set_up_project(folder, changes=yaml.safe_load(settings))


class DemoError(ThinkJepaError):
    """A command that draws the demo's pictures failed; its own message is above."""


def draw_pictures(out: Path) -> list[str]:
    """Hands over the frames, features of a test clip, and its predicted future; in `results/pictures`.

    The page of the comparison comes last, in `results/report`. The run is the first of the matrix in
    `out`/params.yaml. The clip is the last one of the first test video: there the hand is on its way. Returns
    the commands that drew them, as run in `out`.
    """
    params = read_params(out / "params.yaml")
    videos, features = (os.path.relpath(folder, out) for folder in (params.videos, params.cache_dir))
    pictures = "results/pictures"
    commands = [["thinkjepa-data", "check", videos, "--plot", f"{pictures}/hands.png"]]
    if params.variants and params.seeds:
        run = f"results/runs/{params.variants[0]}-{params.seeds[0]}"
        clip = _shown_clip(out / run, params.cache_dir)
        show = ["thinkjepa-cache", "show", features, clip.clip_id, "-o", f"{pictures}/features.png"]
        predict = ["thinkjepa-predict", "--run", run, "--cache-dir", features]
        predict += ["--video", f"{videos}/{clip.video}", "--split-frame", str(clip.split_frame)]
        commands += [[*show, "--videos", videos], [*predict, "-o", f"{pictures}/future.mp4"]]
        report = ["--out", "results/report", "--report", "results/report", "--videos", videos]
        commands.append(["thinkjepa-eval", "--runs", "results/runs", "--cache-dir", features, *report])
    (out / pictures).mkdir(parents=True, exist_ok=True)
    for command in commands:
        _run(out, *command)
    return [shlex.join(command) for command in commands]


def _shown_clip(run: Path, cache_dir: Path) -> ClipRow:
    test_ids = set(read_json(run / "split.json")["clips"]["test"])
    clips = [clip for clip in FeatureCache.open(cache_dir).clips.all() if clip.clip_id in test_ids]
    return min(clips, key=lambda clip: (clip.video, -clip.split_frame))


def _run(folder: Path, command: str, *arguments: str) -> None:
    """Run a command of this environment in a folder, what it prints on standard error."""
    line = [str(Path(sys.executable).parent / command), *arguments]
    done = subprocess.run(line, cwd=folder, check=False, stdout=sys.stderr)
    if done.returncode:
        raise DemoError(f"{command} {' '.join(arguments)} failed in {str(folder)!r}: its message is above")
