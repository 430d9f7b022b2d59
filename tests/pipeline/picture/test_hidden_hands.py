"""Hands that cannot be placed in a picture are left out, and the captions say so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from thinkjepa.cache import VideoLabels
from thinkjepa.pipeline.cli.predict import described_distance
from thinkjepa.pipeline.picture.labels import Tile
from thinkjepa.pipeline.picture.overlay import VIDEO_ENDED, drawn_frames
from thinkjepa.stages.data.framing import Box
from thinkjepa.stages.predict.frames import ChosenFrames
from thinkjepa.stages.predict.prediction import PredictedHands

JOINTS = ("rightHand", "rightIndexFingerTip", "leftHand")
FRAMES = ChosenFrames(2, 0.2, (0, 1), (0, 1), (0.0, 0.1), (2, 3), (0.2, 0.3), fps=10)
LABELS = VideoLabels(
    source="test",
    reference_frame="camera",
    joint_names=JOINTS,
    positions_m=np.full((4, 3, 3), 0.5, np.float32),
    confidences=np.ones((4, 3), np.float32),
    intrinsics=np.array([[100.0, 0, 64], [0, 100, 48], [0, 0, 1]]),
)


def hands(
    *, intrinsics: bool = True, predicted_z: tuple[float, ...], true_z: tuple[float, ...]
) -> PredictedHands:
    """Hands at these depths in the first of two future frames, and before the camera in the second."""
    positions_m = np.full((2, 2, 3, 3), 0.5, np.float32)
    positions_m[0, 0, :, 2], positions_m[1, 0, :, 2] = predicted_z, true_z
    known = np.ones((2, 3), np.float32)
    known[0, 2] = 0
    labels = LABELS if intrinsics else replace(LABELS, intrinsics=None)
    return PredictedHands(JOINTS, positions_m[0], "camera", labels, positions_m[1], known, None, None)


def test_joints_behind_the_camera_are_left_out_and_counted() -> None:
    shown = hands(predicted_z=(0.5, -0.1, -0.2), true_z=(-0.5, 0.5, -1.0))
    *_, first, second = drawn_frames(FRAMES, shown)
    assert first.predicted is not None
    assert first.true is not None
    assert np.isfinite(first.predicted).all(axis=1).tolist() == [True, False, False]
    assert np.isfinite(first.true).all(axis=1).tolist() == [False, True, False]
    assert first.note == "behind the camera, not drawn: 2 predicted and 1 true joints"
    assert second.note == ""


def test_hands_without_a_camera_are_left_out() -> None:
    shown = hands(intrinsics=False, predicted_z=(0.5, 0.5, 0.5), true_z=(0.5, 0.5, 0.5))
    assert all(frame.predicted is frame.true is None for frame in drawn_frames(FRAMES, shown))
    assert [frame.caption.endswith("mm apart") for frame in drawn_frames(FRAMES, shown)][2:] == [True, True]


def test_a_tile_counts_known_joints_without_a_pixel() -> None:
    points = np.array([[1.0, 2.0], [np.nan, np.nan], [np.nan, np.nan]])
    tile = Tile(0, 0.0, np.zeros((4, 4, 3), np.uint8), points, np.array([1.0, 0.5, 0.0]), (), Box(0, 0, 4, 4))
    assert tile.num_behind == 1


def test_past_the_end_of_a_video_its_last_frame_stays_and_the_caption_says_so() -> None:
    """The last frame of the future, not the last observed one; of a video that ends at the split that one."""
    shown = hands(predicted_z=(0.5, 0.5, 0.5), true_z=(0.5, 0.5, 0.5))
    whole, part, none = (
        list(drawn_frames(replace(FRAMES, future=future), shown))[2:] for future in ((2, 3), (2,), ())
    )
    assert [(frame.frame, frame.note) for frame in whole] == [(2, ""), (3, "")]
    assert [(frame.frame, frame.note) for frame in part] == [(2, ""), (2, VIDEO_ENDED)]
    assert [(frame.frame, frame.note) for frame in none] == [(1, VIDEO_ENDED), (1, VIDEO_ENDED)]


def test_the_distance_is_told_next_to_that_of_a_hand_that_stays() -> None:
    """In the first frame the last joint is not labelled, so that nothing is known of it there."""
    moved = replace(
        hands(predicted_z=(0.5, 0.6, 0.5), true_z=(0.5, 0.5, 0.5)),
        last_pose_m=np.array([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0.5, 0.5, 0.6]], np.float32),
    )
    assert moved.distance_m == pytest.approx(0.02)  # of five joint-frames one is 10 cm off
    assert moved.still_distance_m == pytest.approx(0.02)
    told = ", 20.0 mm from the true hand, which is 20.0 mm from where it was last observed"
    assert described_distance(moved, 2) == told
    assert described_distance(moved, 3) == f"{told} (in the 2 frames with labels)"
    unseen = replace(moved, last_pose_m=np.array([[0.5] * 3, [0.5] * 3, [np.nan] * 3], np.float32))
    assert unseen.still_distance_m is None, "the joint came into view later"
    assert described_distance(unseen, 2) == ", 20.0 mm from the true hand"
    assert described_distance(replace(moved, true_confidence=np.zeros((2, 3))), 2) == ""
