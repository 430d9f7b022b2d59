"""Episodes of a simulated hand: videos with a pose archive.

`poses.npz` (no pickle) holds the hand's skeleton, the hinges and the camera frame by frame, and the facts of
each episode. Joints are computed from that again (`Skeleton.joint_poses`): 30 smooth channels are a tenth of
the positions and rotations of 23 joints. Channels are rounded to steps, and their second differences are
compressed, as hands accelerate little from frame to frame. `tools/hands` writes the archive.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from thinkjepa.cache import ThinkJepaError
from thinkjepa.cache.disk.json_text import parse_json
from thinkjepa.pipeline.sample.skeleton import NUM_BASE, Skeleton, camera_poses

Floats = npt.NDArray[np.float64]

POSES_FILE = "poses.npz"

VERSION = 2

VIDEO_NAME = r"[\w-]+(/[\w-]+)*\.mp4"
"""An episode's video, by its path in a folder: it never leads out of it."""

MAX_BYTES = 256 * 2**20
"""Of an archive unpacked: hours of episodes. A few kB can declare more."""

STEP_M, STEP_RAD = 2e-5, 2e-5
"""Rounding moves a fingertip, at the end of six hinges 0.2 m from the wrist, by less than 0.05 mm."""

PLACES = ("left", "middle", "right")
"""Names of the three pads, from left to right."""

SKELETON_TEXTS = ("bodies", "joints")

Y_UP = np.array([[1.0, 0, 0, 0], [0, 0, 1.0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1.0]])
"""From our world, z up as in MuJoCo, to that of EgoDex, y up as in ARKit."""


class ArchiveError(ThinkJepaError):
    """A pose archive is missing, damaged, or of another version."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The events of an episode, and when its video tells them."""

    video: str
    """Path in the folder: `<task>/<i>.mp4`."""
    task: str
    description: str
    verb: str
    object: str
    """Color and kind of the thing that is taken."""
    objects: tuple[str, ...]
    """Everything that might have been taken, of different colors; the taken one first."""
    place: str
    """left, middle or right of the three pads."""
    objects_m: tuple[tuple[float, float, float], ...]
    """First positions of `objects`: x right, y up, z towards the wearer, metres."""
    places_m: tuple[tuple[float, float, float], ...]
    """Positions of the object's middle on the pads, from left to right."""
    condition: str
    """When a card tells object and place: `cue`, gone half a second before the split; `late-cue`, there until
    the split; `no-cue`, never: the card is neutral."""
    card_frames: tuple[int, int]
    """First frame with the card, first frame without it again."""
    split_frame: int
    """First frame after which the hand may show where it goes; the card is gone before, for `cue`."""
    grasp_frame: int
    """First frame in which the object is held."""
    release_frame: int
    """First frame in which it is not held any more: it is on its pad."""
    back_frames: tuple[int, int]
    """First frame in which it is held again, to be put back, and the first in which it is not any more."""
    seen_pair: bool
    """Whether training shows its pair of color and place too; some are in test episodes only."""
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


def read_archive(path: Path) -> tuple[Skeleton, list[Episode]]:
    """The skeleton and all episodes. Raises ArchiveError for anything but a whole archive of this version."""
    if not path.is_file():
        raise ArchiveError(f"{str(path)!r} is missing: a folder of episodes has the poses next to the videos")
    try:
        # Opened here: numpy leaves the files that it opens open where they are damaged.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            _check_size(opened)
            arrays = {name: file[name] for name in file.files}
        return _parse(arrays)
    except Exception as error:  # zipfile, zlib, numpy and json raise a dozen kinds for a damaged archive
        raise ArchiveError(f"{str(path)!r} is not a pose archive of version {VERSION}: {error}") from error


def _check_size(archive: BinaryIO) -> None:
    with zipfile.ZipFile(archive) as file:
        held_bytes = sum(item.file_size for item in file.infolist())
    if held_bytes > MAX_BYTES:
        raise ValueError(f"it declares {held_bytes:,} bytes, of {MAX_BYTES:,} allowed")


def _parse(arrays: dict[str, npt.NDArray[Any]]) -> tuple[Skeleton, list[Episode]]:
    version = int(arrays["version"])
    if version not in (1, VERSION):
        raise ValueError(f"it has version {version}")
    texts: dict[str, Any] = {name: tuple(_json(arrays[name])) for name in SKELETON_TEXTS}
    numbers: dict[str, Any] = {
        part.name: arrays[part.name] for part in fields(Skeleton) if part.name not in texts
    }
    skeleton = Skeleton(**texts, **numbers)
    facts = [_facts(_of_version_1(values) if version == 1 else values) for values in _json(arrays["facts"])]
    frames = [item.num_frames for item in facts]
    hands = _decode(arrays["hand"], frames)
    cameras = _decode(arrays["camera"], frames)
    rows = zip(facts, hands, cameras, arrays["intrinsics"], strict=True)
    return skeleton, [
        Episode(item, hand * channel_steps(hand.shape[1]), camera * channel_steps(6), intrinsics)
        for item, hand, camera, intrinsics in rows
    ]


def _of_version_1(values: dict[str, Any]) -> dict[str, Any]:
    """Facts as they are now: version 1 knew where one thing and its pad are, and nothing was put back."""
    kept = {name: value for name, value in values.items() if name not in ("object_m", "place_m")}
    end = values["num_frames"]
    added = {
        "objects_m": [values["object_m"]],
        "places_m": [values["place_m"]] * len(PLACES),
        "back_frames": [end, end],
    }
    return {**kept, **added, "seen_pair": True}


def _facts(values: dict[str, Any]) -> Facts:
    if not re.fullmatch(VIDEO_NAME, str(values["video"]), re.ASCII):
        raise ValueError(f"a video in it is called {values['video']!r}, not <task>/<i>.mp4")
    return Facts(**{name: _tuples(value) for name, value in values.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def channel_steps(num_channels: int) -> Floats:
    """Rounding steps of a state's channels: a position, then angles."""
    steps = np.full(num_channels, STEP_RAD)
    steps[: NUM_BASE // 2] = STEP_M
    return steps


def _decode(planes: npt.NDArray[np.uint8], frames: Sequence[int]) -> list[Floats]:
    """The rounded numbers `(frame, channel)` of each episode."""
    unsigned = np.ascontiguousarray(np.moveaxis(planes, 0, -1)).view("<u4")[..., 0].astype(np.int64)
    whole = np.where(unsigned % 2 == 1, -(unsigned + 1) // 2, unsigned // 2).T
    if len(whole) != sum(frames):
        raise ValueError(f"it has {len(whole)} frames, its episodes {sum(frames)}")
    parts = np.split(whole, np.cumsum(frames)[:-1])
    return [np.cumsum(np.cumsum(part, axis=0), axis=0).astype(np.float64) for part in parts]


def _json(values: npt.NDArray[Any]) -> Any:
    return parse_json(values.tobytes())


def joint_transforms(skeleton: Skeleton, episode: Episode) -> dict[str, Floats]:
    """Joint to world `(frame, 4, 4)`, y up, by EgoDex's name of the joint."""
    poses = Y_UP @ skeleton.joint_poses(episode.hand)
    return {name: poses[:, joint] for joint, name in enumerate(skeleton.joints)}


def camera_transforms(episode: Episode) -> Floats:
    """Camera to world `(frame, 4, 4)`, y up; of the camera x right, y down, z forward."""
    return np.asarray(Y_UP @ camera_poses(episode.camera))
