"""How far ahead each latent step of the future lies, in seconds of the clips' real frame times."""

from collections.abc import Sequence

import numpy as np

from thinkjepa.cache import ClipRow
from thinkjepa.stages.errors import StageError


def step_horizons_s(clip: ClipRow, *, window: int, tubelet: int) -> list[float]:
    """Seconds from the last observed frame to the middle of each latent step's frames.

    A latent step covers `tubelet` frames; its time is the mean of their presentation times.
    """
    times_s = np.asarray(clip.future_times_s[window], dtype=np.float64)
    if len(times_s) % tubelet:
        raise StageError(
            f"{clip.label}: {len(times_s)} future frames are no multiple of the encoder's tubelet {tubelet}"
        )
    return list(times_s.reshape(-1, tubelet).mean(axis=1) - clip.observed_times_s[-1])


def horizon_summary(clips: Sequence[ClipRow], *, window: int, tubelet: int) -> list[dict[str, float]]:
    """Mean, smallest and largest horizon over clips, one record per latent step; step 1 is the first."""
    horizons = np.array([step_horizons_s(clip, window=window, tubelet=tubelet) for clip in clips])
    return [
        {
            "step": step,
            "seconds": float(column.mean()),
            "seconds_min": float(column.min()),
            "seconds_max": float(column.max()),
        }
        for step, column in enumerate(horizons.T, start=1)
    ]
