"""Which of the thinker's levels each depth of the predictor is guided by.

Shape letters: L levels, Y predictor depth.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from thinkjepa.stages.train.shapes import GuidanceShape


class Levels(nn.Module):
    """Brings what is known per level to each depth."""

    @abstractmethod
    def at(self, depth: int, per_level: Tensor) -> Tensor:
        """`(batch, ...)` for the block at `depth` from `(batch, level, ...)` of all stored levels."""


class FixedLevels(Levels):
    """One level a depth, early levels for early depths."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = levels

    def at(self, depth: int, per_level: Tensor) -> Tensor:
        return per_level[:, self.levels[depth]]


class MixedLevels(Levels):
    """A mixture of the used levels, learned apart for each depth; starts close to their mean."""

    def __init__(self, used: tuple[int, ...], *, depth: int) -> None:
        super().__init__()
        self.used = used
        self.mixture = nn.Parameter(torch.zeros(depth, len(used)))  # logits

    def at(self, depth: int, per_level: Tensor) -> Tensor:
        weights_L = self.mixture[depth].softmax(dim=0).to(per_level.dtype)
        mixed: Tensor = torch.tensordot(weights_L, per_level[:, list(self.used)], dims=([0], [1]))
        return mixed


def build_levels(guidance: GuidanceShape, *, num_levels: int, depth: int) -> Levels:
    """The assignment that `guidance` names, over the levels that it uses; one level is no mixture."""
    used = guidance.used_levels(num_levels)
    if guidance.levels == "mixture" and len(used) > 1:
        return MixedLevels(used, depth=depth)
    return FixedLevels(tuple(used[place] for place in assign_levels(num_levels=len(used), depth=depth)))


def assign_levels(*, num_levels: int, depth: int) -> tuple[int, ...]:
    """The level that guides each depth `l`: `round(l * (num_levels - 1) / (depth - 1))`, ends to ends.

    Halves round up, in whole numbers: Python's `round` would send them to the even neighbour.
    """
    if depth == 1:
        return (num_levels - 1,)
    steps = depth - 1
    return tuple((2 * index * (num_levels - 1) + steps) // (2 * steps) for index in range(depth))
