"""The rate of a video's frames, and what `--dense-fps auto` makes of those of a folder, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from thinkjepa.stages.data.sampling import TOLERANCE_GAPS, TOLERANCE_S, Times

NTSC_FPS = (14.985, 23.976, 29.97, 47.952, 59.94, 119.88, 239.76)
"""Rates of television, a thousandth below a whole number: 30000/1001 is 29.97 here."""

EXACT = 2e-4
"""Relative. A fifth of what lies between 29.97 and 30, and far more than a container's clock is off."""

ALIKE_S = 1.5e-3
"""Gaps of whole milliseconds differ by one."""

SIGNIFICANT_DIGITS = 3
"""Of a rate that is not one of television's: two files of one camera agree."""


@dataclass(frozen=True, slots=True)
class FrameRate:
    """Frames a second, rounded so that equal rates are equal numbers whatever the container's clock."""

    fps: float
    is_steady: bool
    """Whether all gaps between frames are alike; else `fps` is that of the median gap."""


def measured_rate(times_s: Times) -> FrameRate | None:
    """The rate of a video with frames at these times; None of a single frame.

    It is the mean of the gaps that are like the median one: whole milliseconds would make 33 ms of 30
    frames a second, and a frame that was dropped here and there counts as none.
    """
    gaps_s = np.diff(times_s)
    if not len(gaps_s):
        return None
    median_s = float(np.median(gaps_s))
    alike = np.abs(gaps_s - median_s) <= max(ALIKE_S, TOLERANCE_GAPS * median_s)
    regular_s = float(gaps_s[alike].sum())
    return FrameRate(_rounded(alike.sum() / regular_s, off=TOLERANCE_S / regular_s), bool(alike.all()))


def _rounded(fps: float, *, off: float) -> float:
    """The likely rate, where `fps` may be off by a share `off`."""
    plain = float(f"{fps:.{SIGNIFICANT_DIGITS}g}")
    near = min(NTSC_FPS, key=lambda rate: abs(rate - fps))
    is_ntsc = abs(near / fps - 1) <= max(EXACT, off) and abs(near - fps) < abs(plain - fps)
    return near if is_ntsc else plain


def described_rates(rates: Mapping[str, FrameRate]) -> str:
    """The rate that `auto` has come to, and why."""
    slowest = min(rates, key=lambda name: rates[name].fps)
    fps, fastest = rates[slowest].fps, max(rate.fps for rate in rates.values())
    faster = sum(rate.fps > fps for rate in rates.values())
    uneven = "" if rates[slowest].is_steady else ", by the median gap of its uneven frames"
    if not faster:
        return f"--dense-fps auto: {fps:g} frames a second, the rate of the videos{uneven}"
    are, give = ("is", "gives") if faster == 1 else ("are", "give")
    return (
        f"--dense-fps auto: {fps:g} frames a second, the rate of {slowest!r}{uneven}; {faster} of "
        f"{len(rates)} videos {are} faster, up to {fastest:g}, and {give} only some of their frames: a "
        "number sets another rate, frames of slower videos repeat then"
    )


def described_lost(lost: Sequence[str], slow: Sequence[str], *, clip_span_s: float) -> str:
    """The cost of the slowest rate: videos that are long enough at their own. Empty where there are none."""
    if not lost:
        return ""
    others = f" and {len(slow) - 1} more as slow" if len(slow) > 1 else ""
    videos = "video is" if len(lost) == 1 else "videos are"
    return (
        f"; a clip takes {clip_span_s:.1f} s then, for which {len(lost)} faster {videos} too short: "
        f"leave {min(slow)!r}{others} out, set a rate, or ask for fewer --observed-frames and --future-frames"
    )


def described_short(
    names: Sequence[str], rates: Mapping[str, FrameRate], *, clip_span_s: Callable[[float], float]
) -> str:
    """The slower videos that `auto` leaves out of account. Empty where there are none.

    `clip_span_s` is what a clip takes at a rate.
    """
    if not names:
        return ""
    slowest = min(names, key=lambda name: rates[name].fps)
    fps = rates[slowest].fps
    others = f" and {len(names) - 1} more are" if len(names) > 1 else " is"
    return (
        f"; {slowest!r}{others} slower but too short for a clip at that rate: at {fps:g} it takes "
        f"{clip_span_s(fps):.1f} s, with fewer --observed-frames and "
        "--future-frames less"
    )
