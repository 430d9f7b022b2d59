"""What there is to see of hand labels: frames of some videos with the joints projected onto them.

Gathers; `label_picture` draws. Shape letters: J joints, H frames of a trail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from thinkjepa.cache import FeatureCache
from thinkjepa.pipeline.clip_view import evenly
from thinkjepa.stages.data.decode_process import DecodeError, FrameStack, VideoDecoder
from thinkjepa.stages.data.framing import VJEPA2_FRAMING, Box, Framing, seen_box, set_framing
from thinkjepa.stages.data.labels.findings import WRISTS
from thinkjepa.stages.data.labels.folder_check import FolderCheck, VideoCheck, readable_labels
from thinkjepa.stages.data.labels.label_file import LabelFile
from thinkjepa.stages.data.trajectories import project, to_camera

MAX_VIDEOS = 4
TILES = 4
THUMBNAIL_PX = 512
TRAIL_S = 0.5

Pixels = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tile:
    """One frame. Points are in pixels of the thumbnail, NaN where behind the camera or not known."""

    frame: int
    time_s: float
    pixels: FrameStack
    """`(height, width, 3)`"""
    points: Pixels
    """`(J, 2)`"""
    confidences: npt.NDArray[np.float32]
    trails: tuple[Pixels, ...]
    """Of each wrist, `(H, 2)`: where it was in the last half second, seen by this frame's camera."""
    box: Box
    """What the encoder sees."""


@dataclass(frozen=True, slots=True)
class LabelView:
    """One video. `note` says why no joints are drawn, or nothing."""

    video: str
    description: str
    joint_names: tuple[str, ...]
    tiles: tuple[Tile, ...]
    note: str


def label_views(
    check: FolderCheck, folder: Path, *, decoder: VideoDecoder, framing: Framing
) -> list[LabelView]:
    """Some of the videos with usable labels, spread evenly over the folder, as an encoder frames them."""
    usable = check.usable
    chosen = [usable[place] for place in evenly(len(usable), most=MAX_VIDEOS)] if usable else []
    views = [_view(item, folder, decoder, framing) for item in chosen]
    return [view for view in views if view]


def encoder_framing(cache: FeatureCache | None) -> tuple[Framing, str]:
    """What an encoder sees of a frame, and its name: a cache's own where it has one, else V-JEPA 2."""
    sets = cache.feature_sets.values() if cache else ()
    for item in sets:
        if item.kind == "encoder" and (framing := set_framing(item.source)):
            return framing, str(item.source["model"])
    return VJEPA2_FRAMING, "V-JEPA 2"


def _view(item: VideoCheck, folder: Path, decoder: VideoDecoder, framing: Framing) -> LabelView | None:
    path = folder / item.video
    labels = readable_labels(path, folder)
    if labels is None:  # removed or changed since it was checked, or a name that is no text
        return None
    count = min(labels.num_frames, item.video_frames)
    frames = [int((place + 0.5) / TILES * count) for place in range(TILES)]
    try:
        times_s = decoder.open(path).times_s
        tiles = [_tile(labels, frame, times_s, decoder.frames(path, [frame])[0], framing) for frame in frames]
    except DecodeError as error:
        return LabelView(item.video, labels.description, labels.joint_names, (), str(error))
    return LabelView(item.video, labels.description, labels.joint_names, tuple(tiles), _note(labels))


def _note(labels: LabelFile) -> str:
    if labels.reference_frame == "world" and labels.camera_poses is None:
        return "no camera poses: joints cannot be drawn"
    return "no intrinsics: joints cannot be drawn" if labels.intrinsics is None else ""


def _tile(
    labels: LabelFile, frame: int, times_s: npt.NDArray[np.float64], image: FrameStack, framing: Framing
) -> Tile:
    small = Image.fromarray(image)
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    scale = small.width / image.shape[1]
    height_px, width_px = image.shape[:2]
    first = int(np.searchsorted(times_s, times_s[frame] - TRAIL_S))
    wrists = [place for place, name in enumerate(labels.joint_names) if name in WRISTS]
    return Tile(
        frame=frame,
        time_s=float(times_s[frame]),
        pixels=np.asarray(small),
        points=_seen(labels, [frame], list(range(len(labels.joint_names))), frame)[0] * scale,
        confidences=labels.confidences[frame],
        trails=tuple(
            _seen(labels, range(first, frame + 1), [wrist], frame)[:, 0] * scale for wrist in wrists
        ),
        box=seen_box(framing, width_px=width_px, height_px=height_px).scaled(scale),
    )


def _seen(labels: LabelFile, frames: Sequence[int], joints: Sequence[int], camera_frame: int) -> Pixels:
    """Pixels `(frame, joint, 2)` of joints as the camera of one frame sees them; NaN where not known."""
    chosen = np.ix_(list(frames), list(joints))
    positions_m = labels.positions_m[chosen]
    if labels.intrinsics is None or _note(labels):
        return np.full((*positions_m.shape[:2], 2), np.nan)
    if labels.camera_poses is not None:
        positions_m = to_camera(positions_m, labels.camera_poses[camera_frame])
    pixels = project(positions_m, labels.intrinsics)
    pixels[labels.confidences[chosen] <= 0] = np.nan
    return pixels
