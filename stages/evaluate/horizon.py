"""How far ahead each latent step of the future lies, in seconds of the clips' real frame times."""

import numpy as np
import numpy.typing as npt

from thinkjepa.cache import ClipRow
from thinkjepa.stages.errors import StageError


def step_horizons_s(clip: ClipRow, *, windows: int, tubelet: int) -> list[float]:
    """Seconds from the last observed frame to the middle of each latent step's frames, of the first windows.

    A latent step covers `tubelet` frames; its time is the mean of their presentation times.
    """
    times_s = np.concatenate([np.asarray(times, dtype=np.float64) for times in clip.future_times_s[:windows]])
    if len(times_s) % tubelet:
        raise StageError(
            f"{clip.label}: {len(times_s)} future frames are no multiple of the encoder's tubelet {tubelet}"
        )
    return list(times_s.reshape(-1, tubelet).mean(axis=1) - clip.observed_times_s[-1])


def horizon_summary(horizons_s: npt.NDArray[np.float64]) -> list[dict[str, float]]:
    """Mean, smallest and largest of `(clip, step)` seconds: a record per latent step, the first is step 1."""
    return [
        {
            "step": step,
            "seconds": float(column.mean()),
            "seconds_min": float(column.min()),
            "seconds_max": float(column.max()),
        }
        for step, column in enumerate(horizons_s.T, start=1)
    ]
