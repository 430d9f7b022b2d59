"""The plan's figures against what really runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run_command
from poses import still_poses
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from thinkjepa.cache import BatchBuffers, FeatureCache
from thinkjepa.pipeline.report.training import describe_costs
from thinkjepa.stages.data.partition import SPLIT_NAMES, SplitRule
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.train.costs import STEP_TO_FORWARD, forward_flops, memory_bytes
from thinkjepa.stages.train.data.features import Batch
from thinkjepa.stages.train.data.poses import TrajectoryBatch
from thinkjepa.stages.train.data.tokens import TokenBatch
from thinkjepa.stages.train.fit.losses import per_sample_losses
from thinkjepa.stages.train.fit.optimizer import make_optimizer
from thinkjepa.stages.train.model.config import (
    WITHOUT_THINKER,
    HeadShape,
    LatentGrid,
    ModelShape,
    ThinkerShape,
    TrunkShape,
    reads_joints_directly,
)
from thinkjepa.stages.train.model.forecast import ForecastModel, build_model
from thinkjepa.stages.train.model.reading import GuidanceShape
from thinkjepa.stages.train.plan import plan_costs
from thinkjepa.stages.train.run import train
from thinkjepa.stages.train.settings import TrainSettings

BuildCache = Callable[..., Path]
GRID = LatentGrid(observed_steps=4, future_steps=4, height=4, width=4, dim=64)
THINKER = ThinkerShape(levels=3, dim=40)
HEAD = HeadShape(joints=("rightHand", "leftHand", "hip"), frames_per_step=2, anchor="none", width=64)
TOKENS, TOKEN_CAPACITY = 30, 16  # of a random clip; what the cache has room for
TINY = TrainSettings(epochs=1, depth=2, width=24, heads=2, fusion_width=16, head_width=16, device="cpu")
KINDS = ("film", "adaln", "cross", "spatial")
CASES = [("jepa", "film"), *(("thinkjepa", kind) for kind in KINDS), ("vlm", "film"), ("vlm", "cross")]
CASES += [("poses", "film")]


def shape_of(variant: str, kind: str, *, grid: LatentGrid = GRID) -> ModelShape:
    thinker = None if variant in WITHOUT_THINKER else THINKER
    trunk, guidance = TrunkShape(depth=4, width=96, heads=3), GuidanceShape(kind=kind)  # type: ignore[arg-type]
    head = replace(HEAD, reader_depth=2 if reads_joints_directly(variant, "poses") else 0)  # type: ignore[arg-type]
    return ModelShape(variant, grid, trunk, thinker, 32, head, guidance)  # type: ignore[arg-type]


def batch_of(shape: ModelShape, size: int) -> Batch:
    """Random features and targets, as a run of this shape reads them."""
    grid, joints, frames = shape.grid, len(HEAD.joints), HEAD.frames_per_step
    places = (size, grid.future_steps, frames, joints)
    return Batch(
        observed=torch.randn(size, grid.observed_steps, grid.tokens_per_step, grid.dim),
        future=torch.randn(size, grid.future_steps, grid.tokens_per_step, grid.dim),
        pooled=torch.randn(size, THINKER.levels, 2, THINKER.dim),
        trajectory=TrajectoryBatch(
            poses=still_poses(torch.zeros(size, joints, 3), num_frames=8),
            future_m=torch.zeros(*places, 3),
            future_confidence=torch.ones(places),
        ),
        tokens=tokens_of(shape, size),
    )


def tokens_of(shape: ModelShape, size: int) -> TokenBatch:
    """Random tokens, or slots where the model reads these."""
    states, counts = torch.randn(size, THINKER.levels, TOKENS, THINKER.dim), (TOKENS,) * size
    if not shape.reading.slots:
        return TokenBatch(states, counts)
    return TokenBatch(states, counts, counts, torch.rand(size, TOKENS, 3))


def step(model: ForecastModel, batch: Batch, settings: TrainSettings) -> None:
    """Forward and backward of the loop's own loss."""
    precision = torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.precision == "bf16")
    with_next_steps = settings.predicts_next_steps
    with precision:
        forecast = model(
            batch.observed, batch.pooled, batch.poses, batch.tokens, with_next_steps=with_next_steps
        )
    per_sample_losses(forecast, batch, settings)[:, 0].mean().backward()


@pytest.mark.parametrize("next_step_weight", [0.0, 1.0])
@pytest.mark.parametrize(("variant", "kind"), CASES)
def test_flops_are_those_that_torch_counts(variant: str, kind: str, next_step_weight: float) -> None:
    """Forward and backward, head and all; the first products' inputs need no gradient, hence not quite 3."""
    shape = shape_of(variant, kind)
    settings = TrainSettings(variant=variant, next_step_weight=next_step_weight)  # type: ignore[arg-type]
    model, batch = build_model(shape, seed=0), batch_of(shape, 1)
    # torch counts no FLOPs of its fused attention on CPU
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(
            batch.observed,
            batch.pooled,
            batch.poses,
            batch.tokens,
            with_next_steps=settings.predicts_next_steps,
        )
    planned = forward_flops(shape, TOKENS, with_next_steps=settings.predicts_next_steps)
    assert planned == pytest.approx(counter.get_total_flops(), rel=0.001)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step(model, batch, settings)
    assert STEP_TO_FORWARD * planned == pytest.approx(counter.get_total_flops(), rel=0.05)


@pytest.mark.parametrize(("variant", "kind"), CASES)
def test_flops_of_a_rollout_are_those_that_torch_counts(variant: str, kind: str) -> None:
    shape = shape_of(variant, kind)
    model, batch, steps = build_model(shape, seed=0), batch_of(shape, 1), 3 * shape.grid.future_steps
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch.observed, batch.pooled, batch.poses, batch.tokens, num_steps=steps)
    planned = forward_flops(shape, TOKENS, windows=3)
    assert planned == pytest.approx(counter.get_total_flops(), rel=0.001)


@pytest.mark.parametrize(
    ("variant", "kind", "precision"),
    [*((*case, "fp32") for case in CASES), ("jepa", "film", "bf16"), ("thinkjepa", "film", "bf16")],
)
def test_memory_is_what_two_steps_take_at_their_peak(variant: str, kind: str, precision: str) -> None:
    """Every allocation between making the model and the second step, as torch's profiler records them."""
    shape = shape_of(variant, kind, grid=replace(GRID, height=8, width=8))
    settings = TrainSettings(variant=variant, precision=precision, clips_per_forward=4)  # type: ignore[arg-type]

    def two_steps() -> None:
        model = build_model(shape, seed=0)
        optimizer = make_optimizer(model, settings)
        for _ in range(2):
            optimizer.zero_grad(set_to_none=True)
            step(model, batch_of(shape, settings.clips_per_forward), settings)
            optimizer.step()

    num_parameters = sum(parameter.numel() for parameter in build_model(shape, seed=0).parameters())
    planned = memory_bytes(shape, settings, TOKENS, num_parameters=num_parameters)
    assert 0.9 < planned / peak_bytes(two_steps) < 1.2


def peak_bytes(work: Callable[[], None]) -> int:
    """The largest sum of what was allocated and not yet freed."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    allocations = [event for event in events if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(allocations, key=lambda event: event.start_ns())]
    return max(accumulate(sizes))


@pytest.mark.parametrize(("variant", "kind"), CASES)
def test_bytes_and_parameters_are_those_of_a_run(
    latent_cache: BuildCache, tmp_path: Path, variant: str, kind: str
) -> None:
    cache = latent_cache(with_tokens=True, with_slots=kind == "spatial", labelled=16, windows=3)
    settings = replace(TINY, variant=variant, guidance=kind, rollout_windows=2)  # type: ignore[arg-type]
    costs, _ = plan_costs(cache, settings, thinker_set=None, encoder_set=None, split=SplitRule())
    train(cache, tmp_path / "run", settings)
    trained = TrainedRun.open(tmp_path / "run")
    assert costs.parameters["total"] == sum(p.numel() for p in trained.model().parameters())

    features = trained.features(None).reaching(windows=2)
    ids = features.clips.clip_ids.to_pylist()
    stored = features.stored(ids, BatchBuffers(pinned=False))
    latents = (stored.observed, stored.future)
    read = [item.untyped_storage().nbytes() for item in latents if item is not None]
    if features.thinker is not None:
        read.append(len(ids) * features.thinker.arrays["pooled"].clip_bytes)
    if stored.tokens is not None:
        of_a_token = stored.tokens.states[0, :, 0].nbytes
        kinds = TOKEN_CAPACITY if features.reading.kinds else 0
        read.append(sum(stored.tokens.counts) * of_a_token + len(ids) * kinds)
    assert costs.read_bytes_per_clip == pytest.approx(sum(read) / len(ids), rel=0.02)


def test_the_command_prints_a_plan_and_trains_nothing(latent_cache: BuildCache, tmp_path: Path) -> None:
    cache = latent_cache(with_tokens=True)
    flags = ["--depth", "2", "--width", "24", "--heads", "2", "--plan", "--json", "--guidance", "cross"]
    done = run_command("thinkjepa-train", "--cache-dir", cache, "--out", tmp_path / "run", *flags)
    costs: dict[str, Any] = json.loads(done.stdout)
    settings = TrainSettings(depth=2, width=24, heads=2, guidance="cross")
    names = {"thinker_set": None, "encoder_set": None, "split": SplitRule()}
    planned, clips = plan_costs(cache, settings, **names)  # type: ignore[arg-type]
    told = {"split": clips.sizes_to_json(), "histories": clips.histories.to_json()}
    assert costs == {**planned.to_json(), **told}
    assert sum(costs["split"][side]["clips"] for side in SPLIT_NAMES) == len(
        FeatureCache.open(cache).clips.all()
    )
    assert "\ntime             told by a run itself" in describe_costs(costs)
    total = costs["parameters"].pop("total")
    assert total == sum(costs["parameters"].values())
    film, _ = plan_costs(cache, replace(settings, guidance="film"), **names)  # type: ignore[arg-type]
    sets = FeatureCache.open(cache).feature_sets.values()
    arrays = [spec for item in sets for spec in item.arrays.values()]
    read = sum(spec.clip_bytes for spec in arrays if spec.name in ("observed", "future", "pooled"))
    assert film.read_bytes_per_clip == read
    # 3 levels, 6 tokens on average, float16; and the kinds of all tokens that there is room for
    assert costs["read_bytes_per_clip"] == read + 3 * 6 * 10 * 2 + TOKEN_CAPACITY
    assert not (tmp_path / "run").exists()
    assert not (cache / "splits").exists()
