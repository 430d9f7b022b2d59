"""Sweeps as a user runs them: queued experiments share the cache, and their runs end in one table."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import forking_commands

from thinkjepa.cache import FeatureCache
from thinkjepa.pipeline.cli.stage import DIGESTS
from thinkjepa.pipeline.project.params import model_place, project_folder, read_params
from thinkjepa.pipeline.project.setup import set_up_project
from thinkjepa.stages.data.videos import CLOCK_GRAIN_NS

PARAMS: dict[str, Any] = {
    "videos": "videos",
    "cache_dir": "features",
    "runs_dir": "runs",
    "clips": {"thinker_frames": 4, "observed_frames": 4, "future_frames": 4, "dense_fps": 10.0},
    "models": {"thinker": "models/thinker", "encoder": "models/encoder"},
    "vllm": {"backend": "transformers"},
    "execution": {"device": "cpu"},
    "split": {"group_by": "video"},
    "train": {"epochs": 2, "batch_size": 4, "depth": 2, "width": 48, "heads": 2, "guidance": "film"},
    "variants": ["thinkjepa"],
    "seeds": [0],
}


def command(folder: Path, *arguments: str) -> str:
    """Run a command of this environment in a folder; its standard output."""
    path = f"{forking_commands()}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        arguments,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def project(tmp_path: Path, tiny_models: Path, make_video: Callable[..., Path]) -> Path:
    """A project as `thinkjepa-init` makes it: five videos and models in it, out of git."""
    folder = tmp_path / "project"
    for number in range(5):
        make_video(folder / "videos" / f"{number}.mp4", num_frames=30 + number, size=(160, 128))
    shutil.copytree(tiny_models, folder / "models")
    set_up_project(folder, changes=PARAMS)
    command(folder, "git", "config", "user.name", "t")
    command(folder, "git", "config", "user.email", "t@localhost")
    command(folder, "git", "add", ".")
    command(folder, "git", "commit", "--quiet", "--message", "start")
    return folder


def check_kept_runs(project: Path, guidances: set[str]) -> None:
    """The runs lie in the project's own folder with their weights, and all read its one cache."""
    runs = sorted((project / "runs").glob("thinkjepa-*"))
    records = [json.loads((run / "run.json").read_text()) for run in runs]
    assert len(runs) == len(guidances)
    assert {record["settings"]["guidance"] for record in records} == guidances
    assert {record["cache"] for record in records} == {str(project / "features")}
    for run, record in zip(runs, records, strict=True):
        assert run.name.startswith("thinkjepa-0-")
        assert (run / record["checkpoint"]["file"]).is_file()
    cache = FeatureCache.open(project / "features")
    assert [len(cache.index(name)) for name in cache.feature_sets] == [5, 5]
    assert len(list((project / "features").glob("thinker-*/index/*.parquet"))) == 1, "extracted once"


def test_an_experiment_in_a_temporary_workspace_uses_the_projects_folders(project: Path) -> None:
    time.sleep(CLOCK_GRAIN_NS / 1e9)  # videos that are this new are not remembered
    command(project, "dvc", "exp", "run", "--temp", "-S", "train.guidance=adaln", "train")
    check_kept_runs(project, {"adaln"})
    assert not (project / "results").exists(), "the workspace was another one, and is gone"
    assert (project / DIGESTS).is_file(), "and the project's videos are known to the next one"


@pytest.mark.soak
def test_queued_experiments_share_the_cache_and_end_in_one_table(project: Path) -> None:
    command(project, "dvc", "exp", "run", "--queue", "-S", "train.guidance=film,adaln")
    command(project, "dvc", "exp", "run", "--run-all", "--jobs", "1")
    check_kept_runs(project, {"film", "adaln"})
    table = json.loads(command(project, "thinkjepa-eval", "--runs", "runs", "--json"))["ranking"]
    assert table["varied"] == ["guidance"]
    assert table["clips"] == "validation"
    assert {row["settings"]["guidance"] for row in table["rows"]} == {"film", "adaln"}
    errors = [row["validation"][table["sorted_by"]] for row in table["rows"]]
    assert errors == sorted(errors)
    assert "## Runs, the best first" in (project / "runs" / "comparison" / "comparison.md").read_text()

    before = {path: path.stat().st_mtime_ns for path in (project / "runs").glob("*/checkpoints/*")}
    command(project, "dvc", "exp", "run", "--temp", "--force", "-S", "train.guidance=film")
    assert {path: path.stat().st_mtime_ns for path in (project / "runs").glob("*/checkpoints/*")} == before, (
        "a run that is there is not trained again"
    )


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_sweep_over_sources_and_shares_trains_each_and_extracts_once(
    project: Path, make_video: Callable[..., Path]
) -> None:
    """`own`, `shuffled` and `history` are three runs of one cache at each share, with the same test clips."""
    sources, shares = ("own", "shuffled", "history"), (0.5, 1.0)
    for number in range(5, 10):  # two videos or more in each split, whose states can be shuffled
        make_video(project / "videos" / f"{number}.mp4", num_frames=30 + number, size=(160, 128))
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["split"] |= {"test_fraction": 0.25, "validation_fraction": 0.25}
    params["models"]["keep_history"] = True
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    command(project, "git", "commit", "--quiet", "--all", "--message", "history")
    command(project, "dvc", "exp", "run", "--temp", "train")
    before = {path: path.stat().st_mtime_ns for path in (project / "features").glob("*/index/*")}
    (kept,) = (project / "runs").glob("*/run.json")
    choices = ("-S", f"train.guidance_source={','.join(sources)}", "-S", "train.share=0.5,1.0")
    command(project, "dvc", "exp", "run", "--queue", *choices)
    command(project, "dvc", "exp", "run", "--run-all", "--jobs", "1")
    runs = [json.loads(path.read_text()) for path in (project / "runs").glob("*/run.json")]
    settings = {(run["settings"]["guidance_source"], run["settings"]["share"]) for run in runs}
    assert len(runs) == len(settings) == len(sources) * len(shares)
    assert settings == {(source, share) for source in sources for share in shares}
    assert kept.is_file(), "the first run is the one of source own and share 1"
    assert {path: path.stat().st_mtime_ns for path in (project / "features").glob("*/index/*")} == before
    table = json.loads(command(project, "thinkjepa-eval", "--runs", "runs", "--json"))["ranking"]
    assert table["varied"] == ["guidance_source", "share"]
    assert len(table["rows"]) == len(runs)


def test_paths_of_an_experiment_are_those_of_its_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = tmp_path / "project" / ".dvc" / "tmp" / "exps" / "tmp1" / "part"
    (workspace.parent / ".dvc").mkdir(parents=True)
    (tmp_path / "project" / "part" / "models" / "thinker").mkdir(parents=True)
    workspace.mkdir()
    (workspace / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "cache_dir": "/elsewhere"}))
    home = tmp_path / "project" / "part"
    assert project_folder(workspace) == home
    monkeypatch.chdir(workspace)
    params = read_params(Path("params.yaml"))
    assert (params.videos, params.runs_dir) == (home / "videos", home / "runs")
    assert params.cache_dir == Path("/elsewhere")
    assert params.models.thinker == str(home / "models" / "thinker")
    assert params.models.encoder == "models/encoder", "no folder there: a name of a model hub"
    assert model_place("", home) == ""

    monkeypatch.chdir(tmp_path / "project")
    assert project_folder(Path()) == Path(), "outside of experiments paths stay as they are written"


def test_settings_that_a_variant_has_no_use_for_make_no_run_of_their_own(tmp_path: Path) -> None:
    train = {**PARAMS["train"], "guidance": "cross", "use_streams": "prompt", "next_step_weight": 1.0}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "train": train}))
    params = read_params(tmp_path / "params.yaml")
    guided, alone, only = (
        params.training(variant=variant, seed=0) for variant in ("thinkjepa", "jepa", "vlm")
    )
    assert (guided.guidance, guided.use_streams, guided.next_step_weight) == ("cross", "prompt", 1.0)
    assert (alone.guidance, alone.use_streams, alone.next_step_weight) == ("film", "auto", 1.0)
    assert (only.guidance, only.use_streams, only.next_step_weight) == ("cross", "prompt", 0.0)
    train["guidance"] = "adaln"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "train": train}))
    pooled = read_params(tmp_path / "params.yaml").training(variant="vlm", seed=0)
    assert pooled.guidance == "film", "only tokens are more than it has"
