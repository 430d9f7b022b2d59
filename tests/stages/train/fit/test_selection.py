"""The epoch whose weights are kept: by which figure it is chosen, and where that is written."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from thinkjepa.cache import FeatureCache
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.data.features import Batch, Features, choose_features
from thinkjepa.stages.train.fit.loop import Trainer, gradient_norms, validation_losses
from thinkjepa.stages.train.fit.losses import DISTANCE_M, JOINT_PART, LATENT_PART, WITH_DISTANCE
from thinkjepa.stages.train.fit.optimizer import make_optimizer
from thinkjepa.stages.train.fit.state import SELECTED, EpochLosses, FitState
from thinkjepa.stages.train.model.forecast import build_model
from thinkjepa.stages.train.plan import model_shape as shape_of
from thinkjepa.stages.train.run import train
from thinkjepa.stages.train.settings import TrainSettings

BuildCache = Callable[..., Path]
TINY = TrainSettings(
    variant="jepa", epochs=4, batch_size=4, depth=1, width=24, heads=2, head_width=16, device="cpu"
)
CURVE = (  # each figure is lowest after another epoch
    EpochLosses(1, 1.0, 0.3, 0.9, 0.2),
    EpochLosses(2, 1.0, 0.4, 0.7, 0.3),
    EpochLosses(3, 1.0, 0.5, 0.8, 0.1),
)


def run(cache: Path, out: Path, **changed: Any) -> dict[str, Any]:
    return train(cache, out, replace(TINY, **changed))


@pytest.mark.parametrize(("select_by", "epoch"), [("loss", 1), ("latents", 2), ("joints", 3)])
def test_the_kept_weights_are_those_of_the_epoch_that_is_best_by_the_figure(
    select_by: str, epoch: int
) -> None:
    model, state = torch.nn.Linear(1, 1), FitState(select_by=select_by)
    for losses in CURVE:
        torch.nn.init.constant_(model.weight, losses.epoch)
        state = state.after(losses, model)
    assert state.best.epoch == epoch
    assert state.best_weights["weight"].item() == epoch


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [("auto", "joints"), ("joints", "joints"), ("latents", "latents"), ("loss", "loss")],
)
def test_a_run_keeps_and_names_the_best_epoch(
    latent_cache: BuildCache, tmp_path: Path, asked: str, chosen: str
) -> None:
    metrics = run(latent_cache(labelled=16), tmp_path / "run", select_by=asked, learning_rate=3e-2)
    with (tmp_path / "run" / "curve.csv").open() as file:
        curve = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    best = min(curve, key=lambda row: (row[SELECTED[chosen]], row["validation_latent_error"]))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    value = best[SELECTED[chosen]]
    assert record["selection"] == {"by": chosen, "value": value, "epoch": best["epoch"]}
    assert record["settings"]["select_by"] == metrics["select_by"] == chosen
    assert metrics["best_epoch"] == best["epoch"]
    assert metrics[SELECTED[chosen]] == value
    assert run(latent_cache(labelled=16), tmp_path / "run", select_by=asked, learning_rate=3e-2) == metrics


def test_without_joints_the_latents_choose(latent_cache: BuildCache, tmp_path: Path) -> None:
    cache = latent_cache()
    assert run(cache, tmp_path / "latents", epochs=1)["select_by"] == "latents"
    with pytest.raises(StageError, match="--select-by joints: no validation clip has a labelled joint"):
        run(cache, tmp_path / "joints", select_by="joints")
    labelled = latent_cache(name="labelled", labelled=16)
    assert run(labelled, tmp_path / "idle", epochs=1, trajectory_weight=0.0)["select_by"] == "latents"


def trainer_of(features: Features, settings: TrainSettings) -> Trainer:
    model = build_model(shape_of(features, settings), seed=0)
    return Trainer(model, make_optimizer(model, settings), features, Accelerator(cpu=True), settings)


def test_clips_of_unknown_joints_have_no_part_in_the_distance(
    latent_cache: BuildCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the clips lose all confidences: the distance is that of the others, and not half of it."""
    features = choose_features(FeatureCache.open(latent_cache(labelled=16)), TINY)
    clips = tuple(features.clips.clip_ids.to_pylist()[:6])
    trainer, transformed = trainer_of(features, TINY), Features.transformed
    expected = float(validation_losses(trainer, clips[::2])[DISTANCE_M])
    assert expected > 0.01

    def without_labels(self: Features, stored: Batch, device: torch.device) -> Batch:
        batch = transformed(self, stored, device)
        assert batch.trajectory is not None
        batch.trajectory.future_confidence[1::2] = 0
        return batch

    monkeypatch.setattr(Features, "transformed", without_labels)
    found = validation_losses(trainer, clips)
    assert float(found[WITH_DISTANCE]) == 0.5
    assert float(found[DISTANCE_M]) == pytest.approx(expected, rel=1e-6)


def test_gradients_of_both_parts_are_those_of_plain_autograd(latent_cache: BuildCache) -> None:
    settings = replace(TINY, latent_weight=0.5, trajectory_weight=20.0)
    features = choose_features(FeatureCache.open(latent_cache(labelled=16)), settings)
    clips = tuple(features.clips.clip_ids.to_pylist()[:4])
    trainer = trainer_of(features, settings)
    generator = torch.Generator().manual_seed(0)
    for parameter in trainer.model.head.parameters():  # a head that has learned: it starts blind to latents
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    losses = next(trainer.losses(clips, trainer.stored([clips])))
    found = gradient_norms(trainer, losses)
    forecaster = trainer.model.forecaster
    for part, norm in zip((LATENT_PART, JOINT_PART), found, strict=True):
        trainer.model.zero_grad()
        losses[:, part].mean().backward(retain_graph=True)
        squares = [p.grad.square().sum() for p in forecaster.parameters() if p.grad is not None]
        assert norm == pytest.approx(float(torch.stack(squares).sum().sqrt()), rel=1e-5)
        assert norm > 0
    assert found[0] != found[1]
