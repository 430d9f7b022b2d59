"""Latents as colors: red, green and blue are their first three principal components.

Shape letters: T latent steps, P patches, D latent dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

NUM_COLORS = 3
CLIPPED_PERCENT = 1.0
"""Per side of each component, so that a single outlying patch does not grey out the rest."""

Colors = npt.NDArray[np.float32]
"""Latents as RGB, 0 to 1, the last axis of 3."""


@dataclass(frozen=True, slots=True)
class LatentColors:
    """Principal components of some latents, with the range that is drawn of each."""

    mean: Tensor
    axes: Tensor
    """`(D, 3)`; zeros for a component without variance, which is grey."""
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    explained: tuple[float, ...]
    """Share of variance of each component."""

    @classmethod
    def fit(cls, latents_TPD: Tensor) -> LatentColors:
        """Components of all patches. Signs are fixed by the largest loading: equal latents, equal colors."""
        width = latents_TPD.shape[-1]
        flat = latents_TPD.reshape(-1, width).double()
        mean = flat.mean(dim=0)
        centred = flat - mean
        variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))  # ascending
        variances, axes = variances.flip(0).clamp(min=0), axes.flip(1)
        total = float(variances.sum())
        shares = [float(share) / total if total > 0 else 0.0 for share in variances[:NUM_COLORS]]
        shares += [0.0] * (NUM_COLORS - len(shares))
        chosen = torch.zeros(width, NUM_COLORS, dtype=torch.float64)
        for place, share in enumerate(shares):
            if share > torch.finfo(torch.float32).eps:
                axis = axes[:, place]
                chosen[:, place] = axis * axis[axis.abs().argmax()].sign()
        clipped = [CLIPPED_PERCENT, 100 - CLIPPED_PERCENT]
        low, high = np.percentile((centred @ chosen).numpy(), clipped, axis=0)
        return cls(mean, chosen, low, high, tuple(shares))

    def paint(self, latents_TPD: Tensor) -> Colors:
        """RGB `(T, P, 3)` of any latents of the same kind; what lies out of the range is clipped."""
        values = ((latents_TPD.double() - self.mean) @ self.axes).numpy()
        stretched = ((values - self.low) / np.maximum(self.high - self.low, 1e-12)).clip(0, 1)
        flat = np.asarray((self.axes == 0).all(dim=0))
        colors: Colors = np.where(flat, 0.5, stretched).astype(np.float32)
        return colors
