"""DVC in a clone of this repository, before anything has run there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]


def run(folder: Path, *arguments: str) -> str:
    """Standard output of a command in a folder, which must succeed."""
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A checkout by git, with the changes of the working tree."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout: nothing says which files a clone has")
    folder = tmp_path / "clone"
    for name in run(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0"):
        if name and (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    run(folder, "git", "init", "--quiet")
    return folder


def test_dvc_reads_the_pipeline_of_a_clone(clone: Path) -> None:
    stages = json.loads(run(clone, sys.executable, "-m", "dvc", "status", "--json"))
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    cells = {f"{variant}-{seed}" for variant in params["variants"] for seed in params["seeds"]}
    assert {name for name in stages if name.startswith("train@")} == {f"train@{cell}" for cell in cells}
    assert {"clips", "extract", "report"} <= set(stages)


def test_cleaning_keeps_the_demo_with_its_sweeps(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("demo/runs", "build", ".venv"):
        (tmp_path / name).mkdir(parents=True)
    said = run(tmp_path, "make", "--silent", "distclean", "VENV=.venv")  # not the one that runs this
    assert {path.name for path in tmp_path.iterdir()} == {"Makefile", "demo"}
    assert (tmp_path / "demo" / "runs").is_dir()
    assert "demo/ is kept" in said
