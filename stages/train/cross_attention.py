"""Guidance by cross-attention: at every depth the latent grid looks at the thinker's tokens.

Each sample attends to its own tokens, cut to their number: no mask is needed, padding cannot leak, and a
sample's result does not depend on how long its neighbours' prompts are.

Shape letters: B batch, L levels, S thinker tokens, N grid tokens, W predictor width, H heads, K dims of a
head, Y predictor depth.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinkjepa.stages.train.attention import Span
from thinkjepa.stages.train.levels import Levels, build_levels
from thinkjepa.stages.train.rope import Rotation
from thinkjepa.stages.train.shapes import GuidanceShape, ThinkerShape, TrunkShape
from thinkjepa.stages.train.statistics import StateStatistics
from thinkjepa.stages.train.thinker_states import ThinkerStates
from thinkjepa.stages.train.trunk import NORM_EPS, Block, Guidance


class TokenProjection(nn.Module):
    """Thinker tokens in the predictor's width, normed: `(batch, level, token, width)`."""

    center: Tensor
    scale: Tensor

    def __init__(self, thinker: ThinkerShape, *, width: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(thinker.levels, thinker.dim))
        self.register_buffer("scale", torch.ones(thinker.levels, thinker.dim))
        self.proj = nn.Linear(thinker.dim, width, bias=False)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def set_statistics(self, statistics: StateStatistics) -> None:
        """Standardise with these from now on; they are saved with the weights."""
        self.center.copy_(statistics.center)
        self.scale.copy_(statistics.scale)

    def forward(self, states: Tensor) -> Tensor:
        output: Tensor = self.norm(self.proj((states - self.center[:, None]) / self.scale[:, None]))
        return output


class CrossAttention(nn.Module):
    """Grid tokens attend to thinker tokens; no positions, the thinker's states carry their own."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, states: Tensor, counts: tuple[int, ...]) -> Tensor:
        """What `x` `(batch, token, width)` reads off the first `counts` of `states`; zeros where it is 0."""
        query = self._split_heads(self.query(self.norm(x)))
        key, value = self._split_heads(self.key(states)), self._split_heads(self.value(states))
        read = [
            F.scaled_dot_product_attention(
                query[place, None], key[place, None, :, :count], value[place, None, :, :count]
            )
            if count
            else torch.zeros_like(query[place, None])
            for place, count in enumerate(counts)
        ]
        output: Tensor = self.proj(torch.cat(read).transpose(1, 2).flatten(2))
        present_B = torch.tensor([count > 0 for count in counts], device=x.device, dtype=output.dtype)
        return output * present_B[:, None, None]

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class Cross:
    """Guidance that adds, to what enters a block, what it reads off the thinker's tokens."""

    layers: nn.ModuleList
    levels: Levels
    states: Tensor
    """`(batch, level, token, width)`"""
    counts: tuple[int, ...]
    gates: Tensor
    """`(batch, depth)`"""

    def run(self, depth: int, block: Block, x: Tensor, rotation: Rotation, spans: tuple[Span, ...]) -> Tensor:
        read = self.layers[depth](x, self.levels.at(depth, self.states), self.counts)
        output: Tensor = block(x + self.gates[:, depth, None, None] * read, rotation, spans)
        return output


class TokenPyramid(nn.Module):
    """Cross-attention at every depth, each over the tokens of its level (or mixture of levels).

    Gates start at zero, so that training starts as the unguided predictor, to the last bit.
    """

    def __init__(self, thinker: ThinkerShape, trunk: TrunkShape, guidance: GuidanceShape) -> None:
        super().__init__()
        self.projection = TokenProjection(thinker, width=trunk.width)
        self.levels = build_levels(guidance, num_levels=thinker.levels, depth=trunk.depth)
        self.layers = nn.ModuleList(
            CrossAttention(trunk.width, heads=trunk.heads) for _ in range(trunk.depth)
        )
        self.gates = nn.Parameter(torch.zeros(trunk.depth))

    def guide(self, states: ThinkerStates) -> Guidance:
        """Guidance of a batch; samples that are not guided run as in the unguided predictor."""
        assert states.tokens is not None, "cross-attention is always given tokens"
        gates_BY = self.gates.expand(len(states.pooled), -1)
        if states.guided is not None:
            gates_BY = gates_BY * states.guided[:, None]
        projected = self.projection(states.tokens.states)
        return Cross(self.layers, self.levels, projected, states.tokens.counts, gates_BY)
