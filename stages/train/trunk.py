"""The stack of pre-norm transformer blocks that every variant shares.

Same arithmetic as transformers' `VJEPA2Layer` (LayerNorm eps 1e-6, exact GELU, MLP of four times the width);
guidance, where there is some, modulates the tokens as they enter a block.

Shape letters: B batch, N tokens, W width.
"""

import math

import torch.nn.functional as F
from torch import Generator, Tensor, nn

from thinkjepa.stages.train.attention import GridAttention, Span, bidirectional_spans, frame_causal_spans
from thinkjepa.stages.train.rope import Rotation
from thinkjepa.stages.train.shapes import TrunkShape

NORM_EPS = 1e-6
MLP_RATIO = 4
INIT_STD = 0.02  # V-JEPA 2's


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return output


class Block(nn.Module):
    """Attention and MLP, each behind a norm and added to its input."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attention = GridAttention(width, heads=heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width)

    def forward(self, x: Tensor, rotation: Rotation, spans: tuple[Span, ...]) -> Tensor:
        x = self.attention(self.norm1(x), rotation, spans) + x
        output: Tensor = self.mlp(self.norm2(x)) + x
        return output


class Trunk(nn.Module):
    """`depth` blocks and a final norm."""

    def __init__(self, shape: TrunkShape) -> None:
        super().__init__()
        self.shape = shape
        self.layer = nn.ModuleList(Block(shape.width, heads=shape.heads) for _ in range(shape.depth))
        self.layernorm = nn.LayerNorm(shape.width, eps=NORM_EPS)

    def forward(
        self, x: Tensor, rotation: Rotation, spans: tuple[Span, ...], *, guidance: Tensor | None = None
    ) -> Tensor:
        """Normed states of all tokens.

        `guidance` `(batch, depth, 2, width)` holds each block's gated scale and shift, one per sample.
        """
        for depth, block in enumerate(self.layer):
            if guidance is not None:
                x = modulate(x, guidance[:, depth])
            x = block(x, rotation, spans)
        output: Tensor = self.layernorm(x)
        return output

    def spans(self, *, num_steps: int, tokens_per_step: int, prefix_tokens: int = 0) -> tuple[Span, ...]:
        """Who sees whom among `prefix_tokens` and the steps' tokens, by the trunk's attention pattern."""
        if self.shape.attention == "bidirectional":
            return bidirectional_spans(prefix_tokens + num_steps * tokens_per_step)
        return frame_causal_spans(
            num_steps=num_steps, tokens_per_step=tokens_per_step, prefix_tokens=prefix_tokens
        )


def modulate(x: Tensor, film: Tensor) -> Tensor:
    """FiLM: `x * (1 + scale) + shift`, per sample and channel; zeros leave `x` as it is to the last bit."""
    scale_BW, shift_BW = film.unbind(1)
    return x * (1 + scale_BW.unsqueeze(1)) + shift_BW.unsqueeze(1)


def initialise(module: nn.Module, generator: Generator) -> None:
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
