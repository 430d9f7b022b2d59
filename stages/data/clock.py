"""The clock of a clip: seconds after its last observed frame, in every picture, table and caption."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


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
