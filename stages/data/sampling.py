"""Frames of a clip: pure functions of the frame times, and nothing past the split is observed.

Frames are chosen by presentation time with floor and clamp: of the frames shown at or before the wanted
time the last one, and never one at or past the split. Rounding to the nearest may pick a future frame
at 27 fps or at a variable rate. A frame that is all but due counts as shown, and where every n-th frame has
the wanted rate up to television's thousandth, it is taken: 29.97 frames a second asked at 30 repeat none.

One rule of time holds for all future windows. Each starts at the first frame that is at least `1/fps` after
the frame before the window, the last observed one or the last one of the window before, up to the same
tolerance. The step across a border is then as long as one inside a window, up to one frame of the video.

`times_s` is always the strictly increasing presentation time of every frame of the video, `(frame,)` in
seconds. `split_frame` is the first frame of the future.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]

Frames = npt.NDArray[np.int64]

TOLERANCE_S = 1e-3
"""A frame shown up to 1 ms after the wanted time still counts as shown: containers such as Matroska store
whole milliseconds."""

TOLERANCE_GAPS = 0.1
"""So does a frame that is due in a tenth of the time since the frame before it."""

SAME_RATE = 2e-3
"""Relative. Rates so close are one: 29.97 and 30, 23.976 and 24."""

SPACED = "spaced"
"""Rule of dense frames by which every future window starts one step of time after the frame before it."""

UNSPACED = "window"
"""Rule of feature sets of earlier versions, whose first future window starts at the split frame itself."""


@dataclass(frozen=True, slots=True)
class ClipFrames:
    """Chosen frames: thinker `(n,)` and observed `(n,)` < split_frame <= future `(window, n)`.

    Where the dense rate is below the video's, the first future frame is later than `split_frame`.
    """

    split_frame: int
    thinker: Frames
    observed: Frames
    future: Frames

    def after(self, first: int) -> ClipFrames:
        """The same frames of a segment, counted in a video of which it begins at the frame `first`."""
        return ClipFrames(
            self.split_frame + first, self.thinker + first, self.observed + first, self.future + first
        )


def shown_at(times_s: Times, wanted_s: Times, *, first: int, stop: int) -> Frames:
    """The frame shown at each wanted time, or due within the tolerance, clamped into `[first, stop)`."""
    shown = np.searchsorted(times_s, wanted_s, side="right") - 1
    coming = np.minimum(shown + 1, len(times_s) - 1)
    is_due = times_s[coming] - wanted_s <= _tolerance_s(times_s, coming)
    return np.clip(np.where(is_due, coming, shown), first, stop - 1).astype(np.int64)


def next_dense_frame(times_s: Times, frame: int, *, fps: float) -> int:
    """The first frame that is `1/fps` or more after `frame`, up to the tolerance.

    `len(times_s)` where the video ends before it.
    """
    wanted_s = times_s[frame] + 1 / fps
    first = int(np.searchsorted(times_s, wanted_s))
    before = np.array([first - 1])
    is_due = bool(wanted_s - times_s[before] <= _tolerance_s(times_s, before))
    return first - 1 if is_due and first - 1 > frame else first


def _tolerance_s(times_s: Times, frames: Frames) -> Times:
    """Seconds by which each frame counts as shown before its time."""
    gaps_s = times_s[frames] - times_s[np.maximum(frames - 1, 0)]
    tolerance_s: Times = np.maximum(TOLERANCE_S, TOLERANCE_GAPS * gaps_s)
    return tolerance_s


def history_frames(times_s: Times, split_frame: int, *, num_frames: int) -> Frames:
    """The large stride: frames spread uniformly over `[0, split_frame)`, its first and last included."""
    wanted_s = np.linspace(times_s[0], times_s[split_frame - 1], num_frames)
    frames = shown_at(times_s, wanted_s, first=0, stop=split_frame)
    frames[-1] = split_frame - 1
    return frames


def observed_frames(times_s: Times, split_frame: int, *, num_frames: int, fps: float) -> Frames:
    """The small stride: frames at `fps`, the last one being `split_frame - 1`."""
    steps = np.arange(1 - num_frames, 1)
    wanted_s = times_s[split_frame - 1] + steps / fps
    frames = shown_at(times_s, wanted_s, first=0, stop=split_frame)
    return _even(times_s[:split_frame], frames, split_frame - 1, steps, fps=fps)


def future_frames(
    times_s: Times, split_frame: int, *, num_windows: int, num_frames: int, fps: float
) -> Frames:
    """Windows `(window, num_frames)` at `fps`, each one step of time after the frame before it.

    Frames past the video's end are its last one.
    """
    windows: list[Frames] = []
    before = split_frame - 1
    for _ in range(num_windows):
        start = min(next_dense_frame(times_s, before, fps=fps), len(times_s) - 1)
        windows.append(window_from(times_s, start, num_frames=num_frames, fps=fps))
        before = int(windows[-1][-1])
    return np.stack(windows)


def window_from(times_s: Times, start: int, *, num_frames: int, fps: float) -> Frames:
    """Frames `(num_frames,)` at `fps`, the first one being `start`."""
    steps = np.arange(num_frames)
    frames = shown_at(times_s, times_s[start] + steps / fps, first=start, stop=len(times_s))
    return _even(times_s, frames, start, steps, fps=fps)


def has_future(times_s: Times, split_frame: int, *, num_windows: int, num_frames: int, fps: float) -> bool:
    """True if the video lasts as long as the future windows of a split."""
    windows = future_frames(times_s, split_frame, num_windows=num_windows, num_frames=num_frames, fps=fps)
    end_s = times_s[windows[-1, 0]] + (num_frames - 1) / fps
    return bool(end_s <= times_s[-1] + TOLERANCE_S)


def _even(times_s: Times, frames: Frames, start: int, steps: Frames, *, fps: float) -> Frames:
    """Every n-th frame from `start` on where those are `fps` apart, else `frames`.

    Each step by itself up to the tolerance of one frame, all of them together up to SAME_RATE: over hundreds
    of frames a thousandth adds up to a whole one.
    """
    if len(frames) < 2:
        return frames
    stride = max(1, round((frames[-1] - frames[0]) / (len(frames) - 1)))
    even = start + stride * steps
    if even[0] < 0 or even[-1] >= len(times_s):
        return frames
    gaps_s = np.diff(times_s[even])
    off_s = np.abs(gaps_s - 1 / fps).max()
    same_rate = abs(gaps_s.mean() * fps - 1) <= SAME_RATE
    is_even = off_s <= max(TOLERANCE_S, TOLERANCE_GAPS / (fps * stride)) and same_rate
    return even.astype(np.int64) if is_even else frames


def window_splits(
    times_s: Times,
    *,
    num_observed: int,
    num_future: int,
    num_windows: int,
    fps: float,
    stride_s: float,
    min_history_s: float = 0.0,
) -> list[int]:
    """Split frames every `stride_s` whose observed and future windows all lie inside the video.

    The first one is as early as the observed window and `min_history_s` of video before it allow.

    Whether a split exists depends only on when the video shows frames, never on what it shows.
    """
    earliest_s = times_s[0] + max((num_observed - 1) / fps, min_history_s)
    first = int(np.searchsorted(times_s, earliest_s - TOLERANCE_S)) + 1
    splits: list[int] = []
    while first < len(times_s):
        wanted_s = times_s[first] + stride_s * len(splits)
        split = int(np.searchsorted(times_s, wanted_s - TOLERANCE_S))
        if split >= len(times_s):
            break
        if not has_future(times_s, split, num_windows=num_windows, num_frames=num_future, fps=fps):
            break
        if not splits or split > splits[-1]:
            splits.append(split)
        else:  # a stride below one frame's duration, or a gap in the video: one split a frame is enough
            break
    return splits


def dual_clip(
    times_s: Times,
    split_frame: int,
    *,
    thinker_frames: int,
    num_observed: int,
    num_future: int,
    num_windows: int,
    fps: float,
) -> ClipFrames:
    """Preset `dual`: the thinker over the whole history, the encoder over a dense window."""
    return ClipFrames(
        split_frame=split_frame,
        thinker=history_frames(times_s, split_frame, num_frames=thinker_frames),
        observed=observed_frames(times_s, split_frame, num_frames=num_observed, fps=fps),
        future=future_frames(times_s, split_frame, num_windows=num_windows, num_frames=num_future, fps=fps),
    )


def release_clip(num_frames: int, *, num_observed: int, num_future: int) -> ClipFrames:
    """Preset `release`, as the published code: split at half the frames, each half sampled by index."""
    split = num_frames // 2
    observed = np.linspace(0, split - 1, num_observed).astype(np.int64)
    future = np.linspace(split, num_frames - 1, num_future).astype(np.int64)
    return ClipFrames(split_frame=split, thinker=observed, observed=observed, future=future[None])


def seconds_ahead(
    times_s: float | Sequence[float] | npt.NDArray[np.float64], *, observed_times_s: Sequence[float]
) -> npt.NDArray[np.float64]:
    """Times of a video as seconds after the clip's last observed frame, which is at 0.

    Observed frames are at 0 or before it, future ones after it. Same shape as `times_s`.
    """
    ahead: npt.NDArray[np.float64] = np.asarray(times_s, dtype=np.float64) - observed_times_s[-1]
    return ahead


def clock_text(seconds: float) -> str:
    """`+0.27 s`, `-1.30 s`, and `0.00 s` for the last observed frame."""
    return f"{seconds:+.2f} s" if abs(seconds) >= 0.005 else "0.00 s"
