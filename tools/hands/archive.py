"""Writing of the pose archive that `thinkjepa.pipeline.sample.episodes` reads, and joints to check it by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thinkjepa.pipeline.sample.episodes import SKELETON_TEXTS, VERSION, Episode, channel_steps
from thinkjepa.pipeline.sample.skeleton import Skeleton

Floats = npt.NDArray[np.float64]

Bytes = npt.NDArray[np.uint8]

CHECKED_JOINTS = ("rightHand", "rightThumbTip", "rightIndexFingerTip", "rightLittleFingerTip")

CHECKED_FRAMES = 3


def write_archive(path: Path, skeleton: Skeleton, episodes: Sequence[Episode]) -> None:
    """Write all episodes; the same bytes for the same numbers."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "version": np.array(VERSION),
        "facts": _bytes(json.dumps([asdict(episode.facts) for episode in episodes])),
        "hand": _encode([episode.hand / channel_steps(episode.hand.shape[1]) for episode in episodes]),
        "camera": _encode([episode.camera / channel_steps(6) for episode in episodes]),
        "intrinsics": np.array([episode.intrinsics for episode in episodes]),
        "checked_m": np.array([checked_positions_m(skeleton, episode.hand) for episode in episodes]),
    }
    for part in fields(Skeleton):
        value = getattr(skeleton, part.name)
        arrays[part.name] = _bytes(json.dumps(value)) if part.name in SKELETON_TEXTS else value
    np.savez_compressed(path, allow_pickle=False, **arrays)


def checked_positions_m(skeleton: Skeleton, hand: Floats) -> npt.NDArray[np.float32]:
    """Positions `(3, 4, 3)` of a few joints in the first, middle and last frame, to check an archive by."""
    frames = np.linspace(0, len(hand) - 1, CHECKED_FRAMES).astype(int)
    joints = [skeleton.joints.index(name) for name in CHECKED_JOINTS]
    return np.asarray(skeleton.joint_poses(hand[frames])[:, joints, :3, 3], np.float32)


def stored_checks_m(path: Path) -> npt.NDArray[np.float32]:
    """The positions of `checked_positions_m` before rounding, `(episode, 3, 4, 3)`."""
    with np.load(path, allow_pickle=False) as file:
        return np.asarray(file["checked_m"], np.float32)


def _encode(parts: Sequence[Floats]) -> Bytes:
    """Rounded numbers `(frame, channel)` of episodes as second differences: `(byte, channel, all frames)`."""
    differences = [
        np.diff(np.rint(part).astype(np.int64), n=2, axis=0, prepend=np.zeros((2, part.shape[1]), np.int64))
        for part in parts
    ]
    whole = np.concatenate(differences).T
    assert np.abs(whole).max() < 2**31, "all values are below 40 km and 6,000 turns"
    # Small numbers of either sign become small ones without sign, so that their upper bytes are all 0.
    unsigned = np.where(whole < 0, -2 * whole - 1, 2 * whole).astype("<u4")
    return np.ascontiguousarray(np.moveaxis(unsigned[..., None].view(np.uint8), -1, 0))


def _bytes(text: str) -> Bytes:
    return np.frombuffer(text.encode(), np.uint8)
