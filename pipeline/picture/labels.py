"""Hand labels as a figure: frames of some videos with the joints projected onto them.

Shape letters: J joints, H frames of a trail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import patheffects
from PIL import Image

from thinkjepa.cache import FeatureCache, VideoLabels
from thinkjepa.pipeline.cli.console import counted
from thinkjepa.pipeline.picture.clip_content import evenly
from thinkjepa.pipeline.picture.page import (
    BODY_PT,
    CONTENT_IN,
    HEADING_PT,
    MARGIN_IN,
    SMALL_PT,
    TITLE_PT,
    Page,
    draw_box,
    shortened,
)
from thinkjepa.stages.data.decoding.client import DecodeError, FrameStack, VideoDecoder
from thinkjepa.stages.data.framing import VJEPA2_FRAMING, Box, Framing, seen_box, set_framing
from thinkjepa.stages.data.joints import hand_bones
from thinkjepa.stages.data.labels.check import FolderCheck, VideoCheck, readable_labels
from thinkjepa.stages.data.labels.findings import BINS, WRISTS
from thinkjepa.stages.data.trajectories import project, to_camera
from thinkjepa.stages.picture_style import BLUE, GREY, picture_style

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
    """Positions of each wrist in the last half second, `(H, 2)`, in the picture of this frame's camera."""
    box: Box
    """The part of the frame that the encoder uses."""

    @property
    def num_behind(self) -> int:
        """Known joints without a pixel: they are behind the camera, or there is no camera."""
        return int((np.isnan(self.points).any(axis=1) & (self.confidences > 0)).sum())


@dataclass(frozen=True, slots=True)
class LabeledVideo:
    """One video with labels. `note` says why no joints are drawn, and is empty where they are."""

    name: str
    description: str
    joint_names: tuple[str, ...]
    tiles: tuple[Tile, ...]
    note: str


def labeled_videos(
    check: FolderCheck, folder: Path, *, decoder: VideoDecoder, framing: Framing
) -> list[LabeledVideo]:
    """Some of the videos with usable labels, spread evenly over the folder, as an encoder frames them."""
    usable = check.usable
    chosen = [usable[index] for index in evenly(len(usable), most=MAX_VIDEOS)] if usable else []
    videos = [_labeled_video(item, folder, decoder, framing) for item in chosen]
    return [video for video in videos if video]


def encoder_framing(cache: FeatureCache | None) -> tuple[Framing, str]:
    """The part of a frame that an encoder uses, and its name: of the cache's encoder, else of V-JEPA 2.

    A set without features of any clip counts only where there is no other.
    """
    sets = [item for item in cache.feature_sets.values() if item.kind == "encoder"] if cache else []
    filled = cache.filled_sets("encoder") if cache else []
    for item in (*filled, *sets):
        if framing := set_framing(item.source):
            return framing, str(item.source["model"])
    return VJEPA2_FRAMING, "V-JEPA 2"


def _labeled_video(
    item: VideoCheck, folder: Path, decoder: VideoDecoder, framing: Framing
) -> LabeledVideo | None:
    path = folder / item.video
    labels = readable_labels(path, folder)
    if labels is None:  # removed or changed since it was checked, or a name that is no text
        return None
    count = min(labels.num_frames, item.video_frames)
    frames = [int((index + 0.5) / TILES * count) for index in range(TILES)]
    try:
        times_s = decoder.open(path).times_s
        tiles = [_tile(labels, frame, times_s, decoder.frames(path, [frame])[0], framing) for frame in frames]
    except DecodeError as error:
        return LabeledVideo(item.video, labels.description, labels.joint_names, (), str(error))
    return LabeledVideo(item.video, labels.description, labels.joint_names, tuple(tiles), _note(labels))


def _note(labels: VideoLabels) -> str:
    if labels.reference_frame == "world" and labels.camera_poses is None:
        return "no camera poses: joints cannot be drawn"
    return "no intrinsics: joints cannot be drawn" if labels.intrinsics is None else ""


def _tile(
    labels: VideoLabels, frame: int, times_s: npt.NDArray[np.float64], image: FrameStack, framing: Framing
) -> Tile:
    small = Image.fromarray(image)
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    scale = small.width / image.shape[1]
    height_px, width_px = image.shape[:2]
    first = int(np.searchsorted(times_s, times_s[frame] - TRAIL_S))
    wrists = [index for index, name in enumerate(labels.joint_names) if name in WRISTS]
    return Tile(
        frame=frame,
        time_s=float(times_s[frame]),
        pixels=np.asarray(small),
        points=_projected(labels, [frame], list(range(len(labels.joint_names))), frame)[0] * scale,
        confidences=labels.confidences[frame],
        trails=tuple(
            _projected(labels, range(first, frame + 1), [wrist], frame)[:, 0] * scale for wrist in wrists
        ),
        box=seen_box(framing, width_px=width_px, height_px=height_px).scaled(scale),
    )


def _projected(
    labels: VideoLabels, frames: Sequence[int], joints: Sequence[int], camera_frame: int
) -> Pixels:
    """Pixels `(frame, joint, 2)` of joints in the picture of one frame's camera; NaN where not known."""
    chosen = np.ix_(list(frames), list(joints))
    positions_m = labels.positions_m[chosen]
    if labels.intrinsics is None or _note(labels):
        return np.full((*positions_m.shape[:2], 2), np.nan)
    if labels.camera_poses is not None:
        positions_m = to_camera(positions_m, labels.camera_poses[camera_frame])
    pixels = project(positions_m, labels.intrinsics)
    pixels[labels.confidences[chosen] <= 0] = np.nan
    return pixels


COLORS = {
    "Thumb": "#ffb000",
    "Index": "#ff6a1f",
    "Middle": "#e8308c",
    "Ring": "#8f6bff",
    "Little": "#39a0ff",
    "Arm": "#f5f5f5",
}
"""Distinct also with the common kinds of color blindness: IBM's palette, lightened for dark frames."""

GAP_IN = 0.06

TITLE_IN = 0.5

HEADING_IN = 0.36

ROW_GAP_IN = 0.16

FOOTER_IN = 1.15

TILE_IN = (CONTENT_IN - (TILES - 1) * GAP_IN) / TILES

MAX_TILE_HEIGHT_IN = 2.6

BONE_PT, JOINT_PT = 1.5, 1.9

DARK = "#10131a"


def draw(videos: Sequence[LabeledVideo], check: FolderCheck, *, encoder: str) -> bytes:
    """The picture as PNG. It does not depend on the user's matplotlib settings.

    `encoder` names the one whose box is drawn.
    """
    with picture_style():
        heights = [_tile_height(video) for video in videos]
        body = sum(height + HEADING_IN + ROW_GAP_IN for height in heights)
        page = Page(2 * MARGIN_IN + TITLE_IN + body + FOOTER_IN)
        _title(page, check)
        top = MARGIN_IN + TITLE_IN
        for video, height in zip(videos, heights, strict=True):
            _video(page, top, video, height)
            top += height + HEADING_IN + ROW_GAP_IN
        _legend(page, top, videos, encoder)
        _confidences(page, top, check)
        return page.png()


def _title(page: Page, check: FolderCheck) -> None:
    page.text(MARGIN_IN, MARGIN_IN, f"Hand labels of {shortened(check.folder, most=80)}", size=TITLE_PT)
    counts = (
        f"{counted(len(check.videos), 'video')}, {len(check.usable)} with usable labels; "
        f"{counted(check.num_errors, 'error')}, {counted(check.num_warnings, 'warning')}"
    )
    page.text(MARGIN_IN, MARGIN_IN + 0.23, counts, size=BODY_PT, color=GREY)


def _tile_height(video: LabeledVideo) -> float:
    """In inches: frames keep their shape, very tall ones become narrower."""
    if not video.tiles:
        return 0.3
    height, width = video.tiles[0].pixels.shape[:2]
    return float(min(TILE_IN * height / width, MAX_TILE_HEIGHT_IN))


def _video(page: Page, top: float, video: LabeledVideo, height_in: float) -> None:
    page.text(MARGIN_IN, top, shortened(video.name, most=60), size=HEADING_PT, weight="bold")
    words = shortened(" ".join(video.description.split()), most=130) or "no description"
    page.text(MARGIN_IN, top + 0.17, words, size=BODY_PT, color=GREY, style="italic")
    if not video.tiles:
        page.text(MARGIN_IN, top + HEADING_IN, shortened(video.note, most=150), size=BODY_PT)
    for column, tile in enumerate(video.tiles):
        x = MARGIN_IN + column * (TILE_IN + GAP_IN)
        axes = page.axes(x, top + HEADING_IN, TILE_IN, height_in)
        _frame(axes, tile)
        draw_box(axes, tile.box)
        _hands(axes, tile, video.joint_names)
        words = f"frame {tile.frame}  {tile.time_s:.2f} s"
        if tile.num_behind and not video.note:
            words += f"\n{counted(tile.num_behind, 'joint')} behind the camera, not drawn"
        _caption(axes, words, 0.03, 0.05, va="bottom")
        if video.note:
            _caption(axes, video.note, 0.5, 0.5, ha="center", va="center")


def _frame(axes: Any, tile: Tile) -> None:
    height, width = tile.pixels.shape[:2]
    axes.imshow(tile.pixels, aspect="equal", alpha=0.7)
    axes.set_facecolor(DARK)  # dims the frame, so that hands are clear
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_autoscale_on(False)


def _hands(axes: Any, tile: Tile, names: Sequence[str]) -> None:
    """Draw trails first, then bones, then joints. Joints of low confidence are faint."""
    joints = {name: index for index, name in enumerate(names)}
    for trail in tile.trails:
        _trail(axes, trail)
    halo = [patheffects.withStroke(linewidth=BONE_PT + 1.1, foreground=DARK, alpha=0.6)]
    drawn: set[int] = set()
    for bone in hand_bones(names):
        ends = [bone.start, bone.end]
        (xs, ys), alpha = tile.points[ends].T, _alpha(tile.confidences[ends].min())
        style = {"color": COLORS[bone.part], "alpha": alpha, "path_effects": halo}
        axes.plot(xs, ys, linewidth=BONE_PT, solid_capstyle="round", **style)
        axes.plot(xs[1:], ys[1:], "o", ms=JOINT_PT, mew=0, color=COLORS[bone.part], alpha=alpha)
        drawn |= set(ends)
    for index in sorted(set(joints.values()) - drawn):
        if not any(part in names[index] for part in ("spine", "neck", "hip")):
            style = {"mec": DARK, "mew": 0.4, "alpha": _alpha(tile.confidences[index])}
            axes.plot(*tile.points[index], "o", ms=JOINT_PT + 1.2, color=COLORS["Index"], **style)
    for side, letter in (("right", "R"), ("left", "L")):
        wrist = joints.get(f"{side}Hand")
        if wrist is not None and np.isfinite(tile.points[wrist]).all():
            x, y = tile.points[wrist]
            style = {"ha": "center", "va": "center", "size": 5.0, "weight": "bold", "color": DARK}
            axes.plot(x, y, "o", ms=6.0, color="white", mew=0)
            axes.text(x, y, letter, clip_on=True, **style)


def _trail(axes: Any, trail: Any) -> None:
    """Draw the path of a wrist, fading into the past."""
    for step in range(len(trail) - 1):
        age = (step + 1) / len(trail)
        axes.plot(*trail[step : step + 2].T, color="white", linewidth=0.4 + 1.2 * age, alpha=0.75 * age**1.5)


def _alpha(confidence: float) -> float:
    return 0.25 + 0.75 * float(confidence)


def _caption(axes: Any, text: str, x: float, y: float, **style: Any) -> None:
    box = {"facecolor": DARK, "alpha": 0.65, "pad": 1.5, "linewidth": 0}
    position = {"transform": axes.transAxes, "bbox": box, "parse_math": False, "clip_on": True}
    axes.text(x, y, text, size=SMALL_PT, color="white", **position, **style)


def _legend(page: Page, top: float, videos: Sequence[LabeledVideo], encoder: str) -> None:
    """The parts of hands that are drawn in any tile, and what else is."""
    parts = _drawn_parts(videos)
    shown = {part: color for part, color in COLORS.items() if part in parts}
    if shown:
        page.text(MARGIN_IN, top + 0.05, "Fingers", size=HEADING_PT)
    for index, (part, color) in enumerate(shown.items()):
        x, middle = MARGIN_IN + (index % 3) * 1.05, top + 0.36 + (index // 3) * 0.2
        style = {"color": color if part != "Arm" else "#b8bcc4", "linewidth": 2.4}
        page.line([x, x + 0.22], [middle, middle], **style)
        page.text(x + 0.29, middle, "Forearm (white)" if part == "Arm" else part, va="center")
    words = [f"White box: what {encoder} sees of a frame. Seconds are those of the video."]
    if any(np.isfinite(trail).any() for video in videos for tile in video.tiles for trail in tile.trails):
        words.append("Fading white lines: the wrists' last half second, seen by this frame's camera.")
    if shown:
        words.append("Faint: low confidence.")
    page.small_print(MARGIN_IN, top + 0.7, "\n".join(words))


def _drawn_parts(videos: Sequence[LabeledVideo]) -> set[str]:
    """Parts of hands with a bone whose joints are both known in some tile."""
    return {
        bone.part
        for video in videos
        for bone in hand_bones(video.joint_names)
        for tile in video.tiles
        if np.isfinite(tile.points[[bone.start, bone.end]]).all()
    }


def _confidences(page: Page, top: float, check: FolderCheck) -> None:
    """Draw the histogram of confidences over all usable labels."""
    left, width = MARGIN_IN + CONTENT_IN / 2, CONTENT_IN / 2
    page.text(left, top + 0.05, "Confidence of joints, 0 to 1: share of all samples", size=HEADING_PT)
    counts = np.array(check.confidence_histogram, dtype=float)
    axes = page.axes(left, top + 0.28, width, 0.55)
    shares = counts / max(counts.sum(), 1)
    centers = (np.arange(BINS) + 0.5) / BINS
    axes.bar(centers, shares, width=0.9 / BINS, color=BLUE, alpha=0.9)
    for center, share in zip(centers, shares, strict=True):
        if share >= 0.005:
            axes.text(center, share, f"{share:.0%}", size=SMALL_PT, ha="center", va="bottom")
    axes.set(xlim=(0, 1), ylim=(0, max(float(shares.max()), 0.01) * 1.35), yticks=[])
    axes.spines["left"].set_visible(False)
