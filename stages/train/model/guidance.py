"""The pyramid: the states of the thinker's layers, brought to every depth of the predictor.

    pooled (level, stream, dim) -> standardize -> linear -> [end of the affine part] -> norm -> signature
    [p, g, |p - g|, p * g] per level -> level(s) of a depth -> a small MLP -> gated modulation of its block

Levels are stored thinker layers, from early to late. Streams are the means over prompt and over generated
tokens. Up to the norm everything is affine in the states, so projecting the mean over tokens equals the mean
over projected tokens: the cache's `pooled` array is enough. Standardizing per dim comes first, because a
handful of dims hold massive activations (hundreds to thousands, nearly the same for every clip). Unscaled,
they would dominate the norm.

Cross-attention reads the thinker's tokens instead, at every depth. Each sample attends to its own tokens, cut
to their number: no mask is needed, padding cannot leak, and a sample's result does not depend on the length
of its neighbors' prompts.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinkjepa.stages.train.data.batches import ThinkerStates
from thinkjepa.stages.train.data.statistics import StateStatistics
from thinkjepa.stages.train.model.attention import Rotation, Span
from thinkjepa.stages.train.model.config import (
    GUIDING_STREAMS,
    GuidanceForm,
    GuidanceShape,
    StreamChoice,
    ThinkerShape,
    TrunkShape,
)
from thinkjepa.stages.train.model.trunk import ADALN_PARTS, FILM_PARTS, NORM_EPS, Block, Guidance, modulate


class Levels(nn.Module):
    """Assignment of levels to depths."""

    @abstractmethod
    def at(self, depth: int, per_level: Tensor) -> Tensor:
        """States `(batch, ...)` for the block at `depth`, from `(batch, level, ...)` of all stored levels."""


class FixedLevels(Levels):
    """One level a depth, early levels for early depths."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = levels

    def at(self, depth: int, per_level: Tensor) -> Tensor:
        return per_level[:, self.levels[depth]]


class MixedLevels(Levels):
    """A mixture of the used levels, learned for each depth by itself. It starts as their mean."""

    def __init__(self, used: tuple[int, ...], *, depth: int) -> None:
        super().__init__()
        self.used = used
        self.mixture = nn.Parameter(torch.zeros(depth, len(used)))  # logits

    def at(self, depth: int, per_level: Tensor) -> Tensor:
        weights_L = self.mixture[depth].softmax(dim=0).to(per_level.dtype)
        mixed: Tensor = torch.tensordot(weights_L, per_level[:, list(self.used)], dims=([0], [1]))
        return mixed


def build_levels(guidance: GuidanceShape, *, num_levels: int, depth: int) -> Levels:
    """The assignment that `guidance` names, over the levels that it uses. One level alone is fixed."""
    used = guidance.used_levels(num_levels)
    if guidance.levels == "mixture" and len(used) > 1:
        return MixedLevels(used, depth=depth)
    return FixedLevels(tuple(used[index] for index in assign_levels(num_levels=len(used), depth=depth)))


def assign_levels(*, num_levels: int, depth: int) -> tuple[int, ...]:
    """The level that guides each depth `l`: `round(l * (num_levels - 1) / (depth - 1))`, ends to ends.

    Halves round up, in whole numbers: Python's `round` would send them to the even neighbour.
    """
    if depth == 1:
        return (num_levels - 1,)
    steps = depth - 1
    return tuple((2 * index * (num_levels - 1) + steps) // (2 * steps) for index in range(depth))


STREAMS = len(GUIDING_STREAMS)

SIGNATURE_PARTS = 4


class LinearByStream(nn.Module):
    """A linear map of its own for each stream, from `(..., stream, dim)` to `(..., stream, width)`."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, width, bias=False) for _ in GUIDING_STREAMS)

    def forward(self, states: Tensor) -> Tensor:
        mapped = zip(self.layers, states.unbind(-2), strict=True)
        return torch.stack([layer(stream) for layer, stream in mapped], dim=-2)


class ThinkerProjection(nn.Module):
    """Pooled thinker states in the predictor's width, normed: `(batch, level, stream, width)`.

    In the paper's form each stream has a projection of its own, and they are not normed here.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, thinker: ThinkerShape, *, width: int, form: GuidanceForm = "shared") -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(thinker.levels, STREAMS, thinker.dim))
        self.register_buffer("scale", torch.ones(thinker.levels, STREAMS, thinker.dim))
        is_papers = form == "paper"
        self.proj = (
            LinearByStream(thinker.dim, width) if is_papers else nn.Linear(thinker.dim, width, bias=False)
        )
        self.norm = nn.Identity() if is_papers else nn.LayerNorm(width, eps=NORM_EPS)

    def set_statistics(self, statistics: StateStatistics) -> None:
        """Standardize with these from now on. They are saved with the weights."""
        self.center.copy_(statistics.mean)
        self.scale.copy_(statistics.scale)

    def project(self, states: Tensor) -> Tensor:
        """The affine part, on `(..., level, stream, dim)`: commutes with the mean over tokens."""
        output: Tensor = self.proj((states - self.center) / self.scale)
        return output

    def forward(self, pooled: Tensor) -> Tensor:
        """A stream that is all zeros (nothing was generated) is absent: it projects to zeros, too."""
        present = pooled.ne(0).any(dim=-1, keepdim=True)
        output: Tensor = self.norm(self.project(pooled) * present)
        return output


@dataclass(frozen=True, slots=True)
class Film:
    """Guidance that scales and shifts what enters a block: `(batch, depth, 2, width)`."""

    films: Tensor

    def run(self, depth: int, block: Block, x: Tensor, rotation: Rotation, spans: tuple[Span, ...]) -> Tensor:
        output: Tensor = block(modulate(x, self.films[:, depth]), rotation, spans)
        return output


@dataclass(frozen=True, slots=True)
class AdaLN:
    """Guidance that modulates a block's normed inputs and its outputs: `(batch, depth, 6, width)`."""

    modulations: Tensor

    def run(self, depth: int, block: Block, x: Tensor, rotation: Rotation, spans: tuple[Span, ...]) -> Tensor:
        output: Tensor = block(x, rotation, spans, adaln=self.modulations[:, depth])
        return output


class Pyramid(nn.Module):
    """Turns pooled thinker states into one gated modulation (FiLM or AdaLN) per predictor depth and sample.

    Gates start at zero, so that training starts as the unguided predictor, to the last bit. In the paper's
    form (arXiv 2603.22281) streams have projections of their own, the signature is normed, and gates go
    through tanh.
    """

    def __init__(
        self,
        thinker: ThinkerShape,
        *,
        depth: int,
        width: int,
        fusion_width: int,
        guidance: GuidanceShape | None = None,
    ) -> None:
        super().__init__()
        self.guidance = guidance or GuidanceShape()
        self.parts = ADALN_PARTS if self.guidance.kind == "adaln" else FILM_PARTS
        self.is_papers = self.guidance.form == "paper"
        self.projection = ThinkerProjection(thinker, width=width, form=self.guidance.form)
        signature_width = SIGNATURE_PARTS * width
        self.norm = nn.LayerNorm(signature_width, eps=NORM_EPS) if self.is_papers else nn.Identity()
        self.levels = build_levels(self.guidance, num_levels=thinker.levels, depth=depth)
        self.fusion = nn.ModuleList(
            nn.Sequential(
                nn.Linear(signature_width, fusion_width),
                nn.GELU(),
                nn.Linear(fusion_width, self.parts * width),
            )
            for _ in range(depth)
        )
        self.gates = nn.Parameter(torch.zeros(depth))

    def forward(self, pooled: Tensor) -> Tensor:
        """Modulations `(batch, depth, parts, width)`, already multiplied by the gates."""
        used = only_streams(pooled, self.guidance.use_streams)
        signatures_BLW = self.norm(signature(self.projection(used)))
        parts = [fusion(self.levels.at(depth, signatures_BLW)) for depth, fusion in enumerate(self.fusion)]
        parts_BYPW = torch.stack(parts, dim=1).view(len(pooled), len(parts), self.parts, -1)
        gates_Y = self.gates.tanh() if self.is_papers else self.gates
        return parts_BYPW * gates_Y[:, None, None]

    def guide(self, states: ThinkerStates) -> Guidance:
        """Guidance of a batch. Samples that are not guided run as in the unguided predictor."""
        modulations_BYPW = self(states.pooled)
        if states.guided is not None:
            modulations_BYPW = modulations_BYPW * states.guided[:, None, None, None]
        return AdaLN(modulations_BYPW) if self.guidance.kind == "adaln" else Film(modulations_BYPW)


def only_streams(pooled: Tensor, streams: StreamChoice) -> Tensor:
    """Pooled states with the stream that is not used made absent (zeros)."""
    if streams == "both":
        return pooled
    keep = torch.zeros(STREAMS, 1, device=pooled.device, dtype=pooled.dtype)
    keep[GUIDING_STREAMS.index(streams)] = 1
    return pooled * keep


def signature(projected: Tensor) -> Tensor:
    """The prompt's and the generated states, their difference and product: `(batch, level, 4 * width)`."""
    prompt, generated = projected.unbind(2)
    return torch.cat((prompt, generated, (prompt - generated).abs(), prompt * generated), dim=-1)


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
        """Standardize with these from now on. They are saved with the weights."""
        self.center.copy_(statistics.mean)
        self.scale.copy_(statistics.scale)

    def forward(self, states: Tensor) -> Tensor:
        output: Tensor = self.norm(self.proj((states - self.center[:, None]) / self.scale[:, None]))
        return output


class CrossAttention(nn.Module):
    """Grid tokens attend to thinker tokens, without positions: the thinker's states carry their own."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, states: Tensor, counts: tuple[int, ...]) -> Tensor:
        """Read the first `counts` of `states` for `x` `(batch, token, width)`. Zeros for count 0.

        A sample without tokens reads a place of `states` in vain. All weights then have a gradient of zero,
        which processes that share a step exchange, and not none.
        """
        query = self._split_heads(self.query(self.norm(x)))
        key, value = self._split_heads(self.key(states)), self._split_heads(self.value(states))
        read = [
            F.scaled_dot_product_attention(
                query[index, None],
                key[index, None, :, : max(1, count)],
                value[index, None, :, : max(1, count)],
            )
            for index, count in enumerate(counts)
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
        """Guidance of a batch. Samples that are not guided run as in the unguided predictor."""
        assert states.tokens is not None, "cross-attention is always given tokens"
        gates_BY = self.gates.expand(len(states.pooled), -1)
        if states.guided is not None:
            gates_BY = gates_BY * states.guided[:, None]
        projected = self.projection(states.tokens.states)
        return Cross(self.layers, self.levels, projected, states.tokens.counts, gates_BY)
