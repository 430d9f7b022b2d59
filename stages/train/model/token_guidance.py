"""Guidance by the thinker's states that are read one by one: where and when it saw something is known.

    cross     at every depth, grid tokens attend to slots and text of the depth's level; rotary positions are
              those of the predictor's own grid, so that attention knows the way from a patch to a slot
    spatial   FiLM of each patch, from the pooled states and from the slots that are nearest to it

Cross-attention cuts each sample's states to their number: no mask is needed, padding cannot leak, and a
sample's result does not depend on the length of its neighbors' prompts. A state that has no place in the
frame, such as text, is rotated by its time alone. States without positions, as earlier versions read them,
are not rotated, nor is what attends to them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinkjepa.stages.train.data.statistics import StateStatistics
from thinkjepa.stages.train.data.tokens import ThinkerStates, TokenBatch
from thinkjepa.stages.train.model.attention import Rotation, Span, grid_positions, rotate, rotation_at
from thinkjepa.stages.train.model.config import LatentGrid, ThinkerShape, TrunkShape
from thinkjepa.stages.train.model.guidance import (
    Levels,
    ThinkerProjection,
    build_levels,
    only_streams,
    signature,
    signature_parts,
)
from thinkjepa.stages.train.model.reading import GuidanceShape, TokenReading
from thinkjepa.stages.train.model.trunk import FILM_PARTS, NORM_EPS, Block, Guidance

NEAR_PATCHES = 0.5
"""Distance, in patches, up to which a slot counts as being at a patch."""


class TokenProjection(nn.Module):
    """Slots and tokens in the predictor's width, normed: `(batch, level, token, width)`.

    Where both are read each has statistics of its own: a mean over many tokens varies less than one token.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, thinker: ThinkerShape, *, width: int, reading: TokenReading) -> None:
        super().__init__()
        kinds = (2,) if reading.slots and reading.kinds else ()
        self.register_buffer("center", torch.zeros(*kinds, thinker.levels, thinker.dim))
        self.register_buffer("scale", torch.ones(*kinds, thinker.levels, thinker.dim))
        self.proj = nn.Linear(thinker.dim, width, bias=False)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def set_statistics(self, statistics: StateStatistics) -> None:
        """Standardize with these from now on. They are saved with the weights."""
        self.center.copy_(statistics.mean)
        self.scale.copy_(statistics.scale)

    def forward(self, tokens: TokenBatch) -> Tensor:
        center, scale = self._of(self.center, tokens), self._of(self.scale, tokens)
        output: Tensor = self.norm(self.proj((tokens.states - center) / scale))
        return output

    def _of(self, statistic: Tensor, tokens: TokenBatch) -> Tensor:
        """The statistic of each state, of a shape that extends to `(batch, level, token, dim)`."""
        if statistic.ndim == 2:
            return statistic[:, None]
        of_slots, of_tokens = statistic.unsqueeze(2)
        return torch.where(tokens.is_slot()[:, None, :, None], of_slots, of_tokens)


@dataclass(frozen=True, slots=True)
class Keys:
    """Projected states that are attended to."""

    states: Tensor
    """`(batch, level, token, width)`"""
    counts: tuple[int, ...]
    rotation: Rotation | None
    """`(batch, 1, token, rotated dims)`. None: neither they nor queries are rotated."""


class CrossAttention(nn.Module):
    """Grid tokens attend to the thinker's states."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, states: Tensor, keys: Keys, rotation: Rotation) -> Tensor:
        """Read the first `counts` of `states` for `x` `(batch, token, width)`. Zeros for count 0.

        A sample without tokens reads a place of `states` in vain. All weights then have a gradient of zero,
        which processes that share a step exchange, and not none.
        """
        query, key = self._query_and_key(x, states, keys, rotation)
        value = self._split_heads(self.value(states))
        read = [
            F.scaled_dot_product_attention(
                query[index, None],
                key[index, None, :, : max(1, count)],
                value[index, None, :, : max(1, count)],
            )
            for index, count in enumerate(keys.counts)
        ]
        output: Tensor = self.proj(torch.cat(read).transpose(1, 2).flatten(2))
        present_B = torch.tensor([count > 0 for count in keys.counts], device=x.device, dtype=output.dtype)
        return output * present_B[:, None, None]

    def weights(self, x: Tensor, states: Tensor, keys: Keys, rotation: Rotation) -> list[Tensor]:
        """The attention that `forward` reads with, of each sample: `(head, query, its own tokens)`."""
        query, key = self._query_and_key(x, states, keys, rotation)
        scaled = query / query.shape[-1] ** 0.5
        return [
            (scaled[index] @ key[index, :, :count].transpose(-1, -2)).softmax(dim=-1)
            for index, count in enumerate(keys.counts)
        ]

    def _query_and_key(
        self, x: Tensor, states: Tensor, keys: Keys, rotation: Rotation
    ) -> tuple[Tensor, Tensor]:
        query, key = self._split_heads(self.query(self.norm(x))), self._split_heads(self.key(states))
        if keys.rotation is not None:
            query, key = rotate(query, rotation), rotate(key, keys.rotation)
        return query, key

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class Cross:
    """Guidance that adds, to what enters a block, what it reads off the thinker's states."""

    layers: nn.ModuleList
    levels: Levels
    keys: Keys
    gates: Tensor
    """`(batch, depth)`"""

    def run(self, depth: int, block: Block, x: Tensor, rotation: Rotation, spans: tuple[Span, ...]) -> Tensor:
        read = self.layers[depth](x, self.levels.at(depth, self.keys.states), self.keys, rotation)
        output: Tensor = block(x + self.gates[:, depth, None, None] * read, rotation, spans)
        return output


class TokenPyramid(nn.Module):
    """Cross-attention at every depth, each over the states of its level (or mixture of levels).

    Gates start at zero, so that training starts as the unguided predictor, to the last bit.
    """

    def __init__(self, thinker: ThinkerShape, trunk: TrunkShape, guidance: GuidanceShape) -> None:
        super().__init__()
        self.head_dim = trunk.head_dim
        self.projection = TokenProjection(thinker, width=trunk.width, reading=guidance.reading())
        self.levels = build_levels(guidance, num_levels=thinker.levels, depth=trunk.depth)
        self.layers = nn.ModuleList(
            CrossAttention(trunk.width, heads=trunk.heads) for _ in range(trunk.depth)
        )
        self.gates = nn.Parameter(torch.zeros(trunk.depth))

    def set_statistics(self, pooled: StateStatistics, tokens: StateStatistics | None) -> None:
        """Standardize states with these."""
        assert tokens is not None, "states are read one by one"
        self.projection.set_statistics(tokens)

    def guide(self, states: ThinkerStates) -> Guidance:
        """Guidance of a batch. Samples that are not guided run as in the unguided predictor."""
        assert states.tokens is not None, "cross-attention is always given tokens"
        gates_BY = self.gates.expand(len(states.pooled), -1)
        if states.guided is not None:
            gates_BY = gates_BY * states.guided[:, None]
        tokens, rotation = states.tokens, None
        if tokens.positions is not None:
            # an unknown place is 0, which rotates nothing
            rotation = rotation_at(tokens.positions.nan_to_num()[:, None], head_dim=self.head_dim)
        keys = Keys(self.projection(tokens), tokens.counts, rotation)
        return Cross(self.layers, self.levels, keys, gates_BY)


@dataclass(frozen=True, slots=True)
class SpatialFilm:
    """Guidance that scales and shifts what enters a block, each patch by itself, at all steps alike."""

    films: Tensor
    """`(batch, depth, patch, 2, width)`"""

    def run(self, depth: int, block: Block, x: Tensor, rotation: Rotation, spans: tuple[Span, ...]) -> Tensor:
        scale_BPW, shift_BPW = self.films[:, depth].unbind(2)
        x_BTPW = x.view(len(x), -1, *scale_BPW.shape[1:])
        modulated = x_BTPW * (1 + scale_BPW.unsqueeze(1)) + shift_BPW.unsqueeze(1)
        output: Tensor = block(modulated.flatten(1, 2), rotation, spans)
        return output


class PatchFusion(nn.Module):
    """A small MLP over a sample's signature and what each of its patches reads: `(batch, patch, output)`."""

    def __init__(self, signature_width: int, width: int, hidden_width: int) -> None:
        super().__init__()
        self.whole = nn.Linear(signature_width, hidden_width)
        self.place = nn.Linear(width, hidden_width, bias=False)
        self.out = nn.Linear(hidden_width, FILM_PARTS * width)

    def forward(self, whole_BW: Tensor, places_BPW: Tensor) -> Tensor:
        output: Tensor = self.out(F.gelu(self.whole(whole_BW).unsqueeze(1) + self.place(places_BPW)))
        return output


class SpatialPyramid(nn.Module):
    """FiLM of each patch at every depth, from the pooled states and from the slots nearest to the patch.

    Slots of several segments of time at one place count alike: their mean is read. Gates start at zero, so
    that training starts as the unguided predictor, to the last bit.
    """

    def __init__(
        self,
        thinker: ThinkerShape,
        grid: LatentGrid,
        trunk: TrunkShape,
        *,
        fusion_width: int,
        guidance: GuidanceShape,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.use_streams, self.streams = guidance.use_streams, thinker.streams
        self.projection = ThinkerProjection(thinker, width=trunk.width)
        self.slots = TokenProjection(thinker, width=trunk.width, reading=guidance.reading())
        self.levels = build_levels(guidance, num_levels=thinker.levels, depth=trunk.depth)
        self.fusion = nn.ModuleList(
            PatchFusion(signature_parts(thinker) * trunk.width, trunk.width, fusion_width)
            for _ in range(trunk.depth)
        )
        self.gates = nn.Parameter(torch.zeros(trunk.depth))

    def set_statistics(self, pooled: StateStatistics, tokens: StateStatistics | None) -> None:
        """Standardize pooled states and slots with these."""
        assert tokens is not None, "slots are read one by one"
        self.projection.set_statistics(pooled)
        self.slots.set_statistics(tokens)

    def guide(self, states: ThinkerStates) -> Guidance:
        """Guidance of a batch. Samples that are not guided run as in the unguided predictor."""
        assert states.tokens is not None, "spatial guidance is always given slots"
        pooled = only_streams(states.pooled, self.use_streams, self.streams)
        signatures_BLW = signature(self.projection(pooled))
        places_BLPW = self._at_patches(states.tokens)
        films_BYPW = torch.stack(
            [
                fusion(self.levels.at(depth, signatures_BLW), self.levels.at(depth, places_BLPW))
                for depth, fusion in enumerate(self.fusion)
            ],
            dim=1,
        )
        gates_BY = self.gates if states.guided is None else self.gates * states.guided[:, None]
        films = films_BYPW.view(*films_BYPW.shape[:3], FILM_PARTS, -1)
        return SpatialFilm(films * gates_BY.expand(*films.shape[:2])[..., None, None, None])

    def _at_patches(self, tokens: TokenBatch) -> Tensor:
        """The slots that are nearest to each patch, `(batch, level, patch, width)`. Zeros without any."""
        weights_BPS = nearness(tokens, self.grid)
        slots_BLSW = self.slots(tokens)
        return torch.einsum("bps,blsw->blpw", weights_BPS.to(slots_BLSW.dtype), slots_BLSW)


def nearness(tokens: TokenBatch, grid: LatentGrid) -> Tensor:
    """Weights of slots at each patch `(batch, patch, token)`: Shepard's, of the inverse distance's 4th power.

    They sum to 1, or are all zero for a sample without a slot that has a place.
    """
    assert tokens.positions is not None, "slots have positions"
    device = tokens.positions.device
    patches = grid_positions(first_step=0, num_steps=1, height=grid.height, width=grid.width, device=device)
    places = tokens.positions[..., 1:]
    known = tokens.is_slot() & places.isfinite().all(dim=-1)
    offsets = patches[None, :, None, 1:] - places.nan_to_num()[:, None]
    weights = known[:, None] / (offsets.square().sum(dim=-1) + NEAR_PATCHES**2).square()
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
