"""FlexAttention's path against the blockwise one: its forward runs on CPUs, its backward does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.model import flex_attention as flex
from thinkjepa.stages.train.model.attention import Span, attend, bidirectional_spans, frame_causal_spans
from thinkjepa.stages.train.model.config import AttentionPattern, LatentGrid, ModelShape, TrunkShape
from thinkjepa.stages.train.model.flex_attention import block_mask, flex_attend, use_kernel
from thinkjepa.stages.train.model.trunk import initialize
from thinkjepa.stages.train.model.variants import Predictor, build_forecaster
from thinkjepa.stages.train.randomness import named_generator
from thinkjepa.stages.train.run import train
from thinkjepa.stages.train.settings import TrainSettings

BuildCache = Callable[..., Path]
BuildShape = Callable[..., ModelShape]
CPU = torch.device("cpu")
GRID = LatentGrid(
    observed_steps=3, future_steps=2, height=6, width=10, dim=16
)  # steps straddle blocks of 128

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

PATTERNS = {
    "steps that straddle blocks": frame_causal_spans(num_steps=5, tokens_per_step=60),
    "steps of one block": frame_causal_spans(num_steps=3, tokens_per_step=128),
    "steps of several blocks": frame_causal_spans(num_steps=2, tokens_per_step=256),
    "a prefix": frame_causal_spans(num_steps=4, tokens_per_step=50, prefix_tokens=7),
    "bidirectional": bidirectional_spans(200),
}


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's plain version: compiling takes twenty seconds (see the soak test)."""
    monkeypatch.setattr(flex, "compiled_kernel", lambda: flex_attention)


def qkv(num_tokens: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    return [torch.randn(2, 3, num_tokens, 12, generator=generator) for _ in range(3)]


@torch.no_grad()
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("spans", PATTERNS.values(), ids=PATTERNS.keys())
def test_flex_attention_equals_the_blockwise_path(spans: tuple[Span, ...]) -> None:
    tensors = qkv(spans[-1].query_stop)
    expected = attend(*tensors, spans)
    torch.testing.assert_close(flex_attend(*tensors, spans), expected, atol=1e-5, rtol=0)
    everything = flex_attend(*tensors, bidirectional_spans(spans[-1].query_stop))
    assert len(spans) == 1 or (everything - expected).abs().max() > 0.1


@given(steps=st.integers(1, 6), tokens=st.integers(1, 150), prefix=st.integers(0, 140))
def test_blocks_hold_every_pair_that_is_seen_and_whole_ones_no_other(
    steps: int, tokens: int, prefix: int
) -> None:
    spans = frame_causal_spans(num_steps=steps, tokens_per_step=tokens, prefix_tokens=prefix)
    size, num_tokens = flex.BLOCK_TOKENS, spans[-1].query_stop
    mask = block_mask(spans, CPU)
    stops = torch.cat([torch.full((span.query_stop - span.query_start,), span.key_stop) for span in spans])
    for block in range(-(-num_tokens // size)):
        whole = mask.full_kv_indices[0, 0, block, : mask.full_kv_num_blocks[0, 0, block]].tolist()
        some = mask.kv_indices[0, 0, block, : mask.kv_num_blocks[0, 0, block]].tolist()
        own = stops[block * size : (block + 1) * size]
        assert sorted(whole + some) == list(range(-(-int(own.max()) // size))), "seen pairs, each once"
        assert all((number + 1) * size <= int(own.min()) for number in whole)


def test_there_is_no_mask_over_tokens() -> None:
    paper = frame_causal_spans(num_steps=32, tokens_per_step=256)
    tensors = [item for item in block_mask(paper, CPU).as_tuple() if isinstance(item, torch.Tensor)]
    assert max(tensor.numel() for tensor in tensors) <= 64 * 64


@torch.no_grad()
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("attention", ["frame_causal", "bidirectional"])
@pytest.mark.parametrize("changed", [0, 2, 4])
def test_a_step_reaches_no_position_before_it_on_flex(attention: AttentionPattern, changed: int) -> None:
    """Teacher-forced, true latents at every step; bidirectional attention is the positive control."""
    predictor = Predictor(GRID, TrunkShape(depth=2, width=48, heads=4, attention=attention))
    initialize(predictor, named_generator(0, "predictor"))
    use_kernel(predictor, "flex")
    predictor.grid = replace(GRID, observed_steps=5, future_steps=0)
    latents = torch.randn(1, 5, 60, 16, generator=torch.Generator().manual_seed(2))
    altered = latents.clone()
    altered[:, changed] += 1.0
    delta = (predictor.all_steps(altered) - predictor.all_steps(latents)).abs().amax(dim=(0, 2, 3))
    assert (delta[changed:] > 1e-5).all()
    if attention == "frame_causal":
        assert delta[:changed].tolist() == [0.0] * changed
    else:
        assert (delta > 1e-5).all()


@torch.no_grad()
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("variant", ["thinkjepa", "jepa", "vlm"])
def test_every_variant_forecasts_the_same_on_both_kernels(model_shape: BuildShape, variant: str) -> None:
    blocks, flexed = (build_forecaster(model_shape(variant), seed=1) for _ in range(2))
    use_kernel(flexed, "flex")
    generator = torch.Generator().manual_seed(0)
    observed = torch.randn(2, 3, 6, 8, generator=generator)
    pooled = torch.randn(2, 3, 2, 10, generator=generator)
    torch.testing.assert_close(flexed(observed, pooled), blocks(observed, pooled), atol=1e-5, rtol=0)


def test_training_with_it_on_a_cpu_is_refused_in_a_line(latent_cache: BuildCache, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="--attention-kernel flex trains on a GPU only"):
        train(latent_cache(), tmp_path / "run", TrainSettings(attention_kernel="flex", device="cpu"))
    assert not (tmp_path / "run").exists()


@torch.no_grad()
@pytest.mark.soak
def test_the_compiled_forward_equals_the_blockwise_path() -> None:
    for spans in PATTERNS.values():
        tensors = qkv(spans[-1].query_stop)
        torch.testing.assert_close(flex_attend(*tensors, spans), attend(*tensors, spans), atol=1e-5, rtol=0)
