"""The trajectory head reads a step's joints from that step's latents, and learns from labels only."""

from __future__ import annotations

import pytest
import torch
from poses import still_poses
from torch import Tensor

from thinkjepa.stages.train.data.statistics import JointStatistics, joint_statistics
from thinkjepa.stages.train.fit.losses import joint_distance, trajectory_error
from thinkjepa.stages.train.model.config import Anchor, HeadShape, LatentGrid
from thinkjepa.stages.train.model.forecast import TrajectoryHead
from thinkjepa.stages.train.model.trunk import initialize
from thinkjepa.stages.train.randomness import named_generator

GRID = LatentGrid(observed_steps=3, future_steps=4, height=2, width=3, dim=8)
JOINTS = ("rightHand", "rightThumbTip", "rightIndexFingerTip")
CLIPS, FRAMES = 5, 2


def make_head(anchor: Anchor = "none") -> TrajectoryHead:
    head = TrajectoryHead(GRID, HeadShape(joints=JOINTS, frames_per_step=FRAMES, anchor=anchor, width=16))
    initialize(head, named_generator(0, "head"))
    return head


def random_latents(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(CLIPS, GRID.future_steps, GRID.tokens_per_step, GRID.dim, generator=generator)


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
    latents, pose = random_latents(), torch.randn(CLIPS, len(JOINTS), 3)
    poses = still_poses(pose)
    there, here = make_head("last_pose")(latents, poses), make_head("none")(latents, poses)
    torch.testing.assert_close(there - here, pose[:, None, None].expand_as(here))


def test_joint_statistics_are_those_of_the_labelled_joints() -> None:
    positions, confidence = torch.randn(6, 2, 2, 3, 3), torch.ones(6, 2, 2, 3)
    confidence[:, :, :, 1] = 0
    positions[..., 2, :] = 0.5  # does not move
    confidence[0, :, :, 0] = 0
    positions[0, :, :, 0] = 1e6
    found = joint_statistics([(positions[:2], confidence[:2]), (positions[2:], confidence[2:])])
    seen = positions[1:, :, :, 0].reshape(-1, 3)
    torch.testing.assert_close(found.mean[0], seen.mean(dim=0))
    torch.testing.assert_close(found.scale[0, 0], seen.var(dim=0, correction=0).mean().sqrt())
    assert found.mean[1].tolist() == [0, 0, 0]
    torch.testing.assert_close(found.mean[2], torch.full((3,), 0.5))
    assert found.scale[1:].flatten().tolist() == pytest.approx([1e-3, 1e-3])


def test_untrained_head_starts_near_the_mean_pose() -> None:
    head = make_head()
    center, scale = torch.randn(3, 3), torch.full((3, 1), 0.1)
    head.set_joint_statistics(JointStatistics(mean=center, scale=scale))
    joints_m = head(random_latents(), still_poses(torch.zeros(CLIPS, 3, 3)))
    assert (joints_m - center).norm(dim=-1).max() < 3 * 0.1
