"""A device is named in one way everywhere, and refused in one line where it is not available."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from thinkjepa.stages.device import check_device_name, choose_device
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.settings import ExecutionSettings
from thinkjepa.stages.train.fit.processes import make_accelerator
from thinkjepa.stages.train.settings import TrainSettings


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:1", "mps"])
def test_settings_take_every_device_whatever_this_machine_has(name: str) -> None:
    assert TrainSettings(device=name).device == ExecutionSettings(device=name).device == name


@pytest.mark.parametrize("name", ["gpu", "cuda1", "cuda:", "", "CPU"])
def test_what_is_no_device_is_refused_before_anything_runs(name: str) -> None:
    for refuse in (check_device_name, choose_device):
        with pytest.raises(StageError, match=r"give one of auto, cpu, cuda, cuda:1, mps"):
            refuse(name)
    with pytest.raises(StageError, match="--device"):
        TrainSettings(device=name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_device_that_is_not_available_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=rf"--device '{name}' cannot be used here .*: try auto or cpu"):
        make_accelerator(TrainSettings(device=name), tmp_path)


def test_several_processes_take_a_device_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(StageError, match="several processes"):
        make_accelerator(TrainSettings(device="cpu:0"), tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_runs_on_the_gpu_that_is_named(tmp_path: Path) -> None:
    accelerator = make_accelerator(TrainSettings(device="cuda:0", tracker="none"), tmp_path)
    assert torch.empty(1, device=accelerator.device).device == torch.device("cuda:0")
