"""Trackers get a run's settings and curves, and one that cannot be started is reported."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.fit import tracking
from thinkjepa.stages.train.run import train
from thinkjepa.stages.train.settings import TrainSettings

BuildCache = Callable[..., Path]
TINY = TrainSettings(
    epochs=2, batch_size=4, depth=1, width=12, heads=2, fusion_width=8, device="cpu", save_every_s=0.0
)


class StopError(Exception):
    """Stands for a killed process."""


def run(cache: Path, out: Path, *, progress: Callable[..., None] = lambda **_: None, **changed: Any) -> None:
    train(cache, out, replace(TINY, **changed), progress=progress)


def curves(out: Path) -> dict[str, dict[int, float]]:
    """Curves that TensorBoard shows of a run: by name, the value at each step."""
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return {
        name: {item.step: item.value for item in events.Scalars(name)} for name in events.Tags()["scalars"]
    }


def test_tensorboard_has_every_step_and_epoch_of_a_run_that_was_interrupted(
    latent_cache: BuildCache, tmp_path: Path
) -> None:
    seen: dict[int, float] = {}

    def stop_once(*, epoch: int, step: int, total_steps: int, loss: float) -> None:
        seen[(epoch - 1) * total_steps + step] = loss
        if len(seen) == 4:
            seen[0] = 0.0
            raise StopError

    cache = latent_cache()
    with pytest.raises(StopError):
        run(cache, tmp_path / "run", progress=stop_once)
    run(cache, tmp_path / "run", progress=stop_once)
    found = curves(tmp_path / "run")
    del seen[0]
    assert found["train/loss"] == pytest.approx(seen)
    assert set(found["train/loss"]) == set(range(1, len(seen) + 1))
    with (tmp_path / "run" / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    validation = [float(row["validation_loss"]) for row in rows]
    assert list(found["epoch/validation_loss"].values()) == pytest.approx(validation)
    assert max(found["epoch/validation_loss"]) == len(seen)
    for rate in found["learning_rate/forecaster"].values():
        assert rate == pytest.approx(TINY.learning_rate)


def test_without_a_tracker_there_is_no_trace_of_one(latent_cache: BuildCache, tmp_path: Path) -> None:
    run(latent_cache(), tmp_path / "run", tracker="none", epochs=1)
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_a_tracker_that_is_unknown_missing_or_broken_is_one_line(
    latent_cache: BuildCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = latent_cache()
    with pytest.raises(StageError, match=r"--tracker 'paper': give none or one of .*tensorboard"):
        run(cache, tmp_path / "run", tracker="paper")
    with pytest.raises(StageError, match=r"--tracker 'wandb' is not installed: pip install wandb"):
        run(cache, tmp_path / "run", tracker="wandb")
    (tmp_path / "file").write_text("in the way of RUN/tensorboard")
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "tensorboard").write_text("in the way")
    with pytest.raises(StageError, match="--tracker 'tensorboard' cannot be started"):
        run(cache, tmp_path / "run")
    assert tracking.chosen_tracker("none") is None
