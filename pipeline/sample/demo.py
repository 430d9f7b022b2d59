"""The whole pipeline on videos and models made on the spot, in a folder that a newcomer can look into."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

from thinkjepa.cache import ThinkJepaError
from thinkjepa.pipeline.sample.models import write_tiny_models
from thinkjepa.pipeline.sample.videos import write_videos

NUM_VIDEOS, SECONDS, FPS, SIZE_PX = 16, 6.0, 30, (160, 120)


class DemoError(ThinkJepaError):
    """A step of the demo's pipeline failed; its own message stands above."""


def write_project(out: Path, *, seed: int) -> list[Path]:
    """Videos, models, params.yaml, dvc.yaml and a DVC project without git. Returns the files written."""
    write_tiny_models(out / "models", seed=seed)
    written = write_videos(
        out / "videos", num_videos=NUM_VIDEOS, seconds=SECONDS, fps=FPS, size=SIZE_PX, seed=seed
    )
    package = files("thinkjepa.pipeline.sample")
    for source, name in (("dvc.yaml", "dvc.yaml"), ("demo.yaml", "params.yaml")):
        (out / name).write_text(package.joinpath(source).read_text(encoding="utf-8"), encoding="utf-8")
        written.append(out / name)
    if not (out / ".dvc").exists():
        run_dvc(out, "init", "--no-scm", "--quiet")
        run_dvc(out, "config", "core.analytics", "false")
    return [*written, *(path for path in (out / "models").rglob("*") if path.is_file())]


def run_dvc(folder: Path, *arguments: str) -> None:
    """Run DVC in a folder, with this environment's commands on the path. Raises DemoError if it fails."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=folder, env=environment, check=False)
    if done.returncode:
        raise DemoError(f"dvc {' '.join(arguments)} failed in {str(folder)!r}: its message stands above")
