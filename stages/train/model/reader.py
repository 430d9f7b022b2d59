"""A small transformer that gives each future step a state of its own, off which the head reads joints.

    observed poses, states of the thinker -> context tokens -> blocks <- a query for each future step

It reads no latents. A token stands for each observed frame that is read. In `poses` that is all of the
context. Tokens that a variant adds are states `(batch, token, width)` of any kind and number, so that two
variants differ in nothing but what they add: `vlm` adds the thinker's.

Steps past the trained ones take the state of the last trained one, as no query for them was trained.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from thinkjepa.stages.train.data.poses import input_frames
from thinkjepa.stages.train.data.tokens import ThinkerStates
from thinkjepa.stages.train.model.attention import rotation_at
from thinkjepa.stages.train.model.config import ModelShape
from thinkjepa.stages.train.model.token_guidance import TokenPyramid
from thinkjepa.stages.train.model.trunk import Trunk


class StepReader(nn.Module):
    """States `(batch, step, head width)` of all future steps that training covers."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        assert shape.head is not None, "a reader is part of a model with a head"
        trunk = replace(shape.trunk, depth=shape.head.reader_depth)
        num_frames = len(input_frames(shape.grid.observed_steps * shape.head.frames_per_step))
        self.grid = shape.grid
        self.embed = nn.Linear(4 * len(shape.head.joints), trunk.width)
        self.frame_embedding = nn.Parameter(torch.zeros(num_frames, trunk.width))
        self.queries = nn.Parameter(torch.zeros(shape.trained_steps, trunk.width))
        self.trunk = Trunk(trunk)
        self.hidden = nn.Linear(trunk.width, shape.head.width)
        self.pyramid: TokenPyramid | None = None
        """Reader of the thinker's tokens, where they are given."""

    def forward(
        self, inputs: Tensor, context: Tensor | None = None, thinker: ThinkerStates | None = None
    ) -> Tensor:
        """States of the trained steps, from standardized inputs `(batch, frame, joint, 4)` of the poses.

        `context` `(batch, token, width)` has further tokens to read. A reader with a pyramid of tokens reads
        those of `thinker` at every depth, too.
        """
        guidance = None
        if self.pyramid is not None:
            assert thinker is not None, "a variant that reads tokens has a thinker"
            guidance = self.pyramid.guide(thinker)
        frames_BFW = self.embed(inputs.flatten(2)) + self.frame_embedding
        queries_BTW = self.queries.to(frames_BFW.dtype).expand(len(inputs), -1, -1)
        parts = [*([] if context is None else [context]), frames_BFW, queries_BTW]
        num_frames, num_steps = frames_BFW.shape[1], queries_BTW.shape[1]
        num_context = 0 if context is None else context.shape[1]
        positions = self._positions(num_context, num_frames, num_steps, inputs.device)
        states_BNW: Tensor = self.trunk(
            torch.cat(parts, dim=1),
            rotation_at(positions, head_dim=self.trunk.shape.head_dim),
            self.trunk.spans(num_steps=num_steps, tokens_per_step=1, prefix_tokens=num_context + num_frames),
            guidance=guidance,
        )
        read_BTW: Tensor = self.hidden(states_BNW[:, -num_steps:])
        return read_BTW

    def _positions(self, num_context: int, num_frames: int, num_steps: int, device: torch.device) -> Tensor:
        """Positions `(token, 3)` on the predictor's grid: frames and steps at their times, in its middle.

        Tokens of the context are at the origin, which rotates nothing.
        """
        grid = self.grid
        frames = torch.linspace(0, grid.observed_steps - 1, num_frames, device=device)
        steps = grid.observed_steps + torch.arange(num_steps, device=device)
        times_N = torch.cat((frames, steps))
        rows_N, columns_N = (torch.full_like(times_N, (side - 1) / 2) for side in (grid.height, grid.width))
        positions_N3 = torch.stack((times_N, rows_N, columns_N), dim=1)
        return torch.cat((positions_N3.new_zeros(num_context, 3), positions_N3))
