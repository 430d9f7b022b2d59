"""The pyramid: the states of the thinker's layers, brought to every depth of the predictor.

    pooled (level, stream, dim) -> standardize -> linear -> [end of the affine part] -> norm -> signature
    per level -> level(s) of a depth -> a small MLP -> gated modulation of its block

Levels are stored thinker layers, from early to late. Streams are means over the prompt, over parts of it and
over generated tokens. The signature has each of them, with the differences and products of the last one and
each other: [p, g, |p - g|, p * g] of two. Up to the norm everything is affine in the states, so projecting
the mean over tokens equals the mean over projected tokens: the cache's `pooled` array is enough.
Standardizing per dim comes first, because a handful of dims hold massive activations (hundreds to thousands,
nearly the same for every clip). Unscaled, they would dominate the norm.

Guidance that knows places reads states one by one: see `token_guidance`.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thinkjepa.stages.train.data.statistics import StateStatistics
from thinkjepa.stages.train.data.tokens import ThinkerStates
from thinkjepa.stages.train.model.attention import Rotation, Span
from thinkjepa.stages.train.model.config import ThinkerShape
from thinkjepa.stages.train.model.reading import GuidanceForm, GuidanceShape, chosen_streams
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


class LinearByStream(nn.Module):
    """A linear map of its own for each stream, from `(..., stream, dim)` to `(..., stream, width)`."""

    def __init__(self, dim: int, width: int, *, streams: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, width, bias=False) for _ in range(streams))

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
        streams, is_papers = len(thinker.streams), form == "paper"
        self.register_buffer("center", torch.zeros(thinker.levels, streams, thinker.dim))
        self.register_buffer("scale", torch.ones(thinker.levels, streams, thinker.dim))
        self.proj = (
            LinearByStream(thinker.dim, width, streams=streams)
            if is_papers
            else nn.Linear(thinker.dim, width, bias=False)
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
        self.streams = thinker.streams
        signature_width = signature_parts(thinker) * width
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

    def set_statistics(self, pooled: StateStatistics, tokens: StateStatistics | None) -> None:
        """Standardize pooled states with these."""
        self.projection.set_statistics(pooled)

    def forward(self, pooled: Tensor) -> Tensor:
        """Modulations `(batch, depth, parts, width)`, already multiplied by the gates."""
        used = only_streams(pooled, self.guidance.use_streams, self.streams)
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


def only_streams(pooled: Tensor, choice: str, streams: tuple[str, ...]) -> Tensor:
    """Pooled states, those `streams` absent (zeros) that are not chosen: earlier runs read them so."""
    used = chosen_streams(choice, streams)
    if used == streams:
        return pooled
    keep = torch.tensor([float(name in used) for name in streams], device=pooled.device, dtype=pooled.dtype)
    return pooled * keep[:, None]


def signature_parts(thinker: ThinkerShape) -> int:
    """Parts of the signature, each as wide as the predictor."""
    return 3 * len(thinker.streams) - 2


def signature(projected: Tensor) -> Tensor:
    """All streams, then differences and products of each and the last: `(batch, level, parts * width)`."""
    *others, last = projected.unbind(2)
    differences = [(other - last).abs() for other in others]
    products = [other * last for other in others]
    return torch.cat((*others, last, *differences, *products), dim=-1)
