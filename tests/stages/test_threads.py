"""Torch takes the cores that this process may use, and says where others use them too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask.system
import pytest
import torch

from thinkjepa.stages.device import busy_note, chosen_threads, torch_threads, usable_cores
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.settings import TrainSettings

CPU = min(os.sched_getaffinity(0))


def answer(code: str, **environment: str) -> str:
    """Output of a new Python, without the OpenMP settings of the tests."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


def test_a_process_of_one_core_computes_with_one_thread() -> None:
    pinned = f"import os; os.sched_setaffinity(0, {{{CPU}}})\n"
    code = "from thinkjepa.stages.device import *; print(usable_cores(), chosen_threads(0))"
    assert answer(pinned + code) == "1 1\n"
    assert answer(code).split()[0] == str(len(os.sched_getaffinity(0))), "the control"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"/proc/self/cgroup": "0::/job\n", "/sys/fs/cgroup/job/cpu.max": "100000 100000\n"}, 1),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        (
            {
                "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
                "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
    ],
    ids=["v2", "v2, a part of a core", "v2, unlimited", "v1"],
)
def test_a_quota_of_the_control_group_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    """A quota cannot be set without rights over the machine, so the files that hold it are made up."""

    def fake_open(path: str, *arguments: Any) -> Any:
        if path not in files:
            raise FileNotFoundError(path)
        (tmp_path / "file").write_text(files[path])
        return (tmp_path / "file").open(*arguments)

    monkeypatch.setattr(dask.system, "open", fake_open, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(dask.system, "psutil", None)
    assert usable_cores() == expected
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert chosen_threads(0) == min(6, expected)
    assert chosen_threads(0, processes=2) == max(1, expected // 2)
    assert chosen_threads(5, processes=2) == 5


def test_the_number_holds_for_a_while_and_is_put_back() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1) as threads:
        assert threads == torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(StageError, match="--threads -1"):
        TrainSettings(threads=-1)


def test_threads_of_the_command_lines_sleep_while_they_wait() -> None:
    code = "import thinkjepa.pipeline.cli.train, torch; torch.ones(9)"
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in answer(code, OMP_DISPLAY_ENV="TRUE")
    assert "OMP_WAIT_POLICY = 'ACTIVE'" in answer(code, OMP_DISPLAY_ENV="TRUE", OMP_WAIT_POLICY="ACTIVE")


MEASURE = """
import os, subprocess, sys, time
from thinkjepa.stages import device as threads

os.sched_setaffinity(0, {int(sys.argv[1])})
threads.MEASURED_S = 1.0
other = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(int(sys.argv[2]))]
busy, end, notes = threads.BusyMachine(), time.monotonic() + 3, []
while time.monotonic() < end:
    notes.append(busy.note(threads=2))
print([note for note in notes if note])
for process in other:
    process.kill()
"""


@pytest.mark.skipif(not Path("/proc/thread-self/schedstat").exists(), reason="this kernel counts no waits")
def test_a_machine_that_others_use_is_noticed_once() -> None:
    line = [sys.executable, "-c", MEASURE, str(CPU), "3"]
    notes = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    share = int(re.findall(r"(\d+) % of the time", notes)[0])
    assert 40 < share < 100, "four processes share a core"
    assert notes.count("this machine is busy") == 1


def test_a_busy_machine_comes_with_a_remedy() -> None:
    assert busy_note(0.42, threads=2) == (
        "this machine is busy: 42 % of the time went by in waiting for a core; "
        "fewer threads may be faster: --threads 1"
    )
    assert "--threads" not in busy_note(0.42, threads=1)
