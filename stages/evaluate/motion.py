"""Forecasts of joints from how they moved while they were observed, without training.

Velocities are least squares fits over the whole observed window, because the difference of two neighbouring
frames is mostly the labels' noise. A forecast starts at each joint's last known position. All is float64.

Shape letters: B batch, F observed frames, K future frames, J joints.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from thinkjepa.cache import ClipRow
from thinkjepa.stages.evaluate.metrics import frames_ahead_s
from thinkjepa.stages.train.data.poses import ObservedPoses


def future_times_s(clips: Sequence[ClipRow], *, windows: int) -> Tensor:
    """Seconds from each clip's last observed frame to its future frames, `(batch, frame)`."""
    return torch.from_numpy(np.stack([frames_ahead_s(clip, windows=windows) for clip in clips]))


def constant_velocity(poses: ObservedPoses, ahead_s: Tensor) -> Tensor:
    """Positions `(batch, frame, joint, 3)`, metres, of joints that keep their velocity.

    `ahead_s` are seconds from the last observed frame, `(batch, frame)`.
    """
    return _moved(poses, _elapsed_s(poses, ahead_s))


def damped_velocity(poses: ObservedPoses, ahead_s: Tensor, *, damping_s: float) -> Tensor:
    """The same of a velocity that decays to 1/e within `damping_s` seconds: joints come to rest."""
    return _moved(poses, damping_s * -torch.expm1(-_elapsed_s(poses, ahead_s) / damping_s))


def fitted_velocity(poses: ObservedPoses) -> Tensor:
    """Slope of the least squares line through each joint's known positions, `(batch, joint, 3)`, m/s.

    0 for a joint that is known at one time only. Times are the frames' real ones, so that uneven and repeated
    frames do no harm.
    """
    weight_BFJ = poses.known.double()
    count_BJ = weight_BFJ.sum(dim=1).clamp(min=1)
    times_BFJ = weight_BFJ * (poses.times_s.double()[:, :, None] - _last_s(poses)[:, None])
    centered_BFJ = weight_BFJ * (times_BFJ - (times_BFJ.sum(dim=1) / count_BJ)[:, None])
    moved = poses.positions_m.double() - poses.last_pose_m.double()[:, None]
    covered = (centered_BFJ[..., None] * moved).sum(dim=1)
    spread_BJ = centered_BFJ.square().sum(dim=1)  # 0 exactly where all times are the last one
    return covered / torch.where(spread_BJ > 0, spread_BJ, 1.0)[..., None]


def _moved(poses: ObservedPoses, effective_s: Tensor) -> Tensor:
    return poses.last_pose_m.double()[:, None] + effective_s[..., None] * fitted_velocity(poses)[:, None]


def _elapsed_s(poses: ObservedPoses, ahead_s: Tensor) -> Tensor:
    """Seconds from each joint's last known position to each future frame, `(batch, frame, joint)`."""
    return ahead_s[:, :, None] - _last_s(poses)[:, None]


def _last_s(poses: ObservedPoses) -> Tensor:
    """Time of each joint's last known position `(batch, joint)`, 0 where it is never known."""
    times_BFJ = poses.times_s.double()[:, :, None].expand_as(poses.known)
    last_BJ = times_BFJ.masked_fill(poses.known == 0, -torch.inf).amax(dim=1)
    return torch.where(poses.last_known > 0, last_BJ, 0.0)
