"""Distances of joints against values worked out by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thinkjepa.stages.evaluate.metrics import counted_joint_frames, trajectory_metrics

# One clip of two latent steps of two frames, two joints; the first joint is off by 3-4-5 triangles (cm).
FUTURE_M = torch.zeros(1, 2, 2, 2, 3)
PREDICTED_M = torch.zeros(1, 2, 2, 2, 3)
PREDICTED_M[0, 0, 0, 0] = torch.tensor([0.024, 0.032, 0.0])  # 4 cm
PREDICTED_M[0, 0, 1, 0] = torch.tensor([0.0, 0.0, 0.1])  # 10 cm
PREDICTED_M[0, 1, 1, 0] = torch.tensor([0.06, 0.08, 0.0])  # 10 cm
PREDICTED_M[0, 1, 1, 1] = torch.tensor([0.0, 0.2, 0.0])  # 20 cm
ALL = torch.ones(1, 2, 2, 2, dtype=torch.bool)


JOINTS = ("rightHand", "elbow")


def metrics_of(counted: torch.Tensor) -> dict[str, list[float]]:
    last_pose_m = torch.zeros(1, 2, 3)
    found = trajectory_metrics(PREDICTED_M, FUTURE_M, counted, last_pose_m=last_pose_m, joints=JOINTS)
    return {name: values.flatten().tolist() for name, values in found.items()}


def test_metrics_of_known_distances() -> None:
    found = metrics_of(ALL)
    assert found["ade_m"] == pytest.approx([(0.04 + 0.1 + 0.1 + 0.2) / 8])
    assert found["fde_m"] == pytest.approx([(0.1 + 0.2) / 2])
    assert found["acc_5cm"] == [5 / 8]
    assert found["keypoint_m"] == pytest.approx([(0.04 + 0.1 + 0.1) / 4])
    assert found["ade_m_by_step"] == pytest.approx([0.14 / 4, 0.3 / 4])


def test_just_within_five_centimetres_is_accurate_and_just_beyond_is_not() -> None:
    predicted = torch.zeros(1, 1, 1, 2, 3)
    predicted[..., 0, 0], predicted[..., 1, 0] = 0.0499, 0.0501
    counted = torch.ones(1, 1, 1, 2, dtype=torch.bool)
    future, last_pose_m = torch.zeros_like(predicted), torch.zeros(1, 2, 3)
    found = trajectory_metrics(predicted, future, counted, last_pose_m=last_pose_m, joints=JOINTS)
    assert found["acc_5cm"].tolist() == [0.5]


def test_joint_frames_that_do_not_count_have_no_part() -> None:
    counted = ALL.clone()
    counted[0, 1, 1, 1] = False
    counted[0, 0, 1, 0] = False
    found = metrics_of(counted)
    assert found["ade_m"] == pytest.approx([(0.04 + 0.1) / 6])
    assert found["fde_m"] == pytest.approx([0.1])
    assert found["ade_m_by_step"] == pytest.approx([0.04 / 3, 0.1 / 3])


def test_a_clip_where_nothing_counts_has_no_score() -> None:
    found = metrics_of(~ALL)
    assert all(torch.tensor(values).isnan().all() for values in found.values())
    last_missing = ALL.clone()
    last_missing[0, 1, 1] = False
    assert torch.tensor(metrics_of(last_missing)["fde_m"]).isnan().all()
    assert not torch.tensor(metrics_of(last_missing)["ade_m"]).isnan().any()


def test_joints_of_no_confidence_or_never_seen_before_the_split_do_not_count() -> None:
    confidence = torch.full((1, 1, 2, 3), 0.2)
    confidence[0, 0, 1, 0] = 0.0
    last_known = torch.tensor([[1.0, 1.0, 0.0]])
    counted = counted_joint_frames(confidence, last_known)
    assert counted.tolist() == [[[[True, True, False], [False, True, False]]]]


@given(st.integers(0, 1000))
def test_ade_is_that_of_moved_and_turned_joints(seed: int) -> None:
    """A mean distance is the same in world and camera frame."""
    generator = torch.Generator().manual_seed(seed)
    predicted, future = torch.randn(2, 2, 3, 2, 4, 3, generator=generator).double()
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator).double()).Q
    shift = torch.randn(3, generator=generator).double()
    counted = torch.rand(2, 3, 2, 4, generator=generator) > 0.3
    last_pose_m = torch.randn(2, 4, 3, generator=generator).double()
    joints = ("rightHand", "rightThumbTip", "rightIndexFingerTip", "rightLittleFingerTip")
    there = trajectory_metrics(predicted, future, counted, last_pose_m=last_pose_m, joints=joints)
    here = trajectory_metrics(
        predicted @ rotation + shift,
        future @ rotation + shift,
        counted,
        last_pose_m=last_pose_m @ rotation + shift,
        joints=joints,
    )
    for name in there:
        torch.testing.assert_close(here[name], there[name], equal_nan=True)
