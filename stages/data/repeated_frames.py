"""Frames that dense windows show more than once, because a video has fewer than they ask for.

Sixteen "frames" at 30 a second of a video with 10 are six pictures: whoever predicts that nothing changes
looks superb on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from thinkjepa.cache import ClipRow

if TYPE_CHECKING:
    from thinkjepa.cache import ClipSelection

Windows = npt.NDArray[np.int64]
"""Frame indices `(clip, frame)`."""


@dataclass(frozen=True, slots=True)
class RepeatedFrames:
    """Count of frames in some clips' dense windows that repeat the frame before them."""

    clips: int = 0
    """That have any."""
    of_clips: int = 0
    frames: int = 0
    of_frames: int = 0
    slowest_video: str = ""
    """Of the videos with repeated frames, that whose windows span the fewest; empty where none repeats."""
    slowest_fps: float = 0.0
    """Frames a second that this video has there."""

    @property
    def share(self) -> float:
        return self.frames / self.of_frames if self.of_frames else 0.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "share": self.share}


def planned_repeats(clips: Sequence[ClipRow]) -> RepeatedFrames:
    """Repeated frames of planned clips, all of the same settings."""
    observed = [clip.observed_frames for clip in clips]
    future = [sum(clip.future_frames, ()) for clip in clips]
    return _repeats(clips, np.array(observed, dtype=np.int64), np.array(future, dtype=np.int64))


def stored_repeats(clips: ClipSelection) -> RepeatedFrames:
    """Repeated frames of clips in a cache, all of one way to choose dense frames."""
    return _repeats(clips, clips.frames("observed_frames"), clips.frames("future_frames"))


def _repeats(clips: Sequence[ClipRow], observed: Windows, future: Windows) -> RepeatedFrames:
    if not len(clips):
        return RepeatedFrames()
    counts = sum((np.diff(windows, axis=1) == 0).sum(axis=1) for windows in (observed, future))
    found = RepeatedFrames(of_clips=len(clips), of_frames=observed.size + future.size)
    repeating = np.flatnonzero(counts)
    if not len(repeating):
        return found
    spans = future[repeating, -1] - observed[repeating, 0]  # of about as many seconds in every clip
    worst = clips[int(repeating[np.argmin(spans)])]
    return replace(
        found,
        clips=len(repeating),
        frames=int(counts.sum()),
        slowest_video=worst.video,
        slowest_fps=_rate(worst),
    )


def _rate(clip: ClipRow) -> float:
    """Frames a second of the clip's video between its first and its last dense frame."""
    frames = clip.future_frames[-1][-1] - clip.observed_frames[0]
    seconds = clip.future_times_s[-1][-1] - clip.observed_times_s[0]
    return round(frames / seconds, 2) if seconds > 0 else 0.0


def unequal_starts(clips: ClipSelection) -> str:
    """Reason why the first future window of some clips is of other moments than the later ones, else empty.

    Feature sets of earlier versions are so where their dense rate is below a video's own.
    """
    observed, future = clips.values("observed_frames"), clips.values("future_frames")
    for row, windows in enumerate(future):
        starts = [after[0] - before[-1] for before, after in pairwise([observed[row], *windows])]
        if max(starts) - min(starts) > 1:
            return (
                f"{clips[row].label}: its first future window starts {starts[0]} frame after the observed "
                f"one, the others {max(starts)} frames after the one before"
            )
    return ""


def describe_repeats(repeats: RepeatedFrames, *, fps: float | None) -> str:
    """One line with the remedy, empty where no frame repeats. `fps` is what was asked for; None of clips
    that are cut by index.
    """
    if not repeats.frames:
        return ""
    share = f"{repeats.share:.0%}" if repeats.share >= 0.01 else f"{repeats.share:.2%}"
    found = (
        f"{share} of the frames in dense windows repeat the frame before them, in {repeats.clips} of "
        f"{repeats.of_clips} clips"
    )
    video = f"{repeats.slowest_video!r} has {repeats.slowest_fps:g} frames a second"
    if fps is None:
        return f"{found}: {video}, too few for the windows; give fewer --observed-frames and --future-frames"
    if repeats.slowest_fps >= fps:
        return f"{found}: frames of {repeats.slowest_video!r} come at uneven times; a lower --dense-fps helps"
    needed_s = (repeats.of_frames / repeats.of_clips - 1) / repeats.slowest_fps
    return (
        f"{found}: {video} there, --dense-fps asks for {fps:g}; {repeats.slowest_fps:g} or less repeats none "
        f"and takes videos of {needed_s:.1f} s, fewer --observed-frames and --future-frames take shorter ones"
    )
