"""The contract of label formats: a reader turns a file into the joints of a video, with checked numbers.

Shape letters: F frames, J joints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thinkjepa.cache import VideoLabels
from thinkjepa.stages.errors import StageError

Positions = npt.NDArray[np.float32]
Poses = npt.NDArray[np.float64]

MAX_FILE_BYTES = 2 * 2**30
"""Limit of a file and of what it declares to hold: 2.2 hours of EgoDex's 69 transforms at 30 Hz."""

MAX_EXPANSION = 1032
"""Deflate makes at most this much of a byte: a file that declares more was never written."""

ANY_SAMPLES = 1_000_000
"""Samples that a file of any size may declare: a joint table may have few rows in a long video."""

MAX_JOINTS = 1000
MAX_NAME = 200
MAX_TEXT = 2**16
"""Characters of a joint's name, and of a description."""

MAX_FRAMES = 1_000_000
MAX_SAMPLES = 20_000_000
"""Frames times joints: 80 hours of one joint, 2.7 hours of 68, at 30 Hz; 240 MB of positions."""

ROTATION_TOLERANCE = 1e-3
"""Largest error of R'R against the identity: float32 poses are within 1e-5, mixed-up axes are not."""

EXTRA_FRAMES = 2

EXTRA_SHARE = 0.02
"""A label file may have this many frames more than its video, and at least `EXTRA_FRAMES`: recorders stop one
or two frames apart. Beyond that it belongs to another video, or to another frame rate."""


class LabelError(StageError):
    """A label file cannot be used. Readers leave the file's name out, which whoever calls them adds."""


@dataclass(frozen=True, slots=True)
class LabelReader:
    """A format of label files. A module of `labels/formats` offers one as `READER`, and is found by that.

    `read` and `read_folder` return labels without a video's name and digests. They raise LabelError for a
    broken file, OSError for one that cannot be opened.
    """

    suffixes: tuple[str, ...]
    """Ends of label file names after the video's stem: `pour/0.mp4` has its labels in `pour/0.hdf5`."""
    read: Callable[[Path], VideoLabels]
    """Reads the label file of one video."""
    folder_files: tuple[str, ...] = ()
    """Names of files with labels of the videos in their folder and below it."""
    read_folder: Callable[[Path], Mapping[str, Callable[[], VideoLabels]]] = lambda path: {}
    """Reads a folder's file: the labels by the video's path under the folder, each made when called."""


def check_values(labels: VideoLabels) -> None:
    """Raise LabelError where a name or a number is not possible, naming joint and frame."""
    check_names(labels.joint_names)
    if len(labels.description) > MAX_TEXT:
        raise LabelError(
            f"its description has {len(labels.description):,} characters, of {MAX_TEXT:,} allowed"
        )
    _check_positions(labels.positions_m, labels.joint_names)
    _check_confidences(labels.confidences, labels.joint_names)
    if labels.camera_poses is not None:
        _check_poses(labels.camera_poses)
    if labels.intrinsics is not None:
        _check_intrinsics(labels.intrinsics)


def check_num_frames(labelled: int, in_video: int) -> None:
    """Raise LabelError where a label file has far more frames than its video."""
    if labelled > in_video + max(EXTRA_FRAMES, int(EXTRA_SHARE * in_video)):
        raise LabelError(
            f"has labels for {labelled} frames, the video has {in_video}: is it of another video, or "
            "of another frame rate? There is one row a frame"
        )


def check_size(path: Path) -> None:
    """Raise LabelError for a file that is larger than any labels, before it is read. Raises OSError."""
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise LabelError(f"has {size:,} bytes, {MAX_FILE_BYTES:,} are allowed: cut the video and its labels")


def check_names(joints: Sequence[str]) -> None:
    """Raise LabelError where joints could not be named by a flag, or are too many, or one is there twice."""
    if len(joints) > MAX_JOINTS:
        raise LabelError(f"has {len(joints):,} joints, of {MAX_JOINTS:,} allowed")
    for name in joints:
        if not name.strip() or not name.isprintable() or "," in name or len(name) > MAX_NAME:
            raise LabelError(
                f"joint {name[:MAX_NAME]!r} is no name: printable, without commas, 1 to {MAX_NAME} characters"
            )
    if len(set(joints)) < len(joints):
        raise LabelError("has a joint of the same name twice")


def check_extent(num_frames: int, num_joints: int, *, file_bytes: int) -> None:
    """Raise LabelError before anything of that size is allocated."""
    held = max(ANY_SAMPLES, MAX_EXPANSION * file_bytes)
    if num_frames * num_joints > held:
        raise LabelError(
            f"declares more than the file can hold: {num_frames:,} frames of {num_joints:,} joints in "
            f"{file_bytes:,} bytes"
        )
    if num_frames > MAX_FRAMES or num_frames * num_joints > MAX_SAMPLES:
        raise LabelError(
            f"{num_frames:,} frames of {num_joints:,} joints are more than the {MAX_FRAMES:,} frames and "
            f"{MAX_SAMPLES:,} samples allowed: cut the video and its labels"
        )


def _check_positions(positions_m: Positions, joints: tuple[str, ...]) -> None:
    if index := _first(~np.isfinite(positions_m).all(axis=-1)):
        frame, joint = index
        value = positions_m[frame, joint].tolist()
        raise LabelError(f"{joints[joint]!r} at frame {frame} is {value}: positions are finite metres")


def _check_confidences(confidences: Positions, joints: tuple[str, ...]) -> None:
    if index := _first(~((confidences >= 0) & (confidences <= 1))):
        frame, joint = index
        raise LabelError(
            f"the confidence of {joints[joint]!r} at frame {frame} is {confidences[frame, joint]:g}: allowed "
            "are 0 to 1"
        )


def _check_poses(poses: Poses) -> None:
    if index := _first(~np.isfinite(poses).all(axis=(1, 2))):
        raise LabelError(f"the camera's pose at frame {index[0]} is not finite")
    rotations = poses[:, :3, :3]
    with np.errstate(over="ignore", invalid="ignore"):  # huge entries become inf, which is refused below
        errors = np.abs(np.swapaxes(rotations, 1, 2) @ rotations - np.eye(3)).max(axis=(1, 2))
        errors = np.maximum(errors, np.abs(poses[:, 3] - [0, 0, 0, 1]).max(axis=1))
        wrong = ~((errors <= ROTATION_TOLERANCE) & (np.linalg.det(rotations) > 0))
    if index := _first(wrong):
        raise LabelError(
            f"the camera's pose at frame {index[0]} is no rotation and translation: expected an orthonormal, "
            "right-handed 3 x 3 part and a last row of 0 0 0 1"
        )


def _check_intrinsics(matrix: Poses) -> None:
    lower = matrix[[1, 2, 2], [0, 0, 1]]
    if not np.isfinite(matrix).all() or matrix[0, 0] <= 0 or matrix[1, 1] <= 0 or lower.any():
        raise LabelError(f"intrinsics {matrix.tolist()} are no camera: expected fx 0 cx, 0 fy cy, 0 0 1")
    if matrix[2, 2] != 1:
        raise LabelError(f"intrinsics end in {matrix[2, 2]:g}, expected 1")


def _first(wrong: Any) -> tuple[int, ...]:
    """The first index of a boolean array that is true, in order of frames; empty where none is."""
    found = np.argwhere(wrong)
    return tuple(found[0].tolist()) if len(found) else ()
