"""Distances by hand: alignment against Horn's quaternions, wrists and moving joints against numpy loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thinkjepa.stages.evaluate.details.hands import (
    Hand,
    aligned,
    hands_of,
    moving_joints,
    procrustes_aligned,
    wrist_relative,
)
from thinkjepa.stages.evaluate.metrics import trajectory_metrics

JOINTS = (
    "rightHand",
    "rightThumbTip",
    "rightIndexFingerTip",
    "rightForearm",
    "leftThumbTip",
    "leftHand",
    "leftLittleFingerTip",
    "leftIndexFingerTip",
)
RIGHT, LEFT = [0, 1, 2], [4, 5, 6, 7]


def by_horn(predicted: np.ndarray, future: np.ndarray) -> np.ndarray:
    """Points `(n, 3)` by the best similarity, from the largest eigenvector of Horn's 4 x 4 matrix (1987)."""
    source, target = predicted - predicted.mean(0), future - future.mean(0)
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = source.T @ target
    matrix = [
        [xx + yy + zz, yz - zy, zx - xz, xy - yx],
        [yz - zy, xx - yy - zz, xy + yx, zx + xz],
        [zx - xz, xy + yx, yy - xx - zz, yz + zy],
        [xy - yx, zx + xz, yz + zy, zz - xx - yy],
    ]
    w, x, y, z = np.linalg.eigh(np.array(matrix))[1][:, -1]
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    turned = source @ rotation.T
    return (turned * target).sum() / (source**2).sum() * turned + future.mean(0)


def random_clips(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Predicted and true joints `(2, 3, 2, joint, 3)`, which count, and last poses `(2, joint, 3)`."""
    rng = np.random.default_rng(seed)
    future = torch.from_numpy(rng.normal(scale=0.1, size=(2, 3, 2, len(JOINTS), 3)))
    predicted = future + torch.from_numpy(rng.normal(scale=0.05, size=future.shape))
    last_pose = future[:, 0, 0] + torch.from_numpy(rng.normal(scale=0.05, size=(2, len(JOINTS), 3)))
    return predicted, future, torch.from_numpy(rng.random(future.shape[:-1]) > 0.25), last_pose


@given(st.integers(0, 500))
def test_metrics_are_those_of_loops_in_numpy(seed: int) -> None:
    predicted, future, counted, last_pose = random_clips(seed)
    found = trajectory_metrics(predicted, future, counted, last_pose_m=last_pose, joints=JOINTS)
    for clip in range(2):
        relative, fitted = [], []
        for step, frame in np.ndindex(3, 2):
            p, q, c = (values[clip, step, frame].numpy() for values in (predicted, future, counted))
            for hand, wrist in ((RIGHT, 0), (LEFT, 5)):
                for joint in hand:
                    if joint != wrist and c[joint] and c[wrist]:
                        relative.append(np.linalg.norm((p[joint] - p[wrist]) - (q[joint] - q[wrist])))
                held = [joint for joint in hand if c[joint]]
                if len(held) >= 3:
                    fitted += list(np.linalg.norm(by_horn(p[held], q[held]) - q[held], axis=1))
        assert float(found["wrist_relative_m"][clip]) == pytest.approx(np.mean(relative), rel=1e-6)
        expected = np.mean(fitted) if fitted else np.nan
        assert float(found["procrustes_m"][clip]) == pytest.approx(expected, rel=1e-5, nan_ok=True)


@given(st.integers(0, 500))
def test_moving_joints_are_those_whose_truth_gets_farther_than_two_centimetres(seed: int) -> None:
    predicted, future, counted, last_pose = random_clips(seed)
    future = last_pose[:, None, None] + 0.15 * (future - last_pose[:, None, None])
    found = trajectory_metrics(predicted, future, counted, last_pose_m=last_pose, joints=JOINTS)
    for clip in range(2):
        errors = []
        for joint in range(len(JOINTS)):
            c = counted[clip, ..., joint].numpy()
            p, q = (values[clip, ..., joint, :].numpy()[c] for values in (predicted, future))
            if len(q) and np.linalg.norm(q - last_pose[clip, joint].numpy(), axis=-1).max() > 0.02:
                errors += list(np.linalg.norm(p - q, axis=-1))
        expected = np.mean(errors) if errors else np.nan
        assert float(found["moving_m"][clip]) == pytest.approx(expected, rel=1e-9, nan_ok=True)


def test_resting_joints_have_no_score_and_their_labels_do_not_count() -> None:
    _, future, counted, last_pose = random_clips(0)
    still = last_pose[:, None, None].expand_as(future)
    assert not moving_joints(still, last_pose, counted).any()
    away = still + 0.1
    assert torch.equal(moving_joints(away, last_pose, counted), counted)
    assert not moving_joints(away, last_pose, torch.zeros_like(counted)).any()


@given(st.integers(0, 500))
def test_a_hand_that_is_scaled_turned_and_moved_fits_and_its_mirror_image_does_not(seed: int) -> None:
    rng = np.random.default_rng(seed)
    future = torch.from_numpy(rng.normal(size=(1, 6, 3)))
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation *= np.linalg.det(rotation)
    counted = torch.ones(1, 6, dtype=torch.bool)
    moved = 1.7 * future @ torch.from_numpy(rotation) + torch.from_numpy(rng.normal(size=3))
    torch.testing.assert_close(aligned(moved, future, counted), future)
    mirrored = moved * torch.tensor([-1.0, 1.0, 1.0])
    assert float((aligned(mirrored, future, counted) - future).abs().max()) > 1e-3


def test_a_hand_that_is_predicted_as_one_point_is_aligned_to_the_middle() -> None:
    future = torch.tensor([[[0.0, 0, 0], [0.3, 0, 0], [0, 0.6, 0]]]).double()
    counted = torch.ones(1, 3, dtype=torch.bool)
    found = aligned(torch.ones_like(future), future, counted)
    torch.testing.assert_close(found, future.mean(dim=1, keepdim=True).expand_as(future))


def test_a_joint_that_does_not_count_moves_no_other_joints_error() -> None:
    predicted, future, counted, _ = random_clips(1)
    counted[..., 1] = False
    other = predicted.clone()
    other[..., 1, :] = 1e3
    hands = hands_of(JOINTS)
    for measure in (wrist_relative, procrustes_aligned):
        (one, known), (two, _) = (measure(item, future, counted, hands) for item in (predicted, other))
        assert torch.equal(one[known], two[known])


def test_hands_are_their_fingers_and_wrist_without_the_forearm() -> None:
    assert hands_of(JOINTS) == [Hand((0, 1, 2), 0), Hand((4, 5, 6, 7), 5)]
    assert hands_of(("leftThumbTip", "hip")) == [Hand((0,), None)]
    assert hands_of(("hip",)) == []


def test_without_hands_there_is_nothing_to_align() -> None:
    predicted, future, counted, last_pose = random_clips(2)
    names = tuple(f"spine{number}" for number in range(len(JOINTS)))
    found = trajectory_metrics(predicted, future, counted, last_pose_m=last_pose, joints=names)
    for name in ("wrist_relative_m", "procrustes_m"):
        assert found[name].isnan().all()
    assert not found["ade_m"].isnan().any()
