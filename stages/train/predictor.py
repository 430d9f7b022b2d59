"""The JEPA predictor: from the observed window's latents to the future window's.

Observed latents become context tokens, each future position a mask token; the trunk fills the latter in. The
grid is the encoder's own: observed steps stand at 0 .. T_o - 1, future steps at T_o .. T_o + T_f - 1.

Shape letters: B batch, T latent steps, P patches (row-major height x width), D latent dim, N tokens, W width.
"""

import torch
from torch import Tensor, nn

from thinkjepa.stages.train.rope import grid_positions, rotation_at
from thinkjepa.stages.train.shapes import LatentGrid, TrunkShape
from thinkjepa.stages.train.trunk import Guidance, Trunk


class Predictor(nn.Module):
    """Predicts `(batch, future step, patch, dim)` from `(batch, observed step, patch, dim)`."""

    def __init__(self, grid: LatentGrid, trunk: TrunkShape) -> None:
        super().__init__()
        self.grid = grid
        self.embed = nn.Linear(grid.dim, trunk.width)
        self.mask_token = nn.Parameter(torch.zeros(1, trunk.width))
        self.trunk = Trunk(trunk)
        self.proj = nn.Linear(trunk.width, grid.dim)

    def forward(self, observed: Tensor, *, guidance: Guidance | None = None) -> Tensor:
        """Future latents."""
        states_BTPW = self.hidden_states(observed, guidance=guidance)
        future: Tensor = self.proj(states_BTPW[:, self.grid.observed_steps :])
        return future

    def all_steps(self, observed: Tensor, *, guidance: Guidance | None = None) -> Tensor:
        """Latents read off every position, the observed ones first: `(batch, step, patch, dim)`."""
        latents: Tensor = self.proj(self.hidden_states(observed, guidance=guidance))
        return latents

    def hidden_states(self, observed: Tensor, *, guidance: Guidance | None = None) -> Tensor:
        """The trunk's output at every step, observed ones first: `(batch, step, patch, width)`."""
        grid = self.grid
        context_BNW = self.embed(observed.flatten(1, 2))
        num_masked = grid.future_steps * grid.tokens_per_step
        masked_BNW = self.mask_token.expand(len(context_BNW), num_masked, -1).to(context_BNW.dtype)
        num_steps = grid.observed_steps + grid.future_steps
        positions = grid_positions(
            first_step=0,
            num_steps=num_steps,
            height=grid.height,
            width=grid.width,
            device=context_BNW.device,
        )
        states_BNW: Tensor = self.trunk(
            torch.cat((context_BNW, masked_BNW), dim=1),
            rotation_at(positions, head_dim=self.trunk.shape.head_dim),
            self.trunk.spans(num_steps=num_steps, tokens_per_step=grid.tokens_per_step),
            guidance=guidance,
        )
        return states_BNW.view(len(states_BNW), num_steps, grid.tokens_per_step, -1)
