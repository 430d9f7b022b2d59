"""How far ahead latent steps and frames of the future are, in seconds of the clips' real frame times.

Distances between predicted and encoded latents, of each clip at each latent step of the horizon.

Shape letters: B batch, T latent steps, P patches, D latent dim.

Distances between predicted and labelled joints, of each clip and at each latent step of the horizon.

Shape letters: B batch, T latent steps, K frames of a step, J joints.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from thinkjepa.cache import ClipRow
from thinkjepa.stages.data.sampling import seconds_ahead
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


LATENT_METRICS = ("l1", "l2", "smooth_l1", "cosine")


def latent_metrics(predicted: Tensor, future: Tensor) -> dict[str, Tensor]:
    """Metrics by name, each `(clip, step)` float64, from two `(batch, step, patch, dim)` tensors.

    l1: mean absolute error; l2: mean *squared* error; smooth_l1: Huber-like with beta 1 (quadratic below an
    error of 1); all three are means over patches and dims. cosine: similarity of each patch's latent, mean
    over patches, 1 at best.
    """
    predicted_BTPD, future_BTPD = predicted.double(), future.double()
    error = predicted_BTPD - future_BTPD
    smooth = F.smooth_l1_loss(predicted_BTPD, future_BTPD, reduction="none", beta=1.0)
    cosine = torch.cosine_similarity(predicted_BTPD, future_BTPD, dim=-1)
    return {
        "l1": error.abs().mean(dim=(2, 3)),
        "l2": error.square().mean(dim=(2, 3)),
        "smooth_l1": smooth.mean(dim=(2, 3)),
        "cosine": cosine.mean(dim=2),
    }


ACCURATE_M = 0.05

TRAJECTORY_METRICS = ("ade_m", "fde_m", "acc_5cm", "keypoint_m")

TRAJECTORY_CURVES = ("ade_m",)


def counted_joint_frames(future_confidence: Tensor, last_known: Tensor) -> Tensor:
    """Which joint-frames count, `(batch, step, frame, joint)` bool, for every method alike.

    Those that are labelled (confidence above 0), of joints that were seen in the observed window: no baseline
    can say anything of the others. `last_known` is `(batch, joint)`.
    """
    return (future_confidence > 0) & (last_known > 0)[:, None, None]


def trajectory_metrics(
    predicted_m: Tensor, future_m: Tensor, counted: Tensor, *, keypoints: Sequence[int]
) -> dict[str, Tensor]:
    """Metrics by name, `(clip,)` float64, and curves `<name>_by_step`, `(clip, step)`.

    Positions are `(batch, step, frame, joint, 3)` in metres. ade_m: mean distance over counted joint-frames;
    fde_m: over those of the last frame; acc_5cm: share of them within 5 cm (inclusive); keypoint_m: ade_m of
    the joints at these indices. All joint-frames weigh the same, whatever their confidence. NaN where a clip
    has none that counts.
    """
    difference = predicted_m.double() - future_m.double()
    distance_BTKJ = torch.linalg.vector_norm(difference, dim=-1)
    accurate_BTKJ = (distance_BTKJ <= ACCURATE_M).double()
    chosen = list(keypoints)
    return {
        "ade_m": _mean(distance_BTKJ, counted),
        "fde_m": _mean(distance_BTKJ[:, -1, -1], counted[:, -1, -1]),
        "acc_5cm": _mean(accurate_BTKJ, counted),
        "keypoint_m": _mean(distance_BTKJ[..., chosen], counted[..., chosen]),
        "ade_m_by_step": _mean(distance_BTKJ.flatten(0, 1), counted.flatten(0, 1)).view(counted.shape[:2]),
    }


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of the counted values of each row; 0 / 0 gives NaN where there are none."""
    total = torch.where(counted, values, 0.0).flatten(1).sum(dim=1)
    return total / counted.flatten(1).sum(dim=1)
