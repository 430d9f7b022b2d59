"""The parts of a page that hold pixels: videos of hands, the thinker's frames, and where a run looks.

All of them together stay below a limit. What is left out is named.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from thinkjepa.pipeline.cli.console import human_bytes
from thinkjepa.pipeline.picture.clip_content import ClipContent, find_video
from thinkjepa.pipeline.picture.compared import compared_video
from thinkjepa.pipeline.report.page.clips import Shown, ShownClip
from thinkjepa.pipeline.report.page.markup import data_url
from thinkjepa.stages.data.decoding.client import DecodeError, FrameStack
from thinkjepa.stages.data.framing import Framing
from thinkjepa.stages.data.sampling import clock_text, seconds_ahead
from thinkjepa.stages.evaluate.details.attended import Attended
from thinkjepa.stages.intervals import Floats

DECODE_TIMEOUT_S = 60.0

FRAME_PX = 176
"""Longest side of the thinker's frames on the page."""

LOOK_PX = 352

JPEG_QUALITY = 80

DARKEST = 0.15
"""Brightness of a place that is not read at all."""


@dataclass(slots=True)
class Budget:
    """Bytes that the media of a page may take, and what did not fit."""

    limit_bytes: int
    used_bytes: int = 0
    left_out: list[str] = field(default_factory=list)

    def url(self, content: bytes, *, kind: str, name: str) -> str:
        """The content as a data URL, or an empty string where it no longer fits."""
        url = data_url(content, kind=kind)
        if self.used_bytes + len(url) > self.limit_bytes:
            self.left_out.append(f"{name} ({human_bytes(len(url))})")
            return ""
        self.used_bytes += len(url)
        return url


@dataclass(frozen=True, slots=True)
class Media:
    """Parts of a clip besides numbers. A URL is empty where `notes` say why."""

    video_url: str = ""
    video_text: str = ""
    frames: tuple[tuple[str, str], ...] = ()
    """URL and time of each of the thinker's frames."""
    look_url: str = ""
    look_text: str = ""
    notes: tuple[str, ...] = ()


def clip_media(
    shown: Shown, item: ShownClip, *, videos: Path | None, framing: Framing | None, budget: Budget
) -> Media:
    """Videos and frames of a clip, as far as the budget reaches."""
    notes: list[str] = []
    video_url = _video(item, videos=videos, framing=framing, budget=budget, notes=notes)
    frames: list[tuple[str, str]] = []
    look_url = look_text = ""
    if item.seen is not None and item.seen.thinker is not None:
        if item.seen.frames_note:
            notes.append(f"the thinker's frames are not shown: {item.seen.frames_note}")
        if item.attended is not None and shown.reader is not None:
            look_url = _look(item, item.seen, item.attended, budget)
            look_text = describe_look(item.attended, of=shown.reader.group)
        frames = _frames(item.seen, budget)
    return Media(video_url, _video_text(item), tuple(frames), look_url, look_text, tuple(notes))


def _video(
    item: ShownClip, *, videos: Path | None, framing: Framing | None, budget: Budget, notes: list[str]
) -> str:
    if not item.hands:
        notes.append("these runs predict no hands, of which the video is: thinkjepa-predict draws latents")
        return ""
    path, reason = find_video(videos, item.clip)
    if path is None:
        notes.append(f"the video is not shown: {reason}")
        return ""
    try:
        content = compared_video(
            path, item.frames, item.hands, framing=framing, decode_timeout_s=DECODE_TIMEOUT_S
        )
    except DecodeError as error:
        notes.append(f"the video is not shown: {error}")
        return ""
    return budget.url(content, kind="video/mp4", name=f"the video of clip {item.clip.clip_id}")


def _video_text(item: ShownClip) -> str:
    """The words that stand for the video."""
    ends_s = seconds_ahead(item.frames.future_times_s[-1], observed_times_s=item.frames.observed_times_s)
    panels = "; ".join(f"{number} {name}" for number, name in enumerate(item.hands, start=1))
    return (
        f"{item.clip.video}: {len(item.frames.observed)} observed frames, then {len(item.frames.future)} "
        f"future ones up to {clock_text(float(ends_s))}, a panel each for {panels}. Predicted "
        "hands are orange, the true hand under them is a faint blue."
    )


def _frames(seen: ClipContent, budget: Budget) -> list[tuple[str, str]]:
    """The thinker's frames, each with its time; those that no longer fit are left out."""
    assert seen.thinker is not None, "frames are of a thinker"
    found = []
    for frame, time_s in zip(seen.thinker.frames, seen.thinker.times_s, strict=True):
        if (pixels := seen.thumbnails.get(frame)) is None:
            continue
        image = Image.fromarray(pixels)
        image.thumbnail((FRAME_PX, FRAME_PX))
        name = f"the thinker's frame {frame} of clip {seen.clip.clip_id}"
        if url := budget.url(_jpeg(image), kind="image/jpeg", name=name):
            ahead_s = seconds_ahead(time_s, observed_times_s=seen.clip.observed_times_s)
            found.append((url, f"frame {frame}, {clock_text(float(ahead_s))}"))
    return found


def _look(item: ShownClip, seen: ClipContent, looked: Attended, budget: Budget) -> str:
    """The thinker's last frame, the brighter the more a place is read."""
    assert seen.thinker is not None, "a run that reads slots has a thinker"
    pixels = seen.thumbnails.get(seen.thinker.frames[-1])
    if pixels is None or not looked.gate or not looked.shares.size:
        return ""
    name = f"where slots of clip {item.clip.clip_id} are read"
    return budget.url(_jpeg(spotlight(pixels, looked)), kind="image/jpeg", name=name)


def spotlight(frame: FrameStack, looked: Attended) -> Image.Image:
    """The frame with the brightness of each place in proportion to its share; the largest one is as it was.

    What no place covers is as dark as a place that is not read.
    """
    image = Image.fromarray(frame).convert("RGB")
    scale = LOOK_PX / max(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)))
    rows, columns = _nearest(looked.heights, image.height), _nearest(looked.widths, image.width)
    shares = np.pad(looked.shares / looked.shares.max(), ((0, 1), (0, 1)))  # index -1: outside
    brightness = DARKEST + (1 - DARKEST) * shares[np.ix_(rows, columns)]
    return Image.fromarray((np.asarray(image) * brightness[..., None]).round().astype(np.uint8))


def _nearest(centers: Floats, num_pixels: int) -> Floats:
    """The index of the nearest center for each pixel, -1 farther out than half the way between two."""
    places = (np.arange(num_pixels) + 0.5) / num_pixels
    apart = np.abs(places[:, None] - centers)
    half = np.diff(centers).mean() / 2 if len(centers) > 1 else 0.5
    nearest: Floats = np.where(apart.min(axis=1) <= half * (1 + 1e-6), apart.argmin(axis=1), -1)
    return nearest


def describe_look(looked: Attended, *, of: str) -> str:
    """The places that a run reads, in words."""
    if not looked.gate:
        return f"The gates of {of} are zero: what the thinker saw changes nothing in its forecast."
    gate = f"Its largest gate is {looked.gate:.2g}; at 0 the thinker would change nothing."
    if not looked.shares.size:
        return f"{of} reads no slot that has a place in the frame. {gate}"
    row, column = np.unravel_index(looked.shares.argmax(), looked.shares.shape)
    height, width = looked.shares.shape
    within = looked.shares / looked.shares.sum()
    place = (
        f"The brightest of {height} x {width} places is in row {row + 1}, column {column + 1}, with "
        f"{within[row, column]:.1%} of them all (even: {1 / within.size:.1%})."
    )
    if looked.kind == "spatial":
        return f"Size of what {of} changes at each patch, from the slots nearest to it. {place} {gate}"
    placed = float(looked.shares.sum())
    return (
        f"Attention of {of}: {placed:.0%} to places of the frame, {looked.pairs_share:.0%} to moments, "
        f"{looked.text_share:.0%} to text. {place} {gate}"
    )


def _jpeg(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, format="JPEG", quality=JPEG_QUALITY)
    return content.getvalue()
