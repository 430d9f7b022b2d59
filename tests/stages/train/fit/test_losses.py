"""Losses by hand-computed values and against torch's own, one value a clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from poses import still_poses

from thinkjepa.cache import FeatureCache
from thinkjepa.stages.train.data.features import (
    Batch,
    Features,
    choose_features,
)
from thinkjepa.stages.train.data.on_grid import transform_latents
from thinkjepa.stages.train.data.poses import TrajectoryBatch
from thinkjepa.stages.train.fit.loop import Trainer, train_step
from thinkjepa.stages.train.fit.losses import latent_loss, per_sample_losses, trajectory_error
from thinkjepa.stages.train.fit.optimizer import Step, make_optimizer
from thinkjepa.stages.train.model.config import LatentGrid, LatentTransform, ModelShape
from thinkjepa.stages.train.model.forecast import Forecast, build_model
from thinkjepa.stages.train.plan import model_shape as shape_of
from thinkjepa.stages.train.settings import LatentLoss, TrainSettings

BuildCache = Callable[..., Path]
BuildShape = Callable[..., ModelShape]
TINY = TrainSettings(variant="jepa", depth=1, width=24, heads=2, head_width=16, device="cpu")


@pytest.mark.parametrize(
    ("kind", "reference"), [("mse", F.mse_loss), ("l1", F.l1_loss), ("smooth_l1", F.smooth_l1_loss)]
)
def test_latent_losses_are_torchs_per_clip(kind: LatentLoss, reference: object) -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, target = (2 * torch.randn(3, 2, 4, 5, generator=generator) for _ in range(2))
    expected = [float(reference(p, t)) for p, t in zip(predicted, target, strict=True)]  # type: ignore[operator]
    assert latent_loss(predicted, target, kind).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "by_hand"), [("mse", [5.0, 0.02]), ("l1", [2.0, 0.1]), ("smooth_l1", [1.5, 0.01])]
)
def test_latent_losses_by_hand(kind: LatentLoss, by_hand: list[float]) -> None:
    """Differences of 1 and 3, and of 0 and 0.2: smooth L1 is half the square below 1, else less 1/2."""
    predicted, target = torch.tensor([[0.0, 2.0], [5.0, 1.2]]), torch.tensor([[1.0, -1.0], [5.0, 1.0]])
    assert latent_loss(predicted, target, kind).tolist() == pytest.approx(by_hand)


def test_joints_count_in_metres_or_in_their_own_unit() -> None:
    """Off by 3 mm of a joint whose unit is 1 mm, and by 40 mm of one whose unit is 20 mm: 3 and 2 units."""
    predicted, target = torch.zeros(1, 1, 1, 2, 3), torch.zeros(1, 1, 1, 2, 3)
    predicted[..., 0, 0], predicted[..., 1, 1] = 0.003, 0.04
    confidence, unit_m = torch.ones(1, 1, 1, 2), torch.tensor([[0.001], [0.02]])
    metres = (0.003**2 + 0.04**2) / 6
    assert trajectory_error(predicted, target, confidence).item() == pytest.approx(metres)
    assert trajectory_error(predicted, target, confidence, unit_m=unit_m).item() == pytest.approx((9 + 4) / 6)


def forecast_and_clips(last_known: float = 1.0) -> tuple[Forecast, Batch]:
    """One clip: future latents off by 2, those of each next step by 1, its one joint by 0.3 m along one axis.

    The latents of step t are t.
    """
    steps = torch.arange(7.0)[None, :, None, None].expand(1, 7, 3, 4)
    observed, future = steps[:, :5], steps[:, 5:]
    joints_m = torch.zeros(1, 2, 2, 1, 3)
    moved_m = joints_m.clone()
    moved_m[..., 0] = 0.3
    trajectory = TrajectoryBatch(
        poses=still_poses(torch.zeros(1, 1, 3), known=torch.full((1, 1), last_known)),
        future_m=joints_m,
        future_confidence=torch.full((1, 2, 2, 1), 0.5),
    )
    return Forecast(future + 2, moved_m, steps[:, 1:6] - 1), Batch(observed, future, None, trajectory)


@pytest.mark.parametrize(
    ("settings", "by_hand"),
    [
        ({}, 4 + 1 * 0.03),
        ({"latent_weight": 0.5, "trajectory_weight": 10.0}, 0.5 * 4 + 10 * 0.03),
        ({"latent_weight": 0.5, "next_step_weight": 0.25}, 0.5 * (4 + 0.25 * 1) + 0.03),
        ({"latent_loss": "l1", "next_step_weight": 2.0}, 2 + 2 * 1 + 0.03),
        ({"latent_loss": "smooth_l1", "next_step_weight": 2.0}, 1.5 + 2 * 0.5 + 0.03),
        ({"latent_weight": 0.0}, 0.03),
        ({"trajectory_weight": 0.0}, 4.0),
    ],
    ids=str,
)
def test_a_clips_loss_is_the_weighted_sum(settings: dict[str, Any], by_hand: float) -> None:
    forecast, clips = forecast_and_clips()
    if "next_step_weight" not in settings:
        forecast = forecast._replace(next_steps=None)
    losses = per_sample_losses(forecast, clips, TrainSettings(**settings))[0].tolist()
    loss, latent, distance_m, with_distance, latent_part, joint_part = losses
    assert loss == pytest.approx(by_hand)
    assert loss == pytest.approx(latent_part + joint_part)
    assert joint_part == pytest.approx(settings.get("trajectory_weight", 1.0) * 0.03)
    assert latent == pytest.approx(4.0), "the latents' squared error, whatever the loss"
    assert distance_m == pytest.approx(0.3), "metres, whatever the weight"
    assert with_distance == 1


def test_a_joint_without_a_last_pose_has_no_part_in_the_loss_of_displacements() -> None:
    forecast, clips = forecast_and_clips(last_known=0.0)
    losses = [
        per_sample_losses(forecast, clips, TrainSettings(anchor=anchor))[0, 0]  # type: ignore[arg-type]
        for anchor in ("last_pose", "none")
    ]
    assert float(losses[1] - losses[0]) == pytest.approx(0.03, rel=1e-4)


def test_normed_targets_by_hand() -> None:
    """Channels 1 and 3 have mean 2 and deviation 1; the loss is then that of -1 and 1."""
    grid = LatentGrid(observed_steps=1, future_steps=1, height=1, width=1, dim=2)
    target = transform_latents(torch.tensor([[[[1.0, 3.0]]]]), grid, LatentTransform(normalised=True))
    assert target.flatten().tolist() == pytest.approx([-1.0, 1.0], abs=1e-4)
    assert latent_loss(torch.zeros_like(target), target, "mse").item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("clips_per_forward", [1, 2, 5])
def test_a_steps_gradient_is_that_of_the_mean_over_the_global_batch(
    latent_cache: BuildCache, model_shape: BuildShape, clips_per_forward: int
) -> None:
    """Five clips in parts of one, of two (the last one smaller), and at once, against plain autograd."""
    settings = TrainSettings(variant="jepa", clips_per_forward=clips_per_forward, device="cpu")
    cache = FeatureCache.open(latent_cache(num_videos=3))
    features: Features = choose_features(cache, settings)
    batch = tuple(features.clips.clip_ids.to_pylist()[:5])
    model, plain = (build_model(model_shape("jepa"), seed=0) for _ in range(2))
    clips = features.batch(batch, torch.device("cpu"))
    expected = (plain(clips.observed, None, None).latents - clips.future).square().mean()
    expected.backward()

    trainer = Trainer(model, make_optimizer(model, settings), features, Accelerator(cpu=True), settings)
    loss, _ = train_step(trainer, batch, trainer.stored([batch]), Step(1, 1, steps_per_epoch=1))
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-7, rtol=1e-4)
    half = [parameter.grad / 2 for parameter in plain.parameters() if parameter.grad is not None]
    assert not torch.allclose(half[0], next(model.parameters()).grad), "another divisor would be seen"  # type: ignore[arg-type]


def test_units_of_spread_are_the_heads_own(latent_cache: BuildCache) -> None:
    """With the head's unit at 1 cm, joints count ten thousand times as much as in metres."""
    cache, sums = FeatureCache.open(latent_cache(labelled=16)), {}
    for units in ("metres", "spread"):
        settings = replace(TINY, trajectory_units=units, latent_weight=0.0, drop_poses=0.0)  # type: ignore[arg-type]
        features = choose_features(cache, settings)
        model = build_model(shape_of(features, settings), seed=0)
        assert model.head is not None
        model.head.ridge.moved_scale.fill_(0.01)
        batch = tuple(features.clips.clip_ids.to_pylist()[:4])
        trainer = Trainer(model, make_optimizer(model, settings), features, Accelerator(cpu=True), settings)
        sums[units] = next(trainer.losses(batch, trainer.stored([batch])))[:, 0].sum().item()
    assert sums["spread"] / sums["metres"] == pytest.approx(1e4, rel=1e-4)
