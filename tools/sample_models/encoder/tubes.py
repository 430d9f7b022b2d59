"""Masks of V-JEPA: blocks of patches, the same in every step of a window, so that time gives nothing away.

The union of several blocks is predicted, what is left over is the context (arXiv 2404.08471, section 3.2).
Shape letters: B windows, N tokens in the order step, row, column.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Mask = npt.NDArray[np.bool_]

ASPECTS = (0.75, 1.5)


@dataclass(frozen=True, slots=True)
class Blocks:
    """So many blocks, each of a share of the picture."""

    number: int
    share: float


SHORT_RANGE, LONG_RANGE = Blocks(5, 0.15), Blocks(2, 0.4)
"""Many small blocks, or two large ones, as V-JEPA's. Its 8 of 15 % and 2 of 70 % mask nine tenths of a
picture. These mask six tenths: of 8 x 8 patches too few would be left to tell the others from."""


@dataclass(frozen=True, slots=True)
class Division:
    """Tokens of each window that are context, and those that are predicted, as indices in rising order."""

    context: Tensor
    """`(B, N of the context)`"""
    target: Tensor
    """`(B, N of the target)`"""


def mask_of(rng: np.random.Generator, blocks: Blocks, side: int) -> Mask:
    """Patches `(side, side)` under a union of blocks, at least one of them not."""
    while True:
        mask = np.zeros((side, side), dtype=bool)
        for _ in range(blocks.number):
            aspect = np.exp(rng.uniform(*np.log(ASPECTS)))
            area = blocks.share * side * side
            height, width = (
                min(side, max(1, round(math.sqrt(size)))) for size in (area * aspect, area / aspect)
            )
            top, left = rng.integers(side - height + 1), rng.integers(side - width + 1)
            mask[top : top + height, left : left + width] = True
        if not mask.all():
            return mask


def divide(
    rng: np.random.Generator, blocks: Blocks, *, num_windows: int, num_steps: int, side: int, most: int
) -> Division:
    """Tokens of `num_windows`: each has its own blocks, and as many tokens as that with the fewest.

    What is dropped for that is chosen patch by patch, of all steps alike. At most `most` patches are
    predicted, which is what a step costs.
    """
    masks = [mask_of(rng, blocks, side).ravel() for _ in range(num_windows)]
    context = _equally_many(rng, [np.flatnonzero(~mask) for mask in masks])
    target = _equally_many(rng, [np.flatnonzero(mask) for mask in masks], most=most)
    return Division(_in_all_steps(context, num_steps, side), _in_all_steps(target, num_steps, side))


def _equally_many(
    rng: np.random.Generator, chosen: list[npt.NDArray[np.intp]], *, most: int | None = None
) -> Tensor:
    fewest = min(map(len, chosen)) if most is None else min(most, *map(len, chosen))
    kept = [np.sort(rng.choice(patches, fewest, replace=False)) for patches in chosen]
    return torch.from_numpy(np.stack(kept).astype(np.int64))


def _in_all_steps(patches_BP: Tensor, num_steps: int, side: int) -> Tensor:
    first_T1 = torch.arange(num_steps)[:, None] * (side * side)
    return (patches_BP[:, None] + first_T1).flatten(1)
