"""How far ahead latent steps and frames of the future are, in seconds of the clips' real frame times."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from thinkjepa.cache import ClipRow
from thinkjepa.stages.data.clock import seconds_ahead
from thinkjepa.stages.errors import StageError


def step_horizons_s(clip: ClipRow, *, windows: int, tubelet: int) -> list[float]:
    """Seconds from the last observed frame to the middle of each latent step's frames, of the first windows.

    A latent step covers `tubelet` frames; its time is the mean of their presentation times.
    """
    frames_s = frames_ahead_s(clip, windows=windows)
    if len(frames_s) % tubelet:
        raise StageError(
            f"{clip.label}: {len(frames_s)} future frames are no multiple of the encoder's tubelet {tubelet}"
        )
    return list(frames_s.reshape(-1, tubelet).mean(axis=1))


def frames_ahead_s(clip: ClipRow, *, windows: int) -> npt.NDArray[np.float64]:
    """Seconds from the last observed frame to each future frame, of the first windows."""
    return seconds_ahead(
        [time_s for times_s in clip.future_times_s[:windows] for time_s in times_s],
        observed_times_s=clip.observed_times_s,
    )


def horizon_summary(horizons_s: npt.NDArray[np.float64]) -> list[dict[str, float]]:
    """Mean, smallest and largest of `(clip, step)` seconds: a record per latent step, the first is step 1."""
    return [{"step": step, **time_summary(column)} for step, column in enumerate(horizons_s.T, start=1)]


def time_summary(seconds: npt.NDArray[np.float64] | Sequence[float]) -> dict[str, float]:
    """Mean, smallest and largest over clips."""
    return {
        "seconds": float(np.mean(seconds)),
        "seconds_min": float(np.min(seconds)),
        "seconds_max": float(np.max(seconds)),
    }
