"""Rotary positions and span attention against independent references."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.vjepa2.modeling_vjepa2 import rotate_queries_or_keys

from thinkjepa.stages.train.model.attention import (
    attend,
    axis_dims,
    bidirectional_spans,
    frame_causal_spans,
    grid_positions,
    rotate,
    rotation_at,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("head_dim", [6, 12, 32, 64, 88])
def test_rotation_equals_transformers_on_every_axis(head_dim: int) -> None:
    positions = grid_positions(first_step=3, num_steps=2, height=2, width=3, device=CPU)
    x = torch.randn(2, 4, len(positions), head_dim, generator=torch.Generator().manual_seed(0))
    size = axis_dims(head_dim)
    parts = [
        rotate_queries_or_keys(x[..., axis * size : (axis + 1) * size], positions[:, axis].expand(2, 4, -1))
        for axis in range(3)
    ]
    expected = torch.cat([*parts, x[..., 3 * size :]], dim=-1)
    torch.testing.assert_close(rotate(x, rotation_at(positions, head_dim=head_dim)), expected)


def test_positions_run_row_major_from_the_first_step() -> None:
    positions = grid_positions(first_step=5, num_steps=2, height=2, width=3, device=CPU)
    assert positions[:4].tolist() == [[5, 0, 0], [5, 0, 1], [5, 0, 2], [5, 1, 0]]
    assert positions[6].tolist() == [6, 0, 0]


def test_origin_is_not_rotated() -> None:
    x = torch.randn(1, 1, 4, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rotate(x, rotation_at(torch.zeros(4, 3), head_dim=12)), x)


def test_the_published_predictor_rotates_thirty_of_32_dims() -> None:
    assert axis_dims(32) == 10


@given(steps=st.integers(1, 8), tokens=st.integers(1, 6), prefix=st.integers(0, 5))
def test_spans_cover_every_query_once_and_in_order(steps: int, tokens: int, prefix: int) -> None:
    spans = frame_causal_spans(num_steps=steps, tokens_per_step=tokens, prefix_tokens=prefix)
    queries = [query for span in spans for query in range(span.query_start, span.query_stop)]
    assert queries == list(range(prefix + steps * tokens))
    assert all(span.key_stop == span.query_stop for span in spans)


@pytest.mark.parametrize("prefix", [0, 3])
def test_frame_causal_spans_equal_a_dense_mask(prefix: int) -> None:
    steps, tokens = 4, 6
    query, key, value = _qkv(prefix + steps * tokens)
    step_of = torch.cat((torch.full((prefix,), -1), torch.arange(steps).repeat_interleave(tokens)))
    mask = step_of[:, None] >= step_of[None, :]
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    expected.square().sum().backward()
    expected_grads = [tensor.grad for tensor in (query, key, value)]

    query, key, value = _qkv(prefix + steps * tokens)
    spans = frame_causal_spans(num_steps=steps, tokens_per_step=tokens, prefix_tokens=prefix)
    output = attend(query, key, value, spans)
    output.square().sum().backward()

    torch.testing.assert_close(output, expected)
    for tensor, grad in zip((query, key, value), expected_grads, strict=True):
        torch.testing.assert_close(tensor.grad, grad)


def test_bidirectional_span_is_plain_attention() -> None:
    query, key, value = _qkv(10)
    output = attend(query, key, value, bidirectional_spans(10))
    torch.testing.assert_close(output, F.scaled_dot_product_attention(query, key, value))


def _qkv(num_tokens: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    return [torch.randn(2, 3, num_tokens, 12, generator=generator, requires_grad=True) for _ in range(3)]
