"""Attention along spans by one compiled kernel, torch's FlexAttention, for `--attention-kernel flex` on GPUs.

A table gives the kernel, for each block of queries, the blocks of keys that are attended to wholly, in part
(then each pair is compared, in registers), or not at all (then the block is skipped). It is computed from the
spans, 64 x 64 numbers at the paper's 8,192 tokens, and never a mask over tokens. The result is that of
`attend` (tests compare). On a CPU there is no backward.
"""

from collections.abc import Callable
from functools import cache, lru_cache

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.model.attention import GridAttention, Span
from thinkjepa.stages.train.model.config import AttentionKernel

BLOCK_TOKENS = 128  # the kernel's own on GPUs


def flex_attend(query: Tensor, key: Tensor, value: Tensor, spans: tuple[Span, ...]) -> Tensor:
    """The result of `attend`, by the compiled kernel."""
    return compiled_kernel()(query, key, value, block_mask=block_mask(spans, query.device))


@cache
def compiled_kernel() -> Callable[..., Tensor]:
    """Compiled on first use, and for each size of batch: a run has a handful.

    Uncompiled, flex_attention makes a score of every pair of tokens, so that falling back to it is an error.
    Compiled for any size at once, its template for CPUs is no valid C++ (torch 2.14).
    """
    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return compiled


@lru_cache(maxsize=8)  # a run has one pattern, or one for each horizon it is evaluated at
def block_mask(spans: tuple[Span, ...], device: torch.device) -> BlockMask:
    """The blocks of keys that each block of queries attends to, wholly and in part."""
    stops = torch.cat([torch.full((span.query_stop - span.query_start,), span.key_stop) for span in spans])
    num_tokens = len(stops)
    num_blocks = -(-num_tokens // BLOCK_TOKENS)
    padded = torch.cat((stops, stops[-1:].expand(num_blocks * BLOCK_TOKENS - num_tokens)))
    by_block = padded.view(num_blocks, BLOCK_TOKENS)
    num_whole_U = by_block.amin(dim=1) // BLOCK_TOKENS
    num_any_U = (by_block.amax(dim=1) + BLOCK_TOKENS - 1) // BLOCK_TOKENS
    blocks_V = torch.arange(num_blocks)
    partial_UV = (num_whole_U[:, None] + blocks_V).clamp(max=num_blocks - 1)
    key_stops = padded.to(device)

    def attends(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key < key_stops[query]

    def table(numbers: Tensor) -> Tensor:
        return numbers.int()[None, None].contiguous().to(device)

    return BlockMask.from_kv_blocks(
        table(num_any_U - num_whole_U),
        table(partial_UV),
        table(num_whole_U),
        table(blocks_V.expand(num_blocks, -1)),
        BLOCK_SIZE=BLOCK_TOKENS,
        mask_mod=attends,
        seq_lengths=(num_tokens, num_tokens),
    )


def check_kernel(kernel: AttentionKernel, device: torch.device) -> None:
    """Raises StageError for a kernel that cannot train on `device`."""
    if kernel == "flex" and device.type == "cpu":
        raise StageError(
            "--attention-kernel flex trains on a GPU only, FlexAttention has no backward on CPUs: leave it "
            "out (blocks)"
        )


def use_kernel(model: nn.Module, kernel: AttentionKernel) -> None:
    """Run all self-attention of `model` on this kernel. Models are built with `blocks`."""
    if kernel == "flex":
        for part in model.modules():
            if isinstance(part, GridAttention):
                part.attend = flex_attend
