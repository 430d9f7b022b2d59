"""The frame rate of a video, measured from when its frames are shown, not from what its header says."""

from __future__ import annotations

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
