"""What every reader of hand labels gives: joints of one file, checked, not yet tied to a video.

Shape letters: F frames, J joints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thinkjepa.cache import ReferenceFrame, VideoLabels
from thinkjepa.stages.errors import StageError

Positions = npt.NDArray[np.float32]
Poses = npt.NDArray[np.float64]

MAX_FILE_BYTES = 2 * 2**30
"""Of one file and of what it declares to hold: 2.2 hours of EgoDex's 69 transforms at 30 Hz."""

MAX_FRAMES = 1_000_000
MAX_SAMPLES = 20_000_000
"""Frames times joints: 80 hours of one joint, 2.7 hours of 68, at 30 Hz; 240 MB of positions."""

ROTATION_TOLERANCE = 1e-3
"""Largest error of R'R against the identity: float32 poses are within 1e-5, mixed-up axes are not."""


class LabelError(StageError):
    """A label file cannot be used. The message does not name the file: whoever reads it knows."""


@dataclass(frozen=True, slots=True)
class LabelFile:
    """Joints of one label file, one sample a frame, as `VideoLabels` has them.

    Raises LabelError where a number is not finite or not possible, naming joint and frame.
    """

    source: str
    """Which reader made it."""
    reference_frame: ReferenceFrame
    joint_names: tuple[str, ...]
    positions_m: Positions
    """`(F, J, 3)`, metres."""
    confidences: Positions
    """`(F, J)`, 0 to 1; 0 where nothing is known."""
    camera_poses: Poses | None = None
    """`(F, 4, 4)`, camera to world; x right, y down, z forward."""
    intrinsics: Poses | None = None
    """`(3, 3)`, pixels."""
    description: str = ""

    def __post_init__(self) -> None:
        _check_positions(self.positions_m, self.joint_names)
        _check_confidences(self.confidences, self.joint_names)
        if self.camera_poses is not None:
            _check_poses(self.camera_poses)
        if self.intrinsics is not None:
            _check_intrinsics(self.intrinsics)

    @property
    def num_frames(self) -> int:
        return len(self.positions_m)

    def of_video(self, name: str, *, video_digest: str, label_digest: str) -> VideoLabels:
        """The labels as the cache stores them."""
        return VideoLabels(
            video_digest=video_digest,
            video=name,
            source=self.source,
            label_digest=label_digest,
            reference_frame=self.reference_frame,
            joint_names=self.joint_names,
            positions_m=self.positions_m,
            confidences=self.confidences,
            camera_poses=self.camera_poses,
            intrinsics=self.intrinsics,
            description=self.description,
        )


def check_extent(num_frames: int, num_joints: int) -> None:
    """Raise LabelError before anything of that size is allocated."""
    if num_frames > MAX_FRAMES or num_frames * num_joints > MAX_SAMPLES:
        raise LabelError(
            f"{num_frames:,} frames of {num_joints:,} joints are more than the {MAX_FRAMES:,} frames and "
            f"{MAX_SAMPLES:,} samples allowed: cut the video and its labels"
        )


def _check_positions(positions_m: Positions, joints: tuple[str, ...]) -> None:
    if place := _first(~np.isfinite(positions_m).all(axis=-1)):
        frame, joint = place
        value = positions_m[frame, joint].tolist()
        raise LabelError(f"{joints[joint]!r} at frame {frame} is {value}: positions are finite metres")


def _check_confidences(confidences: Positions, joints: tuple[str, ...]) -> None:
    if place := _first(~((confidences >= 0) & (confidences <= 1))):
        frame, joint = place
        raise LabelError(
            f"the confidence of {joints[joint]!r} at frame {frame} is {confidences[frame, joint]:g}: allowed "
            "are 0 to 1"
        )


def _check_poses(poses: Poses) -> None:
    if place := _first(~np.isfinite(poses).all(axis=(1, 2))):
        raise LabelError(f"the camera's pose at frame {place[0]} is not finite")
    rotations = poses[:, :3, :3]
    with np.errstate(over="ignore", invalid="ignore"):  # huge entries become inf, which is refused below
        errors = np.abs(np.swapaxes(rotations, 1, 2) @ rotations - np.eye(3)).max(axis=(1, 2))
        errors = np.maximum(errors, np.abs(poses[:, 3] - [0, 0, 0, 1]).max(axis=1))
        wrong = ~((errors <= ROTATION_TOLERANCE) & (np.linalg.det(rotations) > 0))
    if place := _first(wrong):
        raise LabelError(
            f"the camera's pose at frame {place[0]} is no rotation and translation: expected an orthonormal, "
            "right-handed 3 x 3 part and a last row of 0 0 0 1"
        )


def _check_intrinsics(matrix: Poses) -> None:
    lower = matrix[[1, 2, 2], [0, 0, 1]]
    if not np.isfinite(matrix).all() or matrix[0, 0] <= 0 or matrix[1, 1] <= 0 or lower.any():
        raise LabelError(f"intrinsics {matrix.tolist()} are no camera: expected fx 0 cx, 0 fy cy, 0 0 1")
    if matrix[2, 2] != 1:
        raise LabelError(f"intrinsics end in {matrix[2, 2]:g}, expected 1")


def _first(wrong: Any) -> tuple[int, ...]:
    """The first place of a boolean array that is true, in order of frames; empty where none is."""
    places = np.argwhere(wrong)
    return tuple(int(index) for index in places[0]) if len(places) else ()
