"""The pose archive: all that a rendering knows about its episodes, in one small file.

`poses.npz` (no pickle) holds the hand's skeleton, what its hinges and the camera do frame by frame, and the
facts of each episode. Joints are made from that again (`Skeleton.joint_poses`): 30 smooth channels are a
tenth of 23 joints' positions and rotations. Channels are rounded to steps, and their second differences
compressed: hands accelerate little from frame to frame.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thinkjepa.cache import ThinkJepaError
from thinkjepa.pipeline.sample.skeleton import NUM_BASE, Skeleton

Floats = npt.NDArray[np.float64]

Bytes = npt.NDArray[np.uint8]

POSES_FILE = "poses.npz"

VERSION = 1

STEP_M, STEP_RAD = 2e-5, 2e-5
"""Rounding moves a fingertip, at the end of six hinges 0.2 m from the wrist, by less than 0.05 mm."""

CHECKED_JOINTS = ("rightHand", "rightThumbTip", "rightIndexFingerTip", "rightLittleFingerTip")

CHECKED_FRAMES = 3

SKELETON_TEXTS = ("bodies", "joints")


class ArchiveError(ThinkJepaError):
    """A pose archive is missing, damaged, or of another version."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What happens in an episode, and what of it the video tells when."""

    video: str
    """Path in the folder: `<task>/<i>.mp4`."""
    task: str
    description: str
    verb: str
    object: str
    """What is taken: colour and kind."""
    objects: tuple[str, ...]
    """Everything that might have been taken, of different colours; the taken one first."""
    place: str
    """left, middle or right of the three pads."""
    object_m: tuple[float, float, float]
    """Where the object stands at first: x right, y up, z towards the wearer, metres."""
    place_m: tuple[float, float, float]
    """Where its middle is in the end."""
    condition: str
    """`cue`: a card tells object and place before the split; `late-cue`: after it; `no-cue`: no card."""
    card_frames: tuple[int, int]
    """First frame with the card, first frame without it again."""
    split_frame: int
    """First frame after which the hand may show where it goes; the card is gone before, for `cue`."""
    grasp_frame: int
    """First frame in which the object is held."""
    release_frame: int
    """First frame in which it is not held any more."""
    num_frames: int
    fps: int
    seed: int
    episode: int


@dataclass(frozen=True, slots=True)
class Episode:
    """One episode's numbers. World: x right, y forward, z up, metres."""

    facts: Facts
    hand: Floats
    """`(frame, channel)`: states of the skeleton."""
    camera: Floats
    """`(frame, 6)`: position (m), yaw, pitch and roll (rad)."""
    intrinsics: Floats
    """`(3, 3)` in pixels of the video."""


def write_archive(path: Path, skeleton: Skeleton, episodes: Sequence[Episode]) -> None:
    """Write all episodes; the same bytes for the same numbers."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "version": np.array(VERSION),
        "facts": _bytes(json.dumps([asdict(episode.facts) for episode in episodes])),
        "hand": _encode([episode.hand / _steps(episode.hand.shape[1]) for episode in episodes]),
        "camera": _encode([episode.camera / _steps(6) for episode in episodes]),
        "intrinsics": np.array([episode.intrinsics for episode in episodes]),
        "checked_m": np.array([checked_positions_m(skeleton, episode.hand) for episode in episodes]),
    }
    for part in fields(Skeleton):
        value = getattr(skeleton, part.name)
        arrays[part.name] = _bytes(json.dumps(value)) if part.name in SKELETON_TEXTS else value
    np.savez_compressed(path, allow_pickle=False, **arrays)


def read_archive(path: Path) -> tuple[Skeleton, list[Episode]]:
    """The skeleton and all episodes. Raises ArchiveError for anything but a whole archive of this version."""
    if not path.is_file():
        raise ArchiveError(f"{str(path)!r} is missing: a folder of episodes has the poses beside the videos")
    try:
        # Opened here: numpy leaves the files that it opens open where they are damaged.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return _parse(arrays)
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ArchiveError(f"{str(path)!r} is not a pose archive of version {VERSION}: {error}") from error


def checked_positions_m(skeleton: Skeleton, hand: Floats) -> npt.NDArray[np.float32]:
    """Positions `(3, 4, 3)` of a few joints in the first, middle and last frame, to check an archive by."""
    frames = np.linspace(0, len(hand) - 1, CHECKED_FRAMES).astype(int)
    joints = [skeleton.joints.index(name) for name in CHECKED_JOINTS]
    return np.asarray(skeleton.joint_poses(hand[frames])[:, joints, :3, 3], np.float32)


def stored_checks_m(path: Path) -> npt.NDArray[np.float32]:
    """What `checked_positions_m` gave for each episode before rounding: `(episode, 3, 4, 3)`."""
    with np.load(path, allow_pickle=False) as file:
        return np.asarray(file["checked_m"], np.float32)


def _parse(arrays: dict[str, npt.NDArray[Any]]) -> tuple[Skeleton, list[Episode]]:
    if int(arrays["version"]) != VERSION:
        raise ValueError(f"it has version {int(arrays['version'])}")
    texts: dict[str, Any] = {name: tuple(_json(arrays[name])) for name in SKELETON_TEXTS}
    numbers: dict[str, Any] = {
        part.name: arrays[part.name] for part in fields(Skeleton) if part.name not in texts
    }
    skeleton = Skeleton(**texts, **numbers)
    facts = [_facts(values) for values in _json(arrays["facts"])]
    frames = [item.num_frames for item in facts]
    hands = _decode(arrays["hand"], frames)
    cameras = _decode(arrays["camera"], frames)
    rows = zip(facts, hands, cameras, arrays["intrinsics"], strict=True)
    return skeleton, [
        Episode(item, hand * _steps(hand.shape[1]), camera * _steps(6), intrinsics)
        for item, hand, camera, intrinsics in rows
    ]


def _facts(values: dict[str, Any]) -> Facts:
    lists: dict[str, Any] = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Facts(**{**values, **lists})


def _steps(num_channels: int) -> Floats:
    """A position, then angles."""
    steps = np.full(num_channels, STEP_RAD)
    steps[: NUM_BASE // 2] = STEP_M
    return steps


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


def _decode(planes: Bytes, frames: Sequence[int]) -> list[Floats]:
    """The rounded numbers of each episode."""
    unsigned = np.ascontiguousarray(np.moveaxis(planes, 0, -1)).view("<u4")[..., 0].astype(np.int64)
    whole = np.where(unsigned % 2 == 1, -(unsigned + 1) // 2, unsigned // 2).T
    if len(whole) != sum(frames):
        raise ValueError(f"it has {len(whole)} frames, its episodes {sum(frames)}")
    parts = np.split(whole, np.cumsum(frames)[:-1])
    return [np.cumsum(np.cumsum(part, axis=0), axis=0).astype(np.float64) for part in parts]


def _bytes(text: str) -> Bytes:
    return np.frombuffer(text.encode(), np.uint8)


def _json(values: npt.NDArray[Any]) -> Any:
    return json.loads(values.tobytes().decode())
