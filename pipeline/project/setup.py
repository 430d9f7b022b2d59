"""A new project: params.yaml, the pipeline and a repository around them. What exists is never overwritten."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from thinkjepa.cache import ThinkJepaError
from thinkjepa.cache.disk.files import explained_os_errors
from thinkjepa.pipeline.cli.console import counted
from thinkjepa.pipeline.project.params import Params, params_text, read_params
from thinkjepa.stages.data.videos import SUFFIXES, find_videos
from thinkjepa.stages.errors import StageError

IGNORE_FILES = (".gitignore", ".dvcignore")

OFFLINE_PAGE = "plots.html"

CONFIG: Mapping[str, Mapping[str, str]] = {
    "core": {"analytics": "false", "check_update": "false"},
    "plots": {"html_template": OFFLINE_PAGE},
}
"""DVC's settings of a project: nothing is sent or loaded over the network."""


class ProjectError(ThinkJepaError):
    """No project can be made in this folder, for the reason that the message names."""


@dataclass(frozen=True, slots=True)
class NewProject:
    """Files written and kept in a project's folder, and what its user should know."""

    folder: Path
    written: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    """Files that are not what would be written, each with what its user can do."""
    started: list[str] = field(default_factory=list)
    """Commands that started repositories."""
    notes: list[str] = field(default_factory=list)
    """Remarks for the user."""


def set_up_project(
    folder: Path, *, videos: Path | None = None, changes: Mapping[str, Any] | None = None
) -> NewProject:
    """Write a project's files and start a git and a DVC repository where there is none.

    `videos` is a folder as seen from the current one, None for `folder`/videos. `changes` are settings that
    differ from the defaults, by section. What exists is never overwritten. Raises ProjectError.
    """
    if videos is None and not (folder / "videos").exists() and (names := _videos_in(folder)):
        raise ProjectError(
            f"{str(folder)!r} itself holds videos, e.g. {names[0]!r}: give a new folder for the project and "
            f"--videos {shlex.quote(str(folder))}"
        )
    folder_name = "videos" if videos is None else _videos_folder_name(videos, folder)
    project = NewProject(folder)
    with explained_os_errors("write the project", folder):
        folder.mkdir(parents=True, exist_ok=True)
        _write(project, "params.yaml", params_text({**(changes or {}), "videos": folder_name}))
        _write(project, "dvc.yaml", _shipped("pipeline.yaml"))
        _write(project, "README.md", _shipped("README.md"))
        for name in IGNORE_FILES:
            _write(project, name, _shipped(name.removeprefix(".")) + _ignored(folder_name))
    if videos and "params.yaml" in project.kept:
        project.kept["params.yaml"] += f", or set its key videos to {folder_name!r}"
    if "params.yaml" in project.written:
        params = read_params(folder / "params.yaml")
        project.notes.extend([*_described_videos(params.videos), *_workload(params)])
    _start_repositories(project)
    return project


def run_dvc(folder: Path, *arguments: str) -> None:
    """Run DVC in a folder, its output on standard error. Raises ProjectError if it fails."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"}
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, check=False, stdout=sys.stderr)
    if done.returncode:
        raise ProjectError(f"dvc {' '.join(arguments)} failed in {str(folder)!r}: its message is above")


def _videos_in(folder: Path) -> list[str]:
    """Names of the videos that lie right in a folder, sorted."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def _videos_folder_name(videos: Path, folder: Path) -> str:
    """The videos folder as params.yaml names it: relative where it is inside the project, else absolute."""
    if not videos.is_dir():
        raise ProjectError(f"--videos {str(videos)!r} is no folder: give the one that holds the videos")
    found, project = videos.resolve(), folder.resolve()
    if project.is_relative_to(found):
        raise ProjectError(
            f"the project {str(folder)!r} would be inside its videos folder {str(videos)!r}, and take the "
            "videos that it draws for new ones: choose a folder outside of it"
        )
    folder_name = found.relative_to(project).as_posix() if found.is_relative_to(project) else str(found)
    try:
        folder_name.encode()
    except UnicodeEncodeError as error:
        raise ProjectError(
            f"the name of the folder {folder_name!r} is not UTF-8, so no YAML file can hold it: rename it, "
            "or link to it by another name"
        ) from error
    return folder_name


def _described_videos(folder: Path) -> list[str]:
    """The number of videos, so that a wrong folder is noticed before anything runs."""
    if not folder.is_dir():
        return [f"put your videos into {str(folder)!r}, or name their folder in params.yaml"]
    try:
        found = len(find_videos(folder))
    except StageError as error:
        return [str(error)]
    files = sum(path.is_file() for path in folder.rglob("*"))
    return [
        f"{counted(found, 'video')} ({', '.join(SUFFIXES)}) of {counted(files, 'file')} under {str(folder)!r}"
    ]


def _workload(params: Params) -> list[str]:
    """The runs of `dvc repro` and, where the frozen models come from the hub, a smaller start."""
    variants, seeds = len(params.variants), len(params.seeds)
    models, train = params.models, params.train
    lines = [
        f"training: {counted(variants * seeds, 'run')} (variants x seeds: {variants} x {seeds}) "
        f"of {counted(train.epochs, 'epoch')}, depth {train.depth}"
    ]
    if not Path(models.thinker).is_dir():
        lines += [
            f"models: {models.thinker} and {models.encoder} of the Hugging Face hub; local folders: keys "
            "models.thinker and models.encoder",
            "on a CPU this takes days: try thinkjepa-init DIR --sample first, or lower train.depth, "
            "train.epochs and seeds in params.yaml",
        ]
    return lines


def _shipped(name: str) -> str:
    return files("thinkjepa.pipeline.project").joinpath("template", name).read_text(encoding="utf-8")


def _ignored(videos: str) -> str:
    """The line of an ignore file for a videos folder of the project with another name, if it has one."""
    if videos == "videos" or Path(videos).is_absolute():
        return ""
    return "/" + re.sub(r"([\\*?\[\]!# ])", r"\\\1", videos) + "\n"


def _write(project: NewProject, name: str, text: str) -> None:
    """Write a file, or keep the one that is there and say what to do if it is another one."""
    path = project.folder / name
    if not os.path.lexists(path):
        path.write_text(text, encoding="utf-8")
        project.written.append(name)
        return
    current = path.read_text(encoding="utf-8", errors="replace")
    if name in IGNORE_FILES:
        lines = [line for line in text.splitlines() if line.startswith("/")]
        if missing := [line for line in lines if line not in current.splitlines()]:
            project.kept[name] = f"add to it the lines {', '.join(missing)}"
    elif current != text:
        project.kept[name] = "it differs from a new one; for a new one, move it away and run this again"


def _start_repositories(project: NewProject) -> None:
    """`git init` and `dvc init` where they are missing; without git, DVC works without version control."""
    folder = project.folder
    has_git, has_dvc = shutil.which("git") is not None, (folder / ".dvc").is_dir()
    if has_git and not _in_work_tree(folder):
        _git(folder, "init", "--quiet", check=True)
        project.started.append("git init")
    if has_dvc:
        return
    if not has_git:
        options = ["--no-scm"]
        project.notes.append("git is not installed: this DVC project has no history and no experiments")
    else:
        options = [] if (folder / ".git").exists() else ["--subdir"]
    run_dvc(folder, "init", "--quiet", *options)
    project.started.append(" ".join(["dvc init", *options]))
    (folder / ".dvc" / OFFLINE_PAGE).write_text(_shipped(OFFLINE_PAGE), encoding="utf-8")
    _configure(folder / ".dvc" / "config")


def _in_work_tree(folder: Path) -> bool:
    """True if git keeps the folder, or would: one that an outer repository ignores is none of it."""
    inside = _git(folder, "rev-parse", "--is-inside-work-tree")
    return inside and not _git(folder, "check-ignore", "--quiet", ".")


def _git(folder: Path, *arguments: str, check: bool = False) -> bool:
    """True if a git command succeeds in a folder. With `check`, raises ProjectError if it does not."""
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise ProjectError(f"git {' '.join(arguments)} failed in {str(folder)!r}: {done.stderr.strip()}")
    return done.returncode == 0


def _configure(path: Path) -> None:
    config = configparser.ConfigParser()
    config.read(path, encoding="utf-8")
    for section, values in CONFIG.items():
        if not config.has_section(section):
            config.add_section(section)
        config[section].update(values)
    with path.open("w", encoding="utf-8") as file:
        config.write(file)
