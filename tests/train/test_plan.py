"""The plan's figures against what really runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from thinkjepa.cache import FeatureCache
from thinkjepa.stages.train import TrainSettings, plan_costs
from thinkjepa.stages.train.costs import forward_flops, saved_bytes_per_clip
from thinkjepa.stages.train.model import build_model
from thinkjepa.stages.train.shapes import GuidanceShape, LatentGrid, ModelShape, ThinkerShape, TrunkShape
from thinkjepa.stages.train.thinker_states import TokenBatch

BuildCache = Callable[..., Path]
GRID = LatentGrid(observed_steps=4, future_steps=4, height=4, width=4, dim=64)
THINKER = ThinkerShape(levels=3, dim=40)
TOKENS = 30
KINDS = ("film", "adaln", "cross")
CASES = [("jepa", "film"), *(("thinkjepa", kind) for kind in KINDS), ("vlm", "film")]


def shape_of(variant: str, kind: str) -> ModelShape:
    thinker = None if variant == "jepa" else THINKER
    trunk = TrunkShape(depth=3, width=96, heads=3)
    return ModelShape(variant, GRID, trunk, thinker, 32, guidance=GuidanceShape(kind=kind))  # type: ignore[arg-type]


def forward(shape: ModelShape) -> torch.Tensor:
    model = build_model(shape, seed=0)
    observed, pooled = torch.randn(1, 4, 16, 64), torch.randn(1, 3, 2, 40)
    tokens = TokenBatch(torch.randn(1, 3, TOKENS, 40), (TOKENS,))
    latents: torch.Tensor = model(observed, pooled, None, tokens).latents
    return latents


@pytest.mark.parametrize(("variant", "kind"), CASES)
def test_flops_are_those_that_torch_counts(variant: str, kind: str) -> None:
    shape = shape_of(variant, kind)
    # torch counts no FLOPs of its fused attention on CPU
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward(shape)
    assert forward_flops(shape, TOKENS) == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize(("variant", "kind"), CASES)
def test_memory_is_near_what_the_backward_keeps(variant: str, kind: str) -> None:
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    shape = shape_of(variant, kind)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        latents = forward(shape)
        loss = (latents - torch.zeros_like(latents)).square().mean()
    weights = sum(p.numel() for p in build_model(shape, seed=0).parameters()) * 4
    assert loss.requires_grad
    assert saved_bytes_per_clip(shape, TOKENS) == pytest.approx(sum(kept.values()) - weights, rel=0.25)


def test_the_command_prints_a_plan_and_trains_nothing(latent_cache: BuildCache, tmp_path: Path) -> None:
    cache = latent_cache(with_tokens=True)
    command = [str(Path(sys.executable).parent / "thinkjepa-train"), "--cache-dir", str(cache)]
    flags = ["--depth", "2", "--width", "24", "--heads", "2", "--plan", "--json", "--guidance", "cross"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run"), *flags], check=True, capture_output=True, text=True
    )
    costs: dict[str, Any] = json.loads(done.stdout)
    settings = TrainSettings(depth=2, width=24, heads=2, guidance="cross")
    assert costs == plan_costs(cache, settings, thinker_set=None, encoder_set=None).to_json()
    total = costs["parameters"].pop("total")
    assert total == sum(costs["parameters"].values())
    film = plan_costs(cache, replace(settings, guidance="film"), thinker_set=None, encoder_set=None)
    sets = FeatureCache.open(cache).feature_sets.values()
    arrays = [spec for item in sets for spec in item.arrays.values()]
    read = sum(spec.clip_bytes for spec in arrays if spec.name in ("observed", "future", "pooled"))
    assert film.read_bytes_per_clip == read
    assert costs["read_bytes_per_clip"] == read + 3 * 6 * 10 * 2  # 3 levels, 6 tokens on average, float16
    assert not (tmp_path / "run").exists()
    assert not (cache / "splits").exists()
