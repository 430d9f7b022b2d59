"""The pyramid: what the thinker's layers say, brought to every depth of the predictor.

    pooled (level, stream, dim) -> standardise -> linear -> [end of what is affine] -> norm -> signature
    [p, g, |p - g|, p * g] per level -> level(s) of a depth -> a small MLP -> gated modulation of its block

Levels are stored thinker layers, from early to late; streams are the means over prompt and over generated
tokens. Up to the norm everything is affine in the states, so projecting the mean over tokens equals the mean
over projected tokens: that is why the cache's `pooled` array is enough. Standardising per dim comes first,
because a handful of dims hold massive activations (hundreds to thousands, nearly the same for every clip):
unscaled, they would drown all else in the norm.

Shape letters: B batch, L levels, S streams (2), D thinker dim, W predictor width, Y predictor depth.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thinkjepa.cache import STREAMS as STREAM_NAMES
from thinkjepa.stages.train.attention import Span
from thinkjepa.stages.train.levels import build_levels
from thinkjepa.stages.train.rope import Rotation
from thinkjepa.stages.train.shapes import GuidanceShape, StreamChoice, ThinkerShape
from thinkjepa.stages.train.statistics import StateStatistics
from thinkjepa.stages.train.thinker_states import ThinkerStates
from thinkjepa.stages.train.trunk import ADALN_PARTS, FILM_PARTS, NORM_EPS, Block, Guidance, modulate

STREAMS = len(STREAM_NAMES)
SIGNATURE_PARTS = 4


class ThinkerProjection(nn.Module):
    """Pooled thinker states in the predictor's width, normed: `(batch, level, stream, width)`."""

    center: Tensor
    scale: Tensor

    def __init__(self, thinker: ThinkerShape, *, width: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(thinker.levels, STREAMS, thinker.dim))
        self.register_buffer("scale", torch.ones(thinker.levels, STREAMS, thinker.dim))
        self.proj = nn.Linear(thinker.dim, width, bias=False)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def set_statistics(self, statistics: StateStatistics) -> None:
        """Standardise with these from now on; they are saved with the weights."""
        self.center.copy_(statistics.center)
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

    Gates start at zero, so that training starts as the unguided predictor, to the last bit.
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
        self.projection = ThinkerProjection(thinker, width=width)
        self.levels = build_levels(self.guidance, num_levels=thinker.levels, depth=depth)
        self.fusion = nn.ModuleList(
            nn.Sequential(
                nn.Linear(SIGNATURE_PARTS * width, fusion_width),
                nn.GELU(),
                nn.Linear(fusion_width, self.parts * width),
            )
            for _ in range(depth)
        )
        self.gates = nn.Parameter(torch.zeros(depth))

    def forward(self, pooled: Tensor) -> Tensor:
        """Modulations `(batch, depth, parts, width)`, already multiplied by the gates."""
        used = only_streams(pooled, self.guidance.use_streams)
        signatures_BLW = signature(self.projection(used))
        parts = [fusion(self.levels.at(depth, signatures_BLW)) for depth, fusion in enumerate(self.fusion)]
        parts_BYPW = torch.stack(parts, dim=1).view(len(pooled), len(parts), self.parts, -1)
        return parts_BYPW * self.gates[:, None, None]

    def guide(self, states: ThinkerStates) -> Guidance:
        """Guidance of a batch; samples that are not guided run as in the unguided predictor."""
        modulations_BYPW = self(states.pooled)
        if states.guided is not None:
            modulations_BYPW = modulations_BYPW * states.guided[:, None, None, None]
        return AdaLN(modulations_BYPW) if self.guidance.kind == "adaln" else Film(modulations_BYPW)


def only_streams(pooled: Tensor, streams: StreamChoice) -> Tensor:
    """Pooled states with the stream that is not used made absent (zeros)."""
    if streams == "both":
        return pooled
    keep = torch.zeros(STREAMS, 1, device=pooled.device, dtype=pooled.dtype)
    keep[STREAM_NAMES.index(streams)] = 1
    return pooled * keep


def signature(projected: Tensor) -> Tensor:
    """What the prompt's and the generated states say, and how they differ: `(batch, level, 4 * width)`."""
    prompt, generated = projected.unbind(2)
    return torch.cat((prompt, generated, (prompt - generated).abs(), prompt * generated), dim=-1)
