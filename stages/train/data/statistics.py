"""Mean and spread, over the training clips, of the thinker's states and of joints.

Shape letters: B batch, L levels, S streams or tokens, D thinker dim, T latent steps, K frames of a step,
J joints.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_SCALE = 1e-6

SMALLEST_SPREAD_M = 1e-3  # of joints that hardly move: their errors are not blown up


@dataclass(frozen=True, slots=True)
class StateStatistics:
    """Float32, `(x - center) / scale` is of order one.

    `(level, stream, dim)` of pooled states, `(level, dim)` of tokens.
    """

    center: Tensor
    scale: Tensor


def pooled_statistics(batches: Iterable[Tensor]) -> StateStatistics:
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
    return _state_statistics(count, total, squares)


def token_statistics(clips: Iterable[Tensor]) -> StateStatistics:
    """Statistics of clips' tokens `(level, token, dim)`, counted one by one, summed in float64, in one pass.

    Massive activations of a few tokens make their dims' scales large, so that these hardly count elsewhere.
    """
    count = total = squares = torch.zeros((), dtype=torch.float64)
    for states_LSD in clips:
        states = states_LSD.double()
        count = count + states.shape[1]
        total = total + states.sum(dim=1)
        squares = squares + states.square().sum(dim=1)
    return _state_statistics(count, total, squares)


def _state_statistics(count: Tensor, total: Tensor, squares: Tensor) -> StateStatistics:
    center = total / count.clamp(min=1)
    spread = (squares / count.clamp(min=1) - center.square()).clamp(min=0).sqrt()
    floor = torch.maximum(0.1 * spread.median(dim=-1, keepdim=True).values, 1e-3 * center.abs())
    scale = torch.maximum(spread, floor).clamp(min=SMALLEST_SCALE)
    return StateStatistics(center=center.float(), scale=scale.float())


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
