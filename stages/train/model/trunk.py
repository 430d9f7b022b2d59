"""The stack of pre-norm transformer blocks that every variant shares.

The arithmetic is that of transformers' `VJEPA2Layer` (LayerNorm eps 1e-6, exact GELU, MLP of four times the
width). Guidance, where there is some, runs each block in its own way.
"""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from thinkjepa.stages.train.model.attention import (
    GridAttention,
    Rotation,
    Span,
    bidirectional_spans,
    frame_causal_spans,
)
from thinkjepa.stages.train.model.config import TrunkShape

NORM_EPS = 1e-6

MLP_RATIO = 4

INIT_STD = 0.02  # V-JEPA 2's

FILM_PARTS = 2
"""Scale and shift of a block's input."""

ADALN_PARTS = 6
"""Scale and shift of the normed input, and growth of the output, of the attention and of the MLP."""


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them.

    The backward computes the GELU again, to the same bits: kept, it would be a fifth of a block's memory.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        output: Tensor = (
            checkpoint(self._out_of, hidden, use_reentrant=False, preserve_rng_state=False)
            if torch.is_grad_enabled()
            else self._out_of(hidden)
        )
        return output

    def _out_of(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.fc2(F.gelu(hidden))
        return output


class Block(nn.Module):
    """Attention and MLP, each after a norm and added to its input."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attention = GridAttention(width, heads=heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width)

    def forward(
        self, x: Tensor, rotation: Rotation, spans: tuple[Span, ...], *, adaln: Tensor | None = None
    ) -> Tensor:
        """Tokens after the block. Zeros in `adaln` `(batch, 6, width)` change no bit."""
        if adaln is None:
            x = self.attention(self.norm1(x), rotation, spans) + x
            output: Tensor = self.mlp(self.norm2(x)) + x
            return output
        first_B3W, second_B3W = adaln.chunk(2, dim=1)
        attended = self.attention(modulate(self.norm1(x), first_B3W[:, :FILM_PARTS]), rotation, spans)
        x = _grown(attended, first_B3W) + x
        return _grown(self.mlp(modulate(self.norm2(x), second_B3W[:, :FILM_PARTS])), second_B3W) + x


class Guidance(Protocol):
    """Guidance of a trunk's blocks, each sample under its own."""

    def run(self, depth: int, block: Block, x: Tensor, rotation: Rotation, spans: tuple[Span, ...]) -> Tensor:
        """The output `(batch, token, width)` of the block at `depth`."""
        ...


class Trunk(nn.Module):
    """`depth` blocks and a final norm.

    The residual stream is float32, also under autocast, where linear layers give bfloat16. Gates and learned
    queries are float32 and would raise the stream of guided variants alone.
    """

    def __init__(self, shape: TrunkShape) -> None:
        super().__init__()
        self.shape = shape
        self.layer = nn.ModuleList(Block(shape.width, heads=shape.heads) for _ in range(shape.depth))
        self.layernorm = nn.LayerNorm(shape.width, eps=NORM_EPS)

    def forward(
        self, x: Tensor, rotation: Rotation, spans: tuple[Span, ...], *, guidance: Guidance | None = None
    ) -> Tensor:
        """Normed states of all tokens."""
        x = x.float()
        for depth, block in enumerate(self.layer):
            assert isinstance(block, Block)
            if guidance is None:
                x = block(x, rotation, spans)
            else:
                x = guidance.run(depth, block, x, rotation, spans)
        output: Tensor = self.layernorm(x)
        return output

    def spans(self, *, num_steps: int, tokens_per_step: int, prefix_tokens: int = 0) -> tuple[Span, ...]:
        """Spans of the trunk's attention pattern over `prefix_tokens` and the steps' tokens."""
        if self.shape.attention == "bidirectional":
            return bidirectional_spans(prefix_tokens + num_steps * tokens_per_step)
        return frame_causal_spans(
            num_steps=num_steps, tokens_per_step=tokens_per_step, prefix_tokens=prefix_tokens
        )


def modulate(x: Tensor, film: Tensor) -> Tensor:
    """FiLM: `x * (1 + scale) + shift`, per sample and channel. Zeros change no bit of `x`."""
    scale_BW, shift_BW = film.unbind(1)
    return x * (1 + scale_BW.unsqueeze(1)) + shift_BW.unsqueeze(1)


def _grown(update: Tensor, adaln: Tensor) -> Tensor:
    return update * (1 + adaln[:, FILM_PARTS].unsqueeze(1))


def initialize(module: nn.Module, generator: Generator) -> None:
    """Draw a module's parameters from `generator` alone, in the order of their names in the module.

    Matrices and tables: truncated normal of std 0.02; biases: zero; norms and gates stay as constructed.
    Blocks' output layers are scaled down with depth, as in V-JEPA 2's own predictor (`_rescale_blocks`).
    """
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim >= 2:
            nn.init.trunc_normal_(parameter, std=INIT_STD, generator=generator)
    for trunk in (part for part in module.modules() if isinstance(part, Trunk)):
        _scale_residual_outputs(trunk)


def _scale_residual_outputs(trunk: Trunk) -> None:
    for number, block in enumerate(trunk.layer, start=1):
        assert isinstance(block, Block)
        for weight in (block.attention.proj.weight, block.mlp.fc2.weight):
            weight.data.div_(math.sqrt(2 * number))
