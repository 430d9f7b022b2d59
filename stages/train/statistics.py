"""Mean and spread of pooled thinker states over the training clips.

Shape letters: B batch, L levels, S streams, D thinker dim.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_SCALE = 1e-6


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
