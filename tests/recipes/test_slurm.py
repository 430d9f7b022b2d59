"""Recipes for clusters and containers: right flags, files that exist, and a job that is out of time."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from documents import check_call

ROOT = Path(__file__).parents[2]
ONE_GPU = ROOT / "recipes" / "slurm" / "one_gpu.sbatch"

SRUN = '#!/bin/bash\nprintf "%q " "$@" >> "$CALLS"\necho >> "$CALLS"\n'
SLOW_SRUN = SRUN + "kill -USR1 $PPID\nexec sleep 60\n"
SCONTROL = '#!/bin/bash\necho scontrol "$@" >> "$CALLS"\n'


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An environment in which srun and scontrol only note how they were called."""
    for name, script in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), "SLURM_JOB_ID": "7"}
    return {**os.environ, **own, "VIDEOS": "/data/my videos", "OUT": "/scratch/out"}


def submit(environment: dict[str, str]) -> tuple[int, list[list[str]]]:
    done = subprocess.run(["bash", ONE_GPU], env=environment, capture_output=True, timeout=60, check=False)
    calls = Path(environment["CALLS"])
    return done.returncode, [
        shlex.split(line) for line in calls.read_text().splitlines()
    ] if calls.exists() else []


def test_the_slurm_job_extracts_then_trains_and_evaluates_each_variant(slurm: dict[str, str]) -> None:
    status, calls = submit({**slurm, "SEEDS": "0 1"})
    assert status == 0
    for call in calls:
        check_call(call)
    steps = ["thinkjepa-cache", *["thinkjepa-train", "thinkjepa-eval"] * 4, "thinkjepa-eval"]
    assert [call[0] for call in calls] == steps
    assert calls[0][calls[0].index("--videos") + 1] == "/data/my videos"
    outs = [call[call.index("--out") + 1] for call in calls if "--out" in call]
    assert outs == [
        f"/scratch/out/runs/{variant}-{seed}" for variant in ("thinkjepa", "jepa") for seed in (0, 1)
    ]


def test_every_step_has_the_cores_of_the_job(slurm: dict[str, str], tmp_path: Path) -> None:
    """As srun reads their number, which it does not take from the job."""
    (tmp_path / "srun").write_text('#!/bin/bash\necho "$1" "$SRUN_CPUS_PER_TASK" >> "$CALLS"\n')
    status, calls = submit({**slurm, "SLURM_CPUS_PER_TASK": "8"})
    assert status == 0
    assert calls[0] == ["thinkjepa-cache", "8"]
    assert {cores for _, cores in calls} == {"8"}


def test_a_slurm_job_out_of_time_goes_back_into_the_queue(slurm: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "srun").write_text(SLOW_SRUN)
    status, calls = submit(slurm)
    assert status == 0
    assert [call[0] for call in calls] == ["thinkjepa-cache", "scontrol"]
    assert calls[1] == ["scontrol", "requeue", "7"]


def test_a_slurm_job_without_folders_is_refused(slurm: dict[str, str]) -> None:
    status, calls = submit({name: value for name, value in slurm.items() if name != "VIDEOS"})
    assert (status, calls) == (1, [])


def test_the_container_is_built_from_files_that_exist() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    copied = {
        word for line in re.findall(r"^COPY (.*)$", dockerfile, re.MULTILINE) for word in line.split()[:-1]
    }
    needed = {"pyproject.toml", "setup.py", "README.md", "LICENSE", "package", "cache", "stages", "pipeline"}
    assert needed <= copied
    assert [name for name in copied if not (ROOT / name).exists()] == []
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied <= kept
