"""A project on the hand sample with tiny models: all that `dvc repro` needs on a laptop."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import yaml

from thinkjepa.cache.disk import explained_os_errors
from thinkjepa.pipeline.project_setup import NewProject, set_up_project
from thinkjepa.pipeline.sample.episodes.expand import expand_shipped
from thinkjepa.pipeline.sample.folder import claim_folder, mark_files
from thinkjepa.pipeline.sample.models import write_tiny_models


def set_up_sample_project(folder: Path, *, seed: int, force: bool = False) -> NewProject:
    """Videos with labels in `folder`/videos, UNTRAINED models in `folder`/models, and a project around them.

    Sample files are written again. A folder of a user's own is refused unless `force` is given.
    """
    videos, models = folder / "videos", folder / "models"
    with explained_os_errors("write the sample", folder):
        claim_folder(videos, kind="hands", force=force)
        claim_folder(models, kind="models", force=force)
        mark_files(videos, kind="hands", files=expand_shipped(videos))
        write_tiny_models(models, seed=seed)
        mark_files(models, kind="models", files=[path for path in models.glob("*/*") if path.is_file()])
    settings = files("thinkjepa.pipeline.sample").joinpath("project.yaml").read_text(encoding="utf-8")
    return set_up_project(folder, changes=yaml.safe_load(settings))
