"""Observed poses: last positions and velocities of joints that are known now and then."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from poses import still_poses

from thinkjepa.stages.data.trajectories import Trajectory
from thinkjepa.stages.train.data.poses import ObservedPoses, observed_poses

FRAMES, JOINTS = 4, 5
TIMES_S = [[0.3, 0.4, 0.5, 0.6], [1.0, 1.2, 1.2, 1.3]]  # one frame of the second clip was sampled twice


def trajectory(seed: int, known: list[list[int]]) -> Trajectory:
    rng = np.random.default_rng(seed)
    confidence = np.array(known, dtype=np.float32) * np.float32(0.5)
    observed_m = rng.normal(size=(FRAMES, JOINTS, 3)).astype(np.float32)
    return Trajectory(observed_m, confidence, np.zeros((1, 2, 2, 3)), np.ones((1, 2, 2)), None)


@pytest.fixture
def clips() -> list[Trajectory]:
    """Joints that are always known, never, not in the last frame, once, and in the repeated frame."""
    return [
        trajectory(0, [[1, 0, 1, 0, 0], [1, 0, 1, 0, 1], [1, 0, 1, 1, 1], [1, 0, 0, 0, 0]]),
        trajectory(1, [[1, 0, 1, 0, 1], [1, 0, 1, 0, 1], [1, 0, 1, 1, 1], [1, 0, 0, 0, 0]]),
    ]


def test_the_last_pose_is_where_each_joint_was_last_known(clips: list[Trajectory]) -> None:
    poses = observed_poses(clips, TIMES_S)
    assert poses.last_known.tolist() == [[1, 0, 1, 1, 1]] * 2
    for number, clip in enumerate(clips):
        expected = clip.observed_m[[3, 3, 2, 2, 2], np.arange(JOINTS)]
        expected[1] = 0
        assert poses.last_pose_m[number].numpy().tolist() == expected.tolist()


def test_velocities_are_those_between_the_last_two_known_times(clips: list[Trajectory]) -> None:
    poses = observed_poses(clips, TIMES_S)
    assert poses.velocity_known.tolist() == [[1, 0, 1, 0, 1], [1, 0, 1, 0, 1]]
    last_two = [[(2, 3), (1, 2), (1, 2)], [(2, 3), (0, 2), (0, 2)]]  # of joints 0, 2 and 4
    for number, (clip, times_s) in enumerate(zip(clips, TIMES_S, strict=True)):
        for joint, (before, last) in zip((0, 2, 4), last_two[number], strict=True):
            moved_m = clip.observed_m[last, joint] - clip.observed_m[before, joint]
            expected = moved_m / (times_s[last] - times_s[before])
            np.testing.assert_allclose(poses.velocity_m_s[number, joint].numpy(), expected, rtol=1e-4)
        assert not poses.velocity_m_s[number, [1, 3]].any()


def test_inputs_are_mean_velocities_from_each_frame_and_the_last_pose(clips: list[Trajectory]) -> None:
    values, known = observed_poses(clips, TIMES_S).inputs()
    assert known[1].tolist() == [[1, 0, 1, 0, 1], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 1, 1, 1]]
    clip, times_s = clips[1], TIMES_S[1]
    for frame, last, joint in ((0, 3, 0), (2, 3, 0), (0, 2, 2)):
        moved_m = clip.observed_m[last, joint] - clip.observed_m[frame, joint]
        expected = moved_m / (times_s[last] - times_s[frame])
        np.testing.assert_allclose(values[1, frame, joint].numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose(values[1, 3, 2].numpy(), clip.observed_m[2, 2])
    assert not values[known == 0].any()


def test_a_joint_that_moves_evenly_has_its_speed_whatever_the_gaps() -> None:
    times_s = np.array([0.0, 0.1, 0.15, 0.4])
    moving = Trajectory(
        (2.0 * times_s[:, None, None] * np.ones((FRAMES, 1, 3))).astype(np.float32),
        np.array([[1], [0], [1], [0]], dtype=np.float32),
        np.zeros((1, 2, 1, 3)),
        np.ones((1, 2, 1)),
        None,
    )
    poses = observed_poses([moving], [times_s])
    torch.testing.assert_close(poses.velocity_m_s, torch.full((1, 1, 3), 2.0))
    assert poses.times_s[0].tolist() == pytest.approx([-0.4, -0.3, -0.25, 0.0])


def test_positions_that_are_not_known_are_zeros(clips: list[Trajectory]) -> None:
    poses = observed_poses(clips, TIMES_S)
    assert not poses.positions_m[poses.known == 0].any()
    nothing = ObservedPoses.unknown(2, num_frames=FRAMES, num_joints=JOINTS)
    for values in (nothing.last_pose_m, nothing.velocity_m_s, nothing.last_known, nothing.velocity_known):
        assert not values.any()


def test_a_hand_that_keeps_still_has_no_velocity() -> None:
    poses = still_poses(torch.randn(2, 3, 3))
    assert not poses.velocity_m_s.any()
    assert poses.velocity_known.all()
