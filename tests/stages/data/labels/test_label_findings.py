"""Findings about hand labels, on joints whose faults are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkjepa.cache import VideoLabels
from thinkjepa.stages.data.joints import KEYPOINTS, PAPER_JOINTS
from thinkjepa.stages.data.labels.contract import LabelError, check_num_frames
from thinkjepa.stages.data.labels.findings import find, find_in_folder, held_steps, measure, wrist_speeds

SIZE_PX = (200, 100)
INTRINSICS = np.array([[100.0, 0, 100], [0, 100, 50], [0, 0, 1]])


def good(frames: int = 30, joints: tuple[str, ...] = PAPER_JOINTS) -> VideoLabels:
    """Hands half a metre before a fixed camera, 0.3 m/s to the right at 30 Hz."""
    positions = np.zeros((frames, len(joints), 3), dtype=np.float32)
    positions[..., 0] = 0.01 * np.arange(frames)[:, None] - 0.15
    positions[..., 1] = 0.002 * np.arange(len(joints))
    positions[..., 2] = 0.5
    confidences = np.ones((frames, len(joints)), dtype=np.float32)
    return VideoLabels("test", "camera", joints, positions, confidences, intrinsics=INTRINSICS)


def times(frames: int, fps: float = 30) -> npt.NDArray[np.float64]:
    return np.arange(frames) / fps


def kinds(labels: VideoLabels, *, video_frames: int = 30) -> dict[str, str]:
    figures = measure(labels, times(video_frames))
    found = find(labels, figures, video_frames=video_frames, size_px=SIZE_PX)
    return {finding.kind: finding.message for finding in found}


def with_positions(labels: VideoLabels, change: object) -> VideoLabels:
    positions = labels.positions_m.copy()
    change(positions)  # type: ignore[operator]
    return replace(labels, positions_m=positions)


def test_good_labels_have_no_findings() -> None:
    assert kinds(good()) == {}
    figures = measure(good(), times(30))
    assert (figures.known_joints, figures.unknown_joints) == (PAPER_JOINTS, ())
    assert (figures.jumps, figures.held_share) == (0, 0.0)
    assert figures.fastest_m_s == pytest.approx(0.3, rel=1e-4)
    assert figures.confidence_histogram == (0, 0, 0, 0, 0, 0, 0, 0, 0, 30 * 52)


def test_held_samples_are_counted_exactly() -> None:
    def hold(positions: npt.NDArray[np.float32]) -> None:
        positions[5:9] = positions[5]
        positions[20] = positions[19]

    labels = with_positions(good(), hold)
    assert np.flatnonzero(held_steps(labels)).tolist() == [5, 6, 7, 19]
    figures = measure(labels, times(30))
    assert (figures.held_share, figures.held_run_frames) == (4 / 29, 4)
    assert kinds(labels)["held"].startswith("13.8% of the samples repeat the one before, up to 4 frames")


def test_frames_where_nothing_is_known_are_not_held() -> None:
    labels = with_positions(good(), lambda positions: positions[10:20].fill(0))
    confidences = labels.confidences.copy()
    confidences[10:20] = 0
    assert not held_steps(replace(labels, confidences=confidences)).any()


def test_a_jump_of_a_wrist_is_named_with_its_frame_and_speed() -> None:
    wrist = PAPER_JOINTS.index("leftHand")

    def jump(positions: npt.NDArray[np.float32]) -> None:
        positions[12:, wrist, 2] += 0.5  # 15 m/s at 30 Hz
        positions[3, PAPER_JOINTS.index("leftThumbTip"), 2] += 2  # no wrist

    message = kinds(with_positions(good(), jump))["jumps"]
    assert message == "1 jumps faster than 5 m/s, the worst 15.0 m/s to frame 12"
    assert measure(with_positions(good(), jump), times(30, fps=5)).jumps == 0, "slower video, slower hand"


def test_speed_of_a_wrist_that_is_not_known_is_not_measured() -> None:
    wrist = PAPER_JOINTS.index("rightHand")
    labels = with_positions(good(), lambda positions: positions[12, wrist].fill(9))
    confidences = labels.confidences.copy()
    confidences[12, wrist] = 0
    assert wrist_speeds(replace(labels, confidences=confidences), times(30)).max() < 1


def without(labels: VideoLabels, side: str) -> VideoLabels:
    """The labels with a hand that is never known."""
    confidences = labels.confidences.copy()
    confidences[:, [name.startswith(side) for name in labels.joint_names]] = 0
    return replace(labels, confidences=confidences)


def folder_findings(*labels: VideoLabels) -> dict[str, str]:
    found = find_in_folder([measure(item, times(30)) for item in labels])
    return {finding.kind: finding.message for finding in found}


def test_joints_are_counted_over_all_videos_and_said_once() -> None:
    some = tuple(name for name in KEYPOINTS if name != "leftHand")
    message = folder_findings(good(joints=some), good(joints=some))["joints"]
    assert message.startswith("11 of the paper's 52 joints and 11 of 12 keypoints are known, and used; not ")
    assert "'elbow'" in folder_findings(good(joints=("elbow", "wrist")))["joints"]
    assert folder_findings(good(), good(joints=some)) == {}
    assert folder_findings() == {}


def test_a_hand_that_no_video_knows_is_named_and_not_counted() -> None:
    message = folder_findings(without(good(), "left"), without(good(), "left"))["joints"]
    assert message == (
        "26 of the paper's 52 joints and 6 of 12 keypoints are known, and used; never known: the left hand "
        "(26 joints)"
    )
    assert folder_findings(without(good(), "left"), good()) == {}, "one video knows it"
    assert measure(without(good(), "left"), times(30)).known_joints == PAPER_JOINTS[:26]


def test_millimetres_a_camera_the_wrong_way_and_foreign_intrinsics_are_noticed() -> None:
    def scale(positions: npt.NDArray[np.float32]) -> None:
        positions *= 1000

    def turn(positions: npt.NDArray[np.float32]) -> None:
        positions[..., 1:] *= -1

    assert "are positions in metres?" in kinds(with_positions(good(), scale))["extent"]
    assert kinds(with_positions(good(), turn))["behind_camera"].startswith("100% of the joints lie behind")
    foreign = replace(
        good(), intrinsics=np.diag([1, 1, 0]) * 1000.0 + np.array([[0, 0, 960], [0, 0, 540], [0, 0, 1]])
    )
    assert kinds(foreign)["outside_frame"].startswith("100% of the hands' joints")


def test_what_is_not_known_of_the_camera_is_said() -> None:
    assert "cannot be drawn" in kinds(replace(good(), intrinsics=None))["intrinsics"]
    assert "without camera poses" in kinds(replace(good(), reference_frame="world"))["reference_frame"]
    unknown = replace(good(), confidences=np.zeros((30, 52), dtype=np.float32))
    assert kinds(unknown)["no_confidence"].startswith("every confidence is 0")


@pytest.mark.parametrize(
    ("labelled", "words"), [(28, "labels for 28 of 30 frames"), (31, "last rows unused")]
)
def test_counts_that_differ_are_a_warning(labelled: int, words: str) -> None:
    assert words in kinds(good(labelled))["num_frames"]


@given(st.integers(0, 500), st.integers(0, 500))
def test_fewer_labels_than_frames_are_always_allowed_and_many_more_never(
    labelled: int, in_video: int
) -> None:
    if labelled > in_video + max(2, in_video // 50):
        with pytest.raises(LabelError, match=f"{labelled} frames, the video has {in_video}"):
            check_num_frames(labelled, in_video)
    else:
        check_num_frames(labelled, in_video)


@pytest.mark.parametrize("frames", [0, 1])
def test_labels_of_no_or_one_frame_can_be_measured(frames: int) -> None:
    figures = measure(good(frames), times(30))
    assert (figures.held_share, figures.jumps, figures.fastest_frame) == (0.0, 0, -1)
    assert "num_frames" in kinds(good(frames))
