"""Every benchmark can be imported; in soak each runs at a small size and prints one object of numbers."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
EXTRA = {"cache_read": "litdata"}
"""What a benchmark needs of the extra `bench`."""

RUNS = {
    "cache_write": ("--gigabytes", "0.2", "--repetitions", "1"),
    "data_wait": ("--clips", "16", "--consumer-ms", "1", "--epochs", "2"),
    "extract_overhead": ("--videos", "1", "--rounds", "1", "--few", "10", "--many", "20"),
    "extract_scaling": ("--clips", "5"),
    "index_open": ("--clips", "2000"),
    "read_memory": ("--small", "0.1", "--large", "0.2"),
    "train_start": ("--small", "200", "--large", "400"),
    "train_step": ("--steps", "2", "--depth", "1", "--width", "48", "--rounds", "1"),
}


def test_all_can_be_imported() -> None:
    names = [path.stem for path in FOLDER.glob("*.py")]
    names = [name for name in names if name not in EXTRA or importlib.util.find_spec(EXTRA[name])]
    assert set(RUNS) <= set(names)
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    done = subprocess.run(
        [sys.executable, "-c", code, *names], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.soak
@pytest.mark.parametrize("name", RUNS)
def test_each_prints_one_object_of_numbers(name: str, tmp_path: Path) -> None:
    folder = () if name in ("train_step", "index_open") else ("--folder", str(tmp_path))
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), "--json", *RUNS[name], *folder],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    numbers = [value for value in found.values() if isinstance(value, (int, float))]
    assert len(numbers) > 3
    assert all(map(math.isfinite, numbers))
    assert list(tmp_path.iterdir()) == []
