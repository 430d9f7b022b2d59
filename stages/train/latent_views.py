"""Stored latents as a run looks at them: pooled over squares of patches, layer-normed, or as they are.

Shape letters: B batch, T latent steps, P patches, D latent dim.
"""

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.shapes import LatentGrid, LatentView


def viewed_grid(grid: LatentGrid, view: LatentView) -> LatentGrid:
    """The grid of the viewed latents. Raises StageError where squares do not tile it."""
    if grid.height % view.pool or grid.width % view.pool:
        raise StageError(
            f"latent_pool is {view.pool}, the encoder's grid of {grid.height} x {grid.width} patches is no "
            "multiple of it"
        )
    return replace(grid, height=grid.height // view.pool, width=grid.width // view.pool)


def viewed(latents: Tensor, grid: LatentGrid, view: LatentView) -> Tensor:
    """Float32 `(batch, step, patch, dim)` of the viewed grid, from `grid`'s; the norm follows the mean."""
    if view.pool > 1:
        rows, columns = grid.height // view.pool, grid.width // view.pool
        squares = latents.view(*latents.shape[:2], rows, view.pool, columns, view.pool, grid.dim)
        latents = squares.mean(dim=(3, 5)).flatten(2, 3)
    return F.layer_norm(latents, latents.shape[-1:]) if view.normalised else latents
