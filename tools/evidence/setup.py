"""The evidence's project: its settings, and the frozen models, trained ones and an untrained thinker."""

from __future__ import annotations

import shutil
from importlib.resources import as_file, files
from pathlib import Path

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from evidence.plan import TaskName
from evidence.tasks import TASKS
from thinkjepa.pipeline.project.setup import run_dvc

HERE = Path(__file__).parent / "project"

PARAMS = "params.yaml"

WEIGHTS = "model.safetensors"

SEED = 0


def set_up(project: Path, *, task: TaskName = "hands") -> None:
    """Write what `project` lacks; settings that are there are kept."""
    project.mkdir(parents=True, exist_ok=True)
    for source in (HERE / "dvc.yaml", TASKS[task].params):
        if not (project / source.name).exists():
            shutil.copyfile(source, project / source.name)
    trained, untrained = project / "models" / "trained", project / "models" / "untrained" / "thinker"
    if not trained.exists():
        with as_file(files("thinkjepa.pipeline.sample") / "trained") as shipped:
            shutil.copytree(shipped, trained)
    if not (untrained / WEIGHTS).is_file():
        write_untrained(trained / "thinker", untrained)
    if not (project / ".dvc").is_dir():
        run_dvc(project, "init", "--quiet", "--no-scm")


def write_untrained(trained: Path, out: Path) -> None:
    """Write a thinker of the same files and shapes, with random weights, as a control."""
    shutil.copytree(trained, out, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_pretrained(trained))
    model.half().save_pretrained(out)
