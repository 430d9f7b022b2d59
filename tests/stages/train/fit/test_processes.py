"""Two processes that share every batch train the model that one process trains."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import forking_commands
from safetensors.torch import load_file

BuildCache = Callable[..., Path]
STEPS = 50
FLAGS = "--depth 2 --width 24 --heads 2 --fusion-width 16 --head-width 16 --batch-size 7"
CASES = {
    "film": "",
    "hands": "--trajectory-units spread --clips-per-forward 2 --next-step-weight 0.5",
    "cross, dropped, rolled out": "--guidance cross --drop-guidance 0.3 --rollout-windows 2",
    "vlm": "--variant vlm --clip-norm 0.5",
    "vlm, hands": "--variant vlm --guidance cross --trajectory-units spread",
    "poses": "--variant poses --trajectory-units spread",
    "shares without tokens": "--guidance cross --cross-tokens generated --batch-size 2 --clips-per-forward 1",
}

EVERYDAY = ("hands", "cross, dropped, rolled out")


def trained(cache: Path, out: Path, flags: str, *, processes: int) -> tuple[list[dict[str, float]], Path]:
    """The curve of a run by the command, and its folder."""
    command = [str(forking_commands() / "thinkjepa-train")]
    if processes > 1:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *launch, "--no-python", *command]
    line = [
        *command,
        "--cache-dir",
        str(cache),
        "--out",
        str(out),
        "--device",
        "cpu",
        *FLAGS.split(),
        *flags.split(),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(line, capture_output=True, text=True, timeout=240, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    with (out / "curve.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    return rows, out


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(flags, id=name, marks=() if name in EVERYDAY else pytest.mark.soak)
        for name, flags in CASES.items()
    ],
)
def test_two_processes_train_as_one_does(latent_cache: BuildCache, tmp_path: Path, flags: str) -> None:
    """A curve of three or four steps a point, to the 50th step and beyond, and the weights at its end."""
    labelled = 16 if "trajectory" in flags else 0
    cache = latent_cache(windows=2, with_tokens=True, labelled=labelled, out_of_view=labelled // 3)
    epochs = f"{flags} --epochs 17"
    one, first = trained(cache, tmp_path / "one", epochs, processes=1)
    two, second = trained(cache, tmp_path / "two", epochs, processes=2)
    clips = json.loads((first / "metrics.json").read_text())["num_clips"]["train"]
    assert len(one) == len(two) == 17
    assert 17 * -(-clips // 7) >= STEPS
    assert json.loads((second / "run.json").read_text())["processes"] == 2
    for ours, theirs in zip(one, two, strict=True):
        assert ("validation_distance_m" in ours) == bool(labelled)
        for name in {"train_loss", "validation_loss", "validation_distance_m"} & ours.keys():
            assert theirs[name] == pytest.approx(ours[name], rel=1e-5), (ours["epoch"], name)
    assert one[-1]["train_loss"] < one[0]["train_loss"], "the control: something is learned"
    weights = [load_file(next(folder.rglob("*.safetensors"))) for folder in (first, second)]
    for name, values in weights[0].items():
        assert (values - weights[1][name]).abs().max() <= 1e-5 * max(1.0, float(values.abs().max())), name
