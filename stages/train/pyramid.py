"""The pyramid: what the thinker's layers say, brought to every depth of the predictor.

    pooled (level, stream, dim) -> standardise -> linear -> [end of what is affine] -> norm -> signature per
    level [p, g, |p - g|, p * g] -> a small MLP per depth -> gated scale and shift of that depth's block

Levels are stored thinker layers, from early to late; streams are the means over prompt and over generated
tokens. Up to the norm everything is affine in the states, so projecting the mean over tokens equals the mean
over projected tokens: that is why the cache's `pooled` array is enough. Standardising per dim comes first,
because a handful of dims hold massive activations (hundreds to thousands, nearly the same for every clip):
unscaled, they would drown all else in the norm.

Shape letters: B batch, L levels, S streams (2), D thinker dim, W predictor width, Y predictor depth.
"""

import torch
from torch import Tensor, nn

from thinkjepa.stages.train.shapes import ThinkerShape
from thinkjepa.stages.train.statistics import PooledStatistics
from thinkjepa.stages.train.trunk import NORM_EPS

STREAMS = 2
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

    def set_statistics(self, statistics: PooledStatistics) -> None:
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


class Pyramid(nn.Module):
    """Turns pooled thinker states into one gated scale and shift per predictor depth and sample.

    Gates start at zero, so that training starts as the unguided predictor, to the last bit.
    """

    def __init__(self, thinker: ThinkerShape, *, depth: int, width: int, fusion_width: int) -> None:
        super().__init__()
        self.levels = assign_levels(num_levels=thinker.levels, depth=depth)
        self.projection = ThinkerProjection(thinker, width=width)
        self.fusion = nn.ModuleList(
            nn.Sequential(
                nn.Linear(SIGNATURE_PARTS * width, fusion_width),
                nn.GELU(),
                nn.Linear(fusion_width, 2 * width),
            )
            for _ in range(depth)
        )
        self.gates = nn.Parameter(torch.zeros(depth))

    def forward(self, pooled: Tensor) -> Tensor:
        """Guidance `(batch, depth, 2, width)`: scale and shift, already multiplied by the gates."""
        signatures_BLW = signature(self.projection(pooled))
        films = [
            fusion(signatures_BLW[:, level]) for fusion, level in zip(self.fusion, self.levels, strict=True)
        ]
        films_BY2W = torch.stack(films, dim=1).view(len(pooled), len(films), 2, -1)
        return films_BY2W * self.gates[:, None, None]


def signature(projected: Tensor) -> Tensor:
    """What the prompt's and the generated states say, and how they differ: `(batch, level, 4 * width)`."""
    prompt, generated = projected.unbind(2)
    return torch.cat((prompt, generated, (prompt - generated).abs(), prompt * generated), dim=-1)


def assign_levels(*, num_levels: int, depth: int) -> tuple[int, ...]:
    """The level that guides each depth `l`: `round(l * (num_levels - 1) / (depth - 1))`, ends to ends.

    Halves round up, in whole numbers: Python's `round` would send them to the even neighbour.
    """
    if depth == 1:
        return (num_levels - 1,)
    steps = depth - 1
    return tuple((2 * index * (num_levels - 1) + steps) // (2 * steps) for index in range(depth))
