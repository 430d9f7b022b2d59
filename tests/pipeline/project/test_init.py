"""`thinkjepa-init` as its user runs it, and what DVC makes of the project."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import BIN, forking_commands

from thinkjepa.pipeline.project.params import Folders, Matrix, params_text, read_params
from thinkjepa.pipeline.project.setup import ProjectError, set_up_project
from thinkjepa.stages.extract.settings import ModelSettings
from thinkjepa.stages.train.settings import TrainSettings

ROOT = Path(__file__).parents[3]
FILES = {"params.yaml", "dvc.yaml", "README.md", ".gitignore", ".dvcignore"}
HOSTILE = ["with space", "#1 [a]*? !", "'quoted\" $HOME ${x}", "a: {b}, - c", "ünï\nline"]


def run(
    folder: Path, command: str, *arguments: object, path: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command of this environment, or of `path`, in a folder."""
    path = path or f"{forking_commands()}:{BIN}:{os.environ['PATH']}"
    line = [shutil.which(command, path=path) or command, *map(str, arguments)]
    environment = {**os.environ, "PATH": path}
    return subprocess.run(
        line, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=200
    )


def init(folder: Path, *arguments: object, path: str | None = None) -> dict[str, Any]:
    """The object that `thinkjepa-init --json` prints, run in a folder."""
    done = run(folder, "thinkjepa-init", *arguments, "--json", path=path)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def refused(folder: Path, *arguments: object) -> str:
    done = run(folder, "thinkjepa-init", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    return done.stderr


def test_a_project_starts_with_all_files_and_repositories(tmp_path: Path) -> None:
    made = init(tmp_path, "project")
    folder = tmp_path / "project"
    assert set(made["written"]) == FILES
    assert made["started"] == ["git init", "dvc init"]
    assert made["next"] == ["cd project", "dvc repro"]
    assert "put your videos into 'project/videos'" in made["notes"][0]
    matrix, defaults = Matrix(), TrainSettings()
    assert len(matrix.variants) * len(matrix.seeds) == 15
    assert f"15 runs (variants x seeds: 3 x 5) of {defaults.epochs} epochs" in made["notes"][1]
    assert ModelSettings().thinker in made["notes"][2]
    assert "on a CPU this takes days" in made["notes"][3]
    assert (folder / "dvc.yaml").read_text() == (ROOT / "dvc.yaml").read_text()
    (folder / "features").mkdir()
    (folder / "features" / "large").touch()
    untracked = run(folder, "git", "status", "--porcelain", "--untracked-files=all")
    assert "features" not in untracked.stdout
    assert "params.yaml" in untracked.stdout
    status = run(folder, "dvc", "status", "--json")
    assert "train@vlm-4" in json.loads(status.stdout), status.stderr


def test_a_project_says_how_many_videos_it_finds(tmp_path: Path) -> None:
    videos = tmp_path / "clips"
    videos.mkdir()
    assert "no videos under" in init(tmp_path, "empty", "--videos", "clips")["notes"][0]
    (videos / "inner").mkdir()
    for name in ("a.mp4", "inner/b.MOV", "notes.txt"):
        (videos / name).touch()
    assert init(tmp_path, "project", "--videos", "clips")["notes"][0].startswith("2 videos (.mp4, ")
    assert f"of 3 files under {str(videos)!r}" in init(tmp_path, "other", "--videos", "clips")["notes"][0]


def test_nothing_is_overwritten_and_what_differs_is_named(tmp_path: Path) -> None:
    init(tmp_path, "project")
    folder = tmp_path / "project"
    again = init(tmp_path, "project")
    assert (again["written"], again["started"], again["kept"]) == ([], [], {})
    for name in ("params.yaml", "dvc.yaml", "README.md", ".gitignore"):
        (folder / name).write_text("mine")
    (tmp_path / "clips").mkdir()
    kept = init(tmp_path, "project", "--videos", "clips")["kept"]
    assert {name: (folder / name).read_text() for name in kept} == dict.fromkeys(kept, "mine")
    assert set(kept) == FILES - {".dvcignore"}
    assert str(tmp_path / "clips") in kept["params.yaml"]
    assert "/features" in kept[".gitignore"]
    (folder / "dvc.yaml").unlink()
    assert init(tmp_path, "project")["written"] == ["dvc.yaml"]


@pytest.mark.parametrize("name", HOSTILE)
def test_folders_of_any_name_are_found_again(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The videos inside the project, under a name that YAML, git and shells all would like to interpret."""
    videos = tmp_path / name / name
    videos.mkdir(parents=True)
    init(tmp_path, name, "--videos", f"{name}/{name}")
    monkeypatch.chdir(tmp_path / name)
    assert yaml.safe_load(Path("params.yaml").read_text())["videos"] == name
    assert read_params(Path("params.yaml")).videos.resolve() == videos
    if "\n" not in name:
        (videos / "a.mp4").touch()
        listed = run(Path(), "git", "status", "--porcelain")
        assert "mp4" not in listed.stdout + listed.stderr
        assert name not in listed.stdout


def test_dvc_reads_a_project_whose_videos_have_a_hostile_name(tmp_path: Path) -> None:
    videos = tmp_path / HOSTILE[2]
    videos.mkdir()
    init(tmp_path, "project", "--videos", videos)
    assert yaml.safe_load((tmp_path / "project" / "params.yaml").read_text())["videos"] == str(videos)
    status = run(tmp_path / "project", "dvc", "status", "--json")
    assert "clips" in json.loads(status.stdout), status.stderr


def test_a_folder_of_a_git_repository_becomes_a_project_of_its_own(tmp_path: Path) -> None:
    run(tmp_path, "git", "init", "--quiet")
    assert init(tmp_path, "inside")["started"] == ["dvc init --subdir"]
    (tmp_path / ".gitignore").write_text("/ignored/\n")
    assert init(tmp_path, "ignored")["started"] == ["git init", "dvc init"]
    assert init(tmp_path, ".")["started"] == ["dvc init"]


def test_without_git_it_is_a_project_without_version_control(tmp_path: Path) -> None:
    made = init(tmp_path, "project", path=str(BIN))
    assert made["started"] == ["dvc init --no-scm"]
    assert any("git is not installed" in note for note in made["notes"])
    assert "clips" in json.loads(run(tmp_path / "project", "dvc", "status", "--json", path=str(BIN)).stdout)


def test_what_cannot_be_a_project_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "videos").mkdir()
    assert "File exists" in refused(tmp_path, "file")
    assert "a part of the path is a file" in refused(tmp_path, "file", "--sample")
    assert "'nowhere' is no folder" in refused(tmp_path, "project", "--videos", "nowhere")
    assert "would be inside its videos folder" in refused(tmp_path, "videos/project", "--videos", "videos")
    assert "leave --videos out" in refused(tmp_path, "project", "--videos", "videos", "--sample")
    assert not (tmp_path / "project").exists()


def test_a_folder_of_videos_is_no_project(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    with pytest.raises(ProjectError, match=r"itself holds videos, e.g. 'a.mp4': .*--videos"):
        set_up_project(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_sample_project_has_videos_and_models_and_keeps_edited_settings(tmp_path: Path) -> None:
    made = init(tmp_path, "project", "--sample")
    folder = tmp_path / "project"
    assert set(made["written"]) == FILES
    params = yaml.safe_load((folder / "params.yaml").read_text())
    assert params["train"]["epochs"] == 30
    assert made["notes"] == [
        f"96 videos (.mp4, .mkv, .webm, .avi, .mov) of 196 files under {str(Path('project/videos'))!r}",
        "training: 3 runs (variants x seeds: 3 x 1) of 30 epochs, depth 4",
    ], "nothing about a hub"
    for place in (params["models"]["thinker"], params["models"]["encoder"]):
        assert (folder / place / "config.json").is_file()
    assert len(list((folder / params["videos"]).rglob("*.mp4"))) == 96
    edited = (folder / "params.yaml").read_text().replace("epochs: 30", "epochs: 2")
    (folder / "params.yaml").write_text(edited)
    assert set(init(tmp_path, "project", "--sample")["kept"]) == {"params.yaml"}
    assert (folder / "params.yaml").read_text() == edited
    shutil.rmtree(folder / "videos")
    (folder / "videos").mkdir()
    (folder / "videos" / "mine.mp4").touch()
    assert "holds no sample hands" in refused(tmp_path, "project", "--sample")


def test_the_repositorys_params_are_those_of_a_new_project() -> None:
    assert (ROOT / "params.yaml").read_text() == params_text(), "write it again: make params"


def test_every_key_of_params_has_its_meaning_above() -> None:
    lines = params_text().splitlines()
    keys = {index: line for index, line in enumerate(lines) if line and not line.lstrip().startswith("#")}
    assert len(keys) > 80
    assert [line for index, line in keys.items() if not lines[index - 1].lstrip().startswith("# ")] == []
    assert max(map(len, lines)) <= 100


def test_params_of_a_new_project_are_the_defaults_but_for_the_failures(tmp_path: Path) -> None:
    (tmp_path / "whole.yaml").write_text(params_text())
    whole, folders, matrix = read_params(tmp_path / "whole.yaml"), Folders(), Matrix()
    short = {"videos": folders.videos, "cache_dir": folders.cache_dir, "runs_dir": folders.runs_dir}
    short |= {"variants": list(matrix.variants), "seeds": list(matrix.seeds)}
    short |= {"execution": {"max_failures": "5%"}}
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(short))
    assert whole == read_params(tmp_path / "short.yaml")


def test_every_setting_of_the_sample_project_is_in_its_params() -> None:
    changes = yaml.safe_load((ROOT / "pipeline" / "sample" / "project.yaml").read_text())
    made = yaml.safe_load(params_text(changes))
    for name, value in changes.items():
        assert made[name] == (made[name] | value if isinstance(value, dict) else value)
