"""Mean and spread, over the training clips, of pooled thinker states and of joints.

Shape letters: B batch, L levels, S streams, D thinker dim, T latent steps, K frames of a step, J joints.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_SCALE = 1e-6
SMALLEST_SPREAD_M = 1e-3  # of joints that hardly move: their errors are not blown up


@dataclass(frozen=True, slots=True)
class PooledStatistics:
    """Per level, stream and dim `(level, stream, dim)`, float32: `(x - center) / scale` is of order one."""

    center: Tensor
    scale: Tensor


def pooled_statistics(batches: Iterable[Tensor]) -> PooledStatistics:
    """Statistics of batches `(clip, level, stream, dim)`, summed in float64, in one pass.

    Streams that are all zeros (nothing was generated) do not count. A dim that hardly varies is not blown up:
    its scale is at least a tenth of the median dim's, and a thousandth of its mean.
    """
    count = total = squares = torch.zeros((), dtype=torch.float64)
    for batch_BLSD in batches:
        states = batch_BLSD.double()
        count = count + states.ne(0).any(dim=-1, keepdim=True).sum(dim=0)
        total = total + states.sum(dim=0)
        squares = squares + states.square().sum(dim=0)
    center = total / count.clamp(min=1)
    spread = (squares / count.clamp(min=1) - center.square()).clamp(min=0).sqrt()
    floor = torch.maximum(0.1 * spread.median(dim=-1, keepdim=True).values, 1e-3 * center.abs())
    scale = torch.maximum(spread, floor).clamp(min=SMALLEST_SCALE)
    return PooledStatistics(center=center.float(), scale=scale.float())


@dataclass(frozen=True, slots=True)
class JointStatistics:
    """Where each joint is on average, `(joint, 3)`, and how far from there, `(joint, 1)`: metres, float32."""

    center: Tensor
    scale: Tensor


def joint_statistics(batches: Iterable[tuple[Tensor, Tensor]]) -> JointStatistics:
    """Statistics of positions `(batch, step, frame, joint, 3)` weighed by confidences without the last axis.

    Summed in float64, in one pass. A joint that no clip has stays at the origin with a spread of 1 mm.
    """
    weight = total = squares = torch.zeros((), dtype=torch.float64)
    for positions_BTKJ3, confidence_BTKJ in batches:
        weights = confidence_BTKJ.double().unsqueeze(-1)
        positions = positions_BTKJ3.double()
        weight = weight + weights.sum(dim=(0, 1, 2))
        total = total + (weights * positions).sum(dim=(0, 1, 2))
        squares = squares + (weights * positions.square()).sum(dim=(0, 1, 2))
    count = torch.where(weight > 0, weight, 1.0)
    center = total / count
    spread = (squares / count - center.square()).clamp(min=0).mean(dim=-1, keepdim=True).sqrt()
    return JointStatistics(center=center.float(), scale=spread.clamp(min=SMALLEST_SPREAD_M).float())
