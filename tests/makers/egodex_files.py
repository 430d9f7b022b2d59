"""Label files as EgoDex has them: two open hands that wave in front of a camera that moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from thinkjepa.stages.data.joints import EGODEX_JOINTS


class WriteEgodex(Protocol):
    """See `write_egodex`."""

    def __call__(
        self,
        path: Path,
        num_frames: int = 60,
        size: tuple[int, int] = (160, 128),
        seed: int = 0,
        change: Callable[[Any], None] | None = None,
    ) -> Path: ...


@pytest.fixture(scope="session")
def write_egodex() -> WriteEgodex:
    """A function that writes an EgoDex label file with all 69 transforms and returns its path.

    A camera that moves, in a world whose origin and axes depend on `seed`, and two open hands in front of it
    that wave, inside frames of `size` (width, height) px. `change` gets the open HDF5 file at the end.
    """
    return _write_egodex


def _write_egodex(
    path: Path,
    num_frames: int = 60,
    size: tuple[int, int] = (160, 128),
    seed: int = 0,
    change: Callable[[Any], None] | None = None,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    focal_px = 0.8 * size[0]
    cameras = _moving_camera(num_frames, seed)
    with h5py.File(path, "w") as file:
        intrinsic = [[focal_px, 0, size[0] / 2], [0, focal_px, size[1] / 2], [0, 0, 1]]
        file["camera/intrinsic"] = np.array(intrinsic, dtype=np.float32)
        file["transforms/camera"] = cameras.astype(np.float32)
        for joint in EGODEX_JOINTS:
            seen = np.tile(np.eye(4), (num_frames, 1, 1))
            seen[:, :3, 3] = _seen_joint(joint, num_frames)
            file[f"transforms/{joint}"] = (cameras @ seen).astype(np.float32)
            file[f"confidences/{joint}"] = np.full(num_frames, 0.55 + 0.4 * ("Hand" in joint), np.float32)
        texts = ("Pour water from the jug.", "Pour water back into the jug.")
        file.attrs.update({"llm_description": texts[0], "llm_description2": texts[1]})
        file.attrs.update({"which_llm_description": "1", "llm_type": "reversible"})
        if change:
            change(file)
    return path


def _moving_camera(num_frames: int, seed: int) -> npt.NDArray[np.float64]:
    """Poses (frame, 4, 4), camera to world: a slow turn and drift in a world of its own."""
    random = np.random.default_rng(seed)
    start, _ = np.linalg.qr(random.normal(size=(3, 3)))
    angles = 0.004 * np.arange(num_frames)
    poses = np.tile(np.eye(4), (num_frames, 1, 1))
    poses[:, 0, 0] = poses[:, 2, 2] = np.cos(angles)
    poses[:, 0, 2], poses[:, 2, 0] = np.sin(angles), -np.sin(angles)
    poses[:, :3, :3] = start * np.linalg.det(start) @ poses[:, :3, :3]
    poses[:, :3, 3] = random.normal(size=3) * 5 + np.arange(num_frames)[:, None] * 0.001
    return poses


def _seen_joint(joint: str, num_frames: int) -> npt.NDArray[np.float64]:
    """Positions (frame, 3) as the camera sees them, metres: x right, y down, z forward."""
    fingers, parts = (
        ("Thumb", "Index", "Middle", "Ring", "Little"),
        ("Meta", "Knuckle", "Base", "IntermediateTip"),
    )
    side = 1 if joint.startswith("right") else -1
    wave = np.arange(num_frames) / 12 + side
    wrist = np.stack([side * 0.14 + 0.03 * np.sin(wave), 0.1 + 0.02 * np.cos(wave), 0.5 + 0 * wave], axis=1)
    number = next((place for place, name in enumerate(fingers) if name in joint), None)
    if number is None:
        return wrist + {"Hand": [0, 0, 0], "Forearm": [side * 0.05, 0.12, 0]}.get(
            joint[5 - (side < 0) :], [0, 0.3, 0]
        )
    along = next((place for place, name in enumerate(parts) if name in joint), 4)
    angle = -side * (0.75 - 0.32 * number)
    length = 0.03 + 0.022 * along
    return wrist + np.array([np.sin(angle) * length, -np.cos(angle) * length, -0.004 * along])
