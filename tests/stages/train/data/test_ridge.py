"""The ridge on observed poses: its closed form, the choice of its strength, and what it may not read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from poses import still_poses
from torch import Tensor

from thinkjepa.cache import FeatureCache
from thinkjepa.stages.train.data import ridge as fitting
from thinkjepa.stages.train.data.features import Features, choose_features
from thinkjepa.stages.train.data.poses import ObservedPoses, TrajectoryBatch, input_frames
from thinkjepa.stages.train.data.ridge import Displacements, RidgeSolver, fit_ridge
from thinkjepa.stages.train.model.ridge import PoseRidge
from thinkjepa.stages.train.settings import TrainSettings

BuildCache = Callable[..., Path]
CLIPS, STEPS, FRAMES, JOINTS, OBSERVED = 40, 3, 2, 2, 4
PLACES = (CLIPS, STEPS, FRAMES, JOINTS)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moving(seed: int, *, noise_m: float = 0.0) -> TrajectoryBatch:
    """Joints that go on with half of their last velocity, at 10 frames a second."""
    start_m, velocity_m_s = drawn(CLIPS, 1, JOINTS, 3, seed=seed), drawn(CLIPS, 1, JOINTS, 3, seed=seed + 1)
    times_s = (torch.arange(OBSERVED) - OBSERVED + 1) / 10
    ahead_s = (torch.arange(STEPS * FRAMES) + 1).view(STEPS, FRAMES, 1, 1) / 10
    poses = ObservedPoses(
        start_m + times_s[:, None, None] * velocity_m_s,
        torch.ones(CLIPS, OBSERVED, JOINTS),
        times_s.expand(CLIPS, -1),
    )
    future_m = start_m[:, None] + 0.5 * ahead_s * velocity_m_s[:, None]
    return TrajectoryBatch(poses, future_m + noise_m * drawn(*PLACES, 3, seed=seed + 2), torch.ones(PLACES))


class Labels:
    """Features of two partitions that hold joints and nothing else."""

    tubelet = FRAMES

    def __init__(self, **sides: TrajectoryBatch) -> None:
        self.sides = sides

    def trajectories(self, clip_ids: tuple[str, ...], device: torch.device) -> TrajectoryBatch:
        return self.sides[clip_ids[0]]


def fitted(train: TrajectoryBatch, validation: TrajectoryBatch) -> PoseRidge:
    ridge = PoseRidge(num_steps=STEPS, frames_per_step=FRAMES, num_joints=JOINTS, observed_frames=OBSERVED)
    features: Features = Labels(train=train, validation=validation)  # type: ignore[assignment]
    ridge.set_fit(fit_ridge(features, ["train"], ["validation"]))
    return ridge


def distance_m(ridge: PoseRidge, joints: TrajectoryBatch) -> float:
    return float((ridge(joints.poses, num_steps=STEPS) - joints.future_m).norm(dim=-1).mean())


def test_movements_that_the_observed_velocity_tells_are_predicted() -> None:
    ridge, unseen = fitted(moving(0), moving(10)), moving(20)
    still = float((unseen.poses.last_pose_m[:, None, None] - unseen.future_m).norm(dim=-1).mean())
    assert distance_m(ridge, unseen) < 0.001 < 0.1 < still


def test_the_fit_of_a_strength_is_the_closed_form() -> None:
    inputs, targets = drawn(CLIPS, 7).double(), drawn(*PLACES, 3, seed=1).double()
    solver = RidgeSolver(inputs)
    bias, coefficients = solver.fit(Displacements(targets, torch.ones(*PLACES, 1).double()), 0.3, fills=20)
    centered, wanted = inputs - inputs.mean(dim=0), targets.flatten(1)
    gram = centered.T @ centered + CLIPS * 0.3 * torch.eye(7, dtype=torch.float64)
    expected = np.linalg.solve(gram.numpy(), (centered.T @ (wanted - wanted.mean(dim=0))).numpy())
    np.testing.assert_allclose(solver.weight(coefficients).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(bias.numpy(), wanted.mean(dim=0).numpy(), atol=1e-12)


def test_unknown_targets_have_no_part_in_the_fit() -> None:
    """Filled again and again, they come to the fit of each output on its own known clips."""
    inputs, targets = drawn(CLIPS, 5).double(), drawn(*PLACES, 3, seed=1).double()
    counted = (torch.rand(*PLACES, 1, generator=torch.Generator().manual_seed(2)) < 0.8).double()
    solver = RidgeSolver(inputs)
    bias, coefficients = solver.fit(Displacements(targets * counted, counted), 1e-9, fills=200)
    found = bias + (inputs - solver.mean) @ solver.weight(coefficients)
    known = counted.expand_as(targets).flatten(1).bool()
    for output in range(0, known.shape[1], 7):
        chosen = known[:, output].numpy()
        design = np.column_stack([np.ones(CLIPS), inputs.numpy()])
        weights, *_ = np.linalg.lstsq(design[chosen], targets.flatten(1)[chosen, output].numpy(), rcond=None)
        np.testing.assert_allclose(found[:, output].numpy(), design @ weights, atol=1e-6)


def test_the_strength_is_that_of_the_smallest_distance_on_validation_clips(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train, validation = moving(0, noise_m=0.3), moving(10, noise_m=0.3)
    chosen = distance_m(fitted(train, validation), validation)
    apart = []
    for strength in fitting.STRENGTHS:
        monkeypatch.setattr(fitting, "STRENGTHS", (strength,))
        apart.append(distance_m(fitted(train, validation), validation))
    assert chosen == pytest.approx(min(apart), abs=1e-6)
    assert max(apart) > 1.05 * chosen, "the control: strengths differ"


def test_poses_that_tell_nothing_leave_the_mean_displacement() -> None:
    train, validation = moving(0), moving(10)
    moved_m = [drawn(*PLACES, 3, seed=seed) for seed in (5, 6)]
    train, validation = (
        replace(item, future_m=item.poses.last_pose_m[:, None, None] + moved)
        for item, moved in zip((train, validation), moved_m, strict=True)
    )
    ridge, mean = fitted(train, validation), moved_m[0].mean(dim=0)
    assert float(ridge.weight.abs().max()) < 0.05
    torch.testing.assert_close(ridge.bias, mean, atol=0.05, rtol=0)


def test_a_joint_whose_last_pose_is_unknown_is_at_the_mean_of_each_frame() -> None:
    train = moving(0)
    ridge = fitted(train, moving(10))
    dropped = train.poses.without(torch.tensor([1.0] + [0.0] * (CLIPS - 1)))
    joints_m = ridge(dropped, num_steps=STEPS)
    torch.testing.assert_close(joints_m[0], train.future_m.mean(dim=0))
    assert torch.equal(joints_m[1:], ridge(train.poses, num_steps=STEPS)[1:])


def test_frames_past_the_last_one_keep_its_displacement() -> None:
    ridge, poses = fitted(moving(0), moving(10)), moving(20).poses
    longer = ridge(poses, num_steps=STEPS + 2)
    assert torch.equal(longer[:, :STEPS], ridge(poses, num_steps=STEPS))
    assert torch.equal(longer[:, STEPS], longer[:, STEPS - 1])


def test_long_windows_are_read_at_eight_frames() -> None:
    assert input_frames(16) == [0, 2, 4, 6, 9, 11, 13, 15]
    assert input_frames(3) == [0, 1, 2]
    values, known = still_poses(drawn(2, 3, 3), num_frames=16).inputs()
    assert values.shape == (2, 8, 3, 3)
    assert known.all()


def test_what_a_ridge_predicts_does_not_depend_on_the_future(latent_cache: BuildCache) -> None:
    """Labels, latents and cameras from the split on are others: to the last bit the same joints."""
    plain = choose_features(FeatureCache.open(latent_cache(labelled=16)), TrainSettings())
    other = choose_features(
        FeatureCache.open(latent_cache(name="other", labelled=16, later=0.5)), TrainSettings()
    )
    ids = plain.clips.clip_ids.to_pylist()
    late = [clip_id for clip_id in ids if clip_id.endswith("@20")]
    fit = fit_ridge(plain, ids[:16], ids[16:])
    ridge = PoseRidge(num_steps=2, frames_per_step=2, num_joints=3, observed_frames=6)
    ridge.set_fit(fit)
    one, two = (item.trajectories(late, torch.device("cpu")) for item in (plain, other))
    assert not torch.equal(one.future_m, two.future_m), "the control"
    assert torch.equal(ridge(one.poses, num_steps=2), ridge(two.poses, num_steps=2))
