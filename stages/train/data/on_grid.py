"""The predictor's grid of latent steps and patches: latents on it, and a clip's moments and places."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from thinkjepa.stages.data.framing import Box, Framing, grid_box
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.model.config import LatentGrid, LatentTransform

WHOLE_FRAME = Box(0.0, 0.0, 1.0, 1.0)


def transformed_grid(grid: LatentGrid, transform: LatentTransform) -> LatentGrid:
    """The grid of transformed latents. Raises StageError where squares do not tile it."""
    if grid.height % transform.pool or grid.width % transform.pool:
        raise StageError(
            f"latent_pool is {transform.pool}, the encoder's grid of {grid.height} x {grid.width} patches is "
            "no multiple of it"
        )
    return replace(grid, height=grid.height // transform.pool, width=grid.width // transform.pool)


def transform_latents(latents: Tensor, grid: LatentGrid, transform: LatentTransform) -> Tensor:
    """Float32 `(batch, step, patch, dim)` of the transformed grid, from `grid`'s, pooled and then normed."""
    if (pool := transform.pool) > 1:
        rows, columns = grid.height // pool, grid.width // pool
        squares = latents.view(*latents.shape[:2], rows, pool, columns, pool, grid.dim)
        latents = squares.mean(dim=(3, 5)).flatten(2, 3)
    return F.layer_norm(latents, latents.shape[-1:]) if transform.normalised else latents


def grid_part(framing: Framing | None, size_px: tuple[int, int] | None) -> Box:
    """The part of a frame that the encoder's patches cover, in shares of its width and height.

    Where nothing tells the framing, or the frame's width and height in pixels, it is all of the frame.
    """
    if framing is None or size_px is None:
        return WHOLE_FRAME
    width_px, height_px = size_px
    box = grid_box(framing, width_px=width_px, height_px=height_px)
    return Box(box.left / width_px, box.top / height_px, box.width / width_px, box.height / height_px)


@dataclass(frozen=True, slots=True)
class OnGrid:
    """A clip's moments and places as coordinates of its grid, in which patches and steps are whole numbers.

    The split is the border between the last observed step and the first future one. What lies outside the
    encoder's part of the frame has coordinates outside the grid.
    """

    grid: LatentGrid
    step_s: float
    """Seconds of a latent step."""
    part: Box = WHOLE_FRAME
    """The part of the frame that the patches cover, in shares of it."""

    def coordinates(self, stored: Tensor) -> Tensor:
        """Step, row and column `(slot, 3)`, from the cache's `slot_position` `(slot, 4)`. NaN stays NaN."""
        before_s, _, height, width = stored.float().unbind(-1)
        step = self.grid.observed_steps - 0.5 - before_s / self.step_s
        row = (height - self.part.top) / self.part.height * self.grid.height - 0.5
        column = (width - self.part.left) / self.part.width * self.grid.width - 0.5
        return torch.stack((step, row, column), dim=-1)

    def at_split(self, number: int) -> Tensor:
        """Coordinates of states that have no place, of the moment of the split, `(number, 3)`."""
        return self.coordinates(torch.tensor([0.0, 0.0, torch.nan, torch.nan]).expand(number, 4))

    @property
    def middle(self) -> Tensor:
        """Coordinates of the grid's middle at the moment of the split `(3,)`."""
        grid = self.grid
        return torch.tensor([grid.observed_steps - 0.5, (grid.height - 1) / 2, (grid.width - 1) / 2])
