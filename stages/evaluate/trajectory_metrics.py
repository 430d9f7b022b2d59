"""Distances between predicted and labelled joints, of each clip and at each latent step of the horizon.

Shape letters: B batch, T latent steps, K frames of a step, J joints.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

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
