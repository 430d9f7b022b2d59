"""The trajectory head reads a step's joints from that step's latents, and learns from labels only."""

from __future__ import annotations

import pytest
import torch
from poses import still_poses
from torch import Tensor, nn

from thinkjepa.stages.train.data.poses import ObservedPoses
from thinkjepa.stages.train.data.statistics import joint_statistics
from thinkjepa.stages.train.fit.losses import joint_distance, trajectory_error
from thinkjepa.stages.train.model.config import (
    Anchor,
    HeadInputs,
    HeadShape,
    LatentGrid,
    ModelShape,
    TrunkShape,
)
from thinkjepa.stages.train.model.head import TrajectoryHead
from thinkjepa.stages.train.model.ridge import RidgeFit
from thinkjepa.stages.train.model.trunk import initialize
from thinkjepa.stages.train.randomness import named_generator

GRID = LatentGrid(observed_steps=3, future_steps=4, height=2, width=3, dim=8)
JOINTS = ("rightHand", "rightThumbTip", "rightIndexFingerTip")
CLIPS, FRAMES = 5, 2


def make_head(anchor: Anchor = "none", *, inputs: HeadInputs = "poses", width: int = 16) -> TrajectoryHead:
    """A head with drawn output layers: as it is built, it predicts its start."""
    shape = HeadShape(joints=JOINTS, frames_per_step=FRAMES, anchor=anchor, width=width, inputs=inputs)
    trunk = TrunkShape(depth=1, width=24, heads=2)
    head = TrajectoryHead(ModelShape("jepa", GRID, trunk, thinker=None, fusion_width=16, head=shape))
    initialize(head, named_generator(0, "head"))
    return head


def learn(head: TrajectoryHead, latents: Tensor, poses: ObservedPoses, future_m: Tensor) -> None:
    """Fit the head to joints, from its start, in the units of the loss."""
    head.begin_at_start()
    rate, steps = 1e-2, 500
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    confidence = torch.ones(future_m.shape[:-1])
    for _ in range(steps):
        optimizer.zero_grad()
        predicted_m = head(latents, poses)
        trajectory_error(predicted_m, future_m, confidence, unit_m=head.unit_m(poses)).mean().backward()
        optimizer.step()
        schedule.step()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_latents(seed: int = 0) -> Tensor:
    return drawn(CLIPS, GRID.future_steps, GRID.tokens_per_step, GRID.dim, seed=seed)


@pytest.mark.parametrize("anchor", ["none", "last_pose"])
@pytest.mark.parametrize("step", range(GRID.future_steps))
def test_joints_of_a_step_are_read_from_that_steps_latents_alone(step: int, anchor: Anchor) -> None:
    head, latents, poses = (
        make_head(anchor),
        random_latents(),
        still_poses(torch.randn(CLIPS, len(JOINTS), 3)),
    )
    before = head(latents, poses)
    latents[:, step] = random_latents(1)[:, step]
    moved = (head(latents, poses) - before).abs().amax(dim=(0, 2, 3, 4))
    assert moved[step] > 0
    assert moved[torch.arange(GRID.future_steps) != step].max() == 0


def test_joints_of_a_clip_are_read_from_that_clips_latents_alone() -> None:
    head, latents, poses = make_head(), random_latents(), still_poses(torch.zeros(CLIPS, len(JOINTS), 3))
    before = head(latents, poses)
    latents[2] = random_latents(1)[2]
    changed = (head(latents, poses) - before).abs().amax(dim=(1, 2, 3, 4)) > 0
    assert changed.tolist() == [False, False, True, False, False]


def test_where_in_the_picture_a_patch_lies_matters() -> None:
    head, latents, poses = make_head(), random_latents(), still_poses(torch.zeros(CLIPS, len(JOINTS), 3))
    assert not torch.equal(head(latents, poses), head(latents.flip(2), poses))


def test_joints_without_confidence_pass_no_gradient_and_do_not_change_the_error() -> None:
    predicted = torch.randn(CLIPS, 4, FRAMES, 3, 3, requires_grad=True)
    target, confidence = torch.randn(CLIPS, 4, FRAMES, 3, 3), torch.rand(CLIPS, 4, FRAMES, 3)
    confidence[:, 1, :, 2] = 0
    confidence[3] = 0
    error = trajectory_error(predicted, target, confidence)
    error.sum().backward()
    assert predicted.grad is not None
    without = confidence == 0
    assert predicted.grad[without].abs().max() == 0
    assert predicted.grad[~without].abs().min() > 0
    moved = torch.where(without.unsqueeze(-1), target + 100, target)
    assert torch.equal(trajectory_error(predicted, moved, confidence), error)
    assert error[3] == 0


def test_errors_weigh_joints_by_confidence() -> None:
    predicted, target = torch.zeros(1, 1, 1, 2, 3), torch.zeros(1, 1, 1, 2, 3)
    target[0, 0, 0, 0] = torch.tensor([3.0, 4.0, 0.0])  # 5 m away, mean of squares 25 / 3
    confidence = torch.tensor([0.25, 0.75]).view(1, 1, 1, 2)
    torch.testing.assert_close(joint_distance(predicted, target, confidence), torch.tensor([5 / 4]))
    torch.testing.assert_close(trajectory_error(predicted, target, confidence), torch.tensor([25 / 12]))


def test_last_pose_anchor_predicts_displacements() -> None:
    """All that was observed moves by some metres: so do the joints. They do not without an anchor."""
    latents, pose_m, away_m = random_latents(), drawn(CLIPS, len(JOINTS), 3), torch.tensor([1.0, 2.0, 3.0])
    moved = {}
    for anchor in ("none", "last_pose"):
        head = make_head(anchor, inputs="latents")
        moved[anchor] = head(latents, still_poses(pose_m + away_m)) - head(latents, still_poses(pose_m))
    torch.testing.assert_close(moved["last_pose"], away_m.expand_as(moved["last_pose"]))
    assert not moved["none"].any()


@pytest.mark.parametrize("anchor", ["none", "last_pose"])
def test_a_head_that_has_learned_nothing_predicts_as_the_ridge(anchor: Anchor) -> None:
    head, latents, poses = make_head(anchor), random_latents(), still_poses(drawn(CLIPS, len(JOINTS), 3))
    nn.init.normal_(head.ridge.weight)
    nn.init.normal_(head.ridge.bias)
    ridge_m = head.ridge(poses, num_steps=GRID.future_steps)
    assert not torch.equal(head(latents, poses), ridge_m), "the control"
    head.begin_at_start()
    assert torch.equal(head(latents, poses), ridge_m)


def stating(positions_m: Tensor) -> Tensor:
    """Latents `(..., dim)` that state positions, around a mean that a layer norm leaves as it is."""
    mean = torch.tensor([1.0, -1.0] * (GRID.dim // 2))
    return mean + positions_m @ torch.linalg.qr(drawn(GRID.dim, 3)).Q.T


def set_statistics(head: TrajectoryHead, poses: ObservedPoses, future_m: Tensor) -> None:
    """Centers and scales of the targets, and a ridge that knows the mean displacement alone."""
    ridge, confidence = head.ridge, torch.ones(future_m.shape[:-1])
    positions = joint_statistics([(future_m, confidence)])
    displacements = joint_statistics([(future_m - poses.last_pose_m[:, None, None], confidence)])
    inputs = joint_statistics([poses.inputs()])
    ridge.set_fit(
        RidgeFit(positions, displacements, inputs, ridge.known_share, displacements.mean, ridge.weight)
    )


@pytest.mark.parametrize("anchor", ["none", "last_pose"])
def test_positions_that_latents_state_are_read_off_whatever_the_anchor(anchor: Anchor) -> None:
    """The joints' places have nothing to do with the last pose: a displacement needs both."""
    clips = 128
    future_m = 0.1 * drawn(clips, GRID.future_steps, 1, 1, 3, seed=1).expand(-1, -1, FRAMES, len(JOINTS), -1)
    latents = stating(3 * future_m[:, :, 0, 0])[:, :, None].expand(-1, -1, GRID.tokens_per_step, -1)
    poses = still_poses(0.1 * drawn(clips, len(JOINTS), 3, seed=2))
    head = make_head(anchor, width=32)
    set_statistics(head, poses, future_m)
    learn(head, latents, poses, future_m)
    with torch.no_grad():
        assert float((head(latents, poses) - future_m).norm(dim=-1).mean()) < 0.008


def test_a_motion_that_grows_from_step_to_step_is_learned() -> None:
    """Latents tell the direction, the same at every step: how far the joint is, the step's number tells."""
    clips = 64
    direction = drawn(clips, 1, 1, 1, 3, seed=1)
    grown_m = 0.001 * (torch.arange(GRID.future_steps * FRAMES) + 1.0).square().view(-1, FRAMES, 1, 1)
    poses = still_poses(drawn(clips, len(JOINTS), 3, seed=2))
    future_m = poses.last_pose_m[:, None, None] + direction * grown_m
    latents = stating(0.3 * direction[:, 0, 0, 0])[:, None, None]
    latents = latents.expand(-1, GRID.future_steps, GRID.tokens_per_step, -1)
    head = make_head("last_pose", width=32)
    set_statistics(head, poses, future_m)
    learn(head, latents, poses, future_m)
    errors_m = (head(latents, poses).detach() - future_m).norm(dim=-1).mean(dim=(0, 3)).flatten()
    moved_m = (direction * grown_m).norm(dim=-1).mean(dim=(0, 3)).flatten()
    assert moved_m[0] < 0.002 < 0.1 < moved_m[-1]
    assert errors_m[0] < 0.001, "the hand does not jump in the first frame"
    assert errors_m[-1] < 0.05 * moved_m[-1]


def test_a_motion_in_a_known_unit_is_the_loss_of_any_anchor() -> None:
    """The unit is the deviation around the start: displacements where a pose is known, else positions."""
    head = make_head("none")
    head.ridge.moved_scale.fill_(0.02)
    head.ridge.position_scale.fill_(0.3)
    known = torch.ones(CLIPS, len(JOINTS))
    known[2, 1] = 0
    unit_m = head.unit_m(still_poses(torch.zeros(CLIPS, len(JOINTS), 3), known=known))
    torch.testing.assert_close(unit_m[:, 0, 0, :, 0], torch.where(known > 0, 0.02, 0.3))


def test_joint_statistics_are_those_of_each_frame() -> None:
    positions, confidence = drawn(6, 2, 2, 3, 3), torch.ones(6, 2, 2, 3)
    confidence[:, :, :, 1] = 0  # never known
    positions[..., 2, :] = 0.5  # does not move
    confidence[0, :, :, 0] = 0
    positions[0, :, :, 0] = 1e6
    confidence[:, 1, 1, 0] = 0  # not known at the last frame
    found = joint_statistics([(positions[:2], confidence[:2]), (positions[2:], confidence[2:])])
    seen = positions[1:, :, :, 0]
    torch.testing.assert_close(found.mean[0, 1, 0], seen[:, 0, 1].mean(dim=0))
    scale = seen[:, 0, 1].var(dim=0, correction=0).mean().sqrt()
    torch.testing.assert_close(found.scale[0, 1, 0, 0], scale)
    others = torch.cat((seen[:, 0], seen[:, 1, :1]), dim=1).flatten(0, 1)
    torch.testing.assert_close(found.mean[1, 1, 0], others.mean(dim=0))
    assert not found.mean[:, :, 1].any()
    torch.testing.assert_close(found.mean[:, :, 2], torch.full((2, 2, 3), 0.5))
    assert found.scale[:, :, 1:].flatten().tolist() == pytest.approx([1e-3] * 8)


def test_a_head_without_poses_starts_at_the_mean_pose_of_each_frame() -> None:
    head = make_head(inputs="latents")
    nn.init.normal_(head.ridge.position_center)
    head.begin_at_start()
    joints_m = head(random_latents(), still_poses(torch.zeros(CLIPS, len(JOINTS), 3)))
    assert torch.equal(joints_m, head.ridge.position_center.expand_as(joints_m))
