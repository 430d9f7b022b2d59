"""Attention over the latent grid where the pattern is a list of spans, never a dense mask.

A span says which run of queries sees which prefix of the keys. Frame-causal attention is one span per
latent step over a growing prefix; bidirectional attention is a single span. A dense boolean mask of the
paper's 8,192 tokens takes 67 MB and rules out flash kernels; spans give the same result (tests compare), take
half the time (3.7 s against 7.0 s, forward and backward of one layer at that length on one CPU core) and make
causality structural: keys of later steps are not even passed to the kernel.

Shape letters: B batch, N tokens, W width, H heads, K dims of a head.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinkjepa.stages.train.rope import Rotation, rotate


@dataclass(frozen=True, slots=True)
class Span:
    """Queries `[query_start, query_stop)` see keys `[0, key_stop)`."""

    query_start: int
    query_stop: int
    key_stop: int


def bidirectional_spans(num_tokens: int) -> tuple[Span, ...]:
    """Every token sees every token."""
    return (Span(0, num_tokens, num_tokens),)


def frame_causal_spans(*, num_steps: int, tokens_per_step: int, prefix_tokens: int = 0) -> tuple[Span, ...]:
    """Tokens of a latent step see their own step, all earlier steps and the prefix.

    The `prefix_tokens` first tokens belong to no step: they see each other, and everyone sees them.
    """
    prefix = (Span(0, prefix_tokens, prefix_tokens),) if prefix_tokens else ()
    stops = [prefix_tokens + (step + 1) * tokens_per_step for step in range(num_steps)]
    return prefix + tuple(Span(stop - tokens_per_step, stop, stop) for stop in stops)


def attend(query: Tensor, key: Tensor, value: Tensor, spans: tuple[Span, ...]) -> Tensor:
    """Scaled dot-product attention span by span; the spans' queries must cover all tokens in order."""
    outputs = [
        F.scaled_dot_product_attention(
            query[:, :, span.query_start : span.query_stop],
            key[:, :, : span.key_stop],
            value[:, :, : span.key_stop],
        )
        for span in spans
    ]
    return torch.cat(outputs, dim=2)


Attend = Callable[[Tensor, Tensor, Tensor, tuple[Span, ...]], Tensor]
"""From queries, keys, values `(batch, heads, token, head dim)` to what the queries read along the spans."""


class GridAttention(nn.Module):
    """Multi-head self-attention with rotary grid positions; layers are named as in transformers' VJEPA2."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attend: Attend = attend
        """The kernel; `use_kernel` changes it."""
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: Rotation, spans: tuple[Span, ...]) -> Tensor:
        """Mix tokens `(batch, token, width)` along `spans`."""
        query = rotate(self._split_heads(self.query(x)), rotation)
        key = rotate(self._split_heads(self.key(x)), rotation)
        value = self._split_heads(self.value(x))
        mixed_BHNK = self.attend(query, key, value, spans)
        output: Tensor = self.proj(mixed_BHNK.transpose(1, 2).flatten(2))
        return output

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)
