"""Collapse, skill and retrieval of predicted latents, against numpy."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from thinkjepa.cache import ClipRow, FeatureCache
from thinkjepa.stages.data.partition import SplitRule
from thinkjepa.stages.evaluate.baselines import Predicted
from thinkjepa.stages.evaluate.details.latents import Gallery, LatentSpread
from thinkjepa.stages.evaluate.evaluation import evaluate
from thinkjepa.stages.evaluate.learned import mean_latent
from thinkjepa.stages.evaluate.over_clips import figures_over_clips
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.evaluate.table import ClipTable
from thinkjepa.stages.train.run import train
from thinkjepa.stages.train.settings import TrainSettings

BuildCache = Callable[..., Path]


def random_latents(seed: int, *, clips: int = 7) -> torch.Tensor:
    """`(clip, 2, 3, 5)`: two steps, three patches, five dims, far from the origin."""
    return 40 + torch.randn(clips, 2, 3, 5, generator=torch.Generator().manual_seed(seed))


def spread_of(predicted: torch.Tensor, future: torch.Tensor) -> dict[str, dict[str, float]]:
    spread = LatentSpread()
    for part in (slice(0, 3), slice(3, 6), slice(6, None)):
        spread.add({"model": Predicted(predicted[part], None), "poses": Predicted(None, None)}, future[part])
    return spread.figures()


def numpy_rank(latents: torch.Tensor) -> float:
    """Exponential of the entropy of the shares of the singular values of all patches' centered latents."""
    tokens = latents.reshape(-1, latents.shape[-1]).double().numpy()
    shares = np.linalg.svd(tokens - tokens.mean(0), compute_uv=False)
    shares = shares / shares.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def test_variance_ratio_and_effective_rank_are_numpys() -> None:
    future = random_latents(0)
    predicted = 0.3 * random_latents(1) * torch.tensor([1.0, 0.5, 0.2, 0.1, 2.0])
    found = spread_of(predicted, future)
    ratio = predicted.double().numpy().var(0).mean() / future.double().numpy().var(0).mean()
    assert found["model"]["variance_ratio"] == pytest.approx(ratio, rel=1e-9)
    assert found["model"]["effective_rank"] == pytest.approx(numpy_rank(predicted), rel=1e-6)
    assert found["future"] == {"effective_rank": pytest.approx(numpy_rank(future), rel=1e-6)}
    assert set(found) == {"model", "future"}, "a method without latents has no figures"


def test_a_forecast_that_is_the_same_for_all_clips_has_collapsed() -> None:
    future = random_latents(0)
    same = random_latents(1)[:1].expand_as(future)
    assert spread_of(same, future)["model"]["variance_ratio"] == 0.0
    everywhere_same = torch.full_like(future, 40.1)
    assert spread_of(everywhere_same, future)["model"] == {"variance_ratio": 0.0, "effective_rank": 0.0}
    one_direction = future.mean(dim=-1, keepdim=True).expand_as(future)
    assert spread_of(one_direction, future)["model"]["effective_rank"] == pytest.approx(1.0)
    assert spread_of(future, future)["model"]["variance_ratio"] == pytest.approx(1.0)


@pytest.fixture
def clips(latent_cache: BuildCache) -> list[ClipRow]:
    return list(FeatureCache.open(latent_cache(num_videos=4)).select())


def ranks_of(predicted: torch.Tensor, future: torch.Tensor, clips: Sequence[ClipRow]) -> list[float]:
    return Gallery(future.mean(dim=2), clips).ranks(predicted, future, clips)[:, 0].tolist()


def test_ranks_are_those_of_loops_over_other_videos(clips: list[ClipRow]) -> None:
    future = random_latents(0, clips=8)
    predicted = future + 1.5 * (random_latents(1, clips=8) - 40)
    described, guesses = future.mean(2).numpy(), predicted.mean(2).numpy()
    expected = []
    for index, clip in enumerate(clips):
        distances = ((described - guesses[index]) ** 2).mean((1, 2))
        others = [i for i, other in enumerate(clips) if other.video_digest != clip.video_digest]
        expected.append(1 + sum(distances[i] <= distances[index] for i in others))
    found = ranks_of(predicted, future, clips)
    assert found == expected
    assert len(set(found)) > 2, "the control: these ranks differ"
    assert ranks_of(future, future, clips) == [1.0] * 8


def test_ranks_up_to_a_horizon_are_those_of_its_steps_alone(clips: list[ClipRow]) -> None:
    future, predicted = (
        torch.cat([random_latents(seed, clips=8) for seed in seeds], dim=1) for seeds in ((0, 1), (2, 3))
    )
    gallery = Gallery(future.mean(dim=2), clips)
    found = gallery.ranks(predicted, future, clips, horizons=[1, 3, 4])
    for column, steps in zip(found.T, (1, 3, 4), strict=True):
        assert column.tolist() == ranks_of(predicted[:, :steps], future[:, :steps], clips)
    assert len(set(map(tuple, found.T.tolist()))) == 3, "the control: horizons differ"


def test_a_tie_counts_against_the_forecast(clips: list[ClipRow]) -> None:
    same = torch.ones(8, 2, 3, 5)
    assert ranks_of(same, same, clips) == [7.0] * 8, "six futures of the other three videos are as near"


def test_the_scores_of_a_method_that_draws_are_means_over_its_draws(clips: list[ClipRow]) -> None:
    future = random_latents(0, clips=8)
    draws = [future, future.flip(0), random_latents(3, clips=8)]
    ranks = np.array([ranks_of(draw, future, clips) for draw in draws])
    found = Predicted(draws[0], None, further=tuple(Predicted(draw, None) for draw in draws[1:]))
    (columns,) = Gallery(future.mean(dim=2), clips).columns({"shuffled_guidance": found}, future, clips)
    assert columns["shuffled_guidance_retrieval_rank"].tolist() == pytest.approx(ranks.mean(0).tolist())
    assert columns["shuffled_guidance_retrieved"].tolist() == pytest.approx((ranks == 1).mean(0).tolist())
    spread = LatentSpread()
    spread.add({"shuffled_guidance": found}, future)
    ratio = torch.cat(draws).double().numpy().var(0).mean() / future.double().numpy().var(0).mean()
    assert spread.figures()["shuffled_guidance"]["variance_ratio"] == pytest.approx(ratio)


def test_one_video_is_told_from_its_own_other_clips_and_one_clip_from_none(clips: list[ClipRow]) -> None:
    two = [clip for clip in clips if clip.video_digest == clips[0].video_digest]
    future = random_latents(0, clips=2)
    assert ranks_of(future.flip(0), future, two) == [2.0, 2.0]
    assert np.isnan(ranks_of(future[:1], future[:1], two[:1])).all()
    (columns,) = Gallery(future[:1].mean(2), two[:1]).columns(
        {"model": Predicted(future[:1], None)}, future[:1], two[:1]
    )
    assert columns["model_retrieved"].isnan().all()


@pytest.fixture
def trained(latent_cache: BuildCache, tmp_path: Path) -> Path:
    settings = TrainSettings(
        epochs=2, batch_size=4, depth=2, width=24, heads=2, fusion_width=16, learning_rate=3e-3, device="cpu"
    )
    train(
        latent_cache(),
        tmp_path / "run",
        settings,
        thinker_set=None,
        encoder_set=None,
        split=SplitRule(test_fraction=0.4),
        progress=lambda **_: None,
    )
    return tmp_path / "run"


def test_skills_are_one_less_the_ratio_of_the_mean_errors(trained: Path) -> None:
    result = evaluate(trained)
    rows = pq.read_table(trained / "eval-test.parquet").to_pylist()
    for name, baseline in (("skill_persistence", "latent_persistence"), ("skill_mean", "mean_latent")):
        errors = [np.mean([row[f"{method}_l2"] for row in rows]) for method in ("model", baseline)]
        assert result["over_clips"]["model"][name] == pytest.approx(1 - errors[0] / errors[1])
        assert name not in result["over_clips"][baseline]
        for step, record in enumerate(result["horizon"]):
            errors = [
                np.mean([row[f"{method}_l2_by_step"][step] for row in rows]) for method in ("model", baseline)
            ]
            assert record["model"][name] == pytest.approx(1 - errors[0] / errors[1])
    ranks = [row["model_retrieval_rank"] for row in rows]
    assert result["over_clips"]["model"]["median_rank"] == np.median(ranks)
    assert result["latent"]["model"]["retrieved"] == np.mean([rank == 1 for rank in ranks])


def test_spread_is_that_of_all_evaluated_clips(trained: Path) -> None:
    result = evaluate(trained)
    run = TrainedRun.open(trained)
    batch = run.features(None).batch(run.clip_ids("test"), torch.device("cpu"))
    last = batch.observed[:, -1:].expand_as(batch.future)
    ratio = last.double().numpy().var(0).mean() / batch.future.double().numpy().var(0).mean()
    found = result["over_clips"]["latent_persistence"]
    assert found["variance_ratio"] == pytest.approx(ratio, rel=1e-6)
    assert found["effective_rank"] == pytest.approx(numpy_rank(last), rel=1e-5)
    assert result["over_clips"]["mean_latent"]["variance_ratio"] == 0.0
    clips = [clip for clip in run.features(None).clips if clip.clip_id in run.clip_ids("test")]
    others = [sum(one.video_digest != other.video_digest for other in clips) for one in clips]
    assert result["over_clips"]["future"]["candidates"] == np.mean(others)


def test_the_mean_latent_is_the_training_clips(trained: Path) -> None:
    run = TrainedRun.open(trained)
    features, train_ids = run.features(None), run.clip_ids("train")
    future = features.batch(train_ids, torch.device("cpu")).future.double().numpy()
    found = mean_latent(features, train_ids, device=torch.device("cpu"))
    np.testing.assert_allclose(found.numpy(), future.mean((0, 1)), atol=1e-9)


def test_figures_of_all_clips_are_of_no_part_of_them(trained: Path) -> None:
    evaluate(trained)
    table = ClipTable.read(trained / "eval-test.parquet")
    whole = figures_over_clips(table)
    assert figures_over_clips(table.only(table.clip_ids[::-1]))["model"] == pytest.approx(whole["model"])
    part = figures_over_clips(table.only(table.clip_ids[:2]))["model"]
    assert set(whole["model"]) - set(part) == {"variance_ratio", "effective_rank"}
    assert not any(figures_over_clips(table.without("latent")).values())


def test_one_figure_is_kept_of_two_evaluations_of_the_same_run(trained: Path) -> None:
    first = evaluate(trained)
    assert json.loads((trained / "eval-test.json").read_text()) == first == evaluate(trained)


def test_a_gallery_of_many_clips_is_an_even_sample(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from thinkjepa.stages.evaluate.details import latents

    run = TrainedRun.open(trained)
    features = run.features(None)
    clips = list(features.clips)
    monkeypatch.setattr(latents, "GALLERY_CLIPS", 5)
    gallery = Gallery.of(features, clips, device=torch.device("cpu"))
    future = features.batch([clip.clip_id for clip in clips], torch.device("cpu")).future
    chosen = list(range(0, len(clips), 7))
    expected = Gallery(future[chosen].mean(dim=2), [clips[index] for index in chosen])
    moved = future.flip(0)
    assert torch.equal(gallery.ranks(moved, future, clips), expected.ranks(moved, future, clips))
    alone = replace(clips[0], video_digest="f" * 64)
    assert gallery.ranks(future[:1], future[:1], [alone]).tolist() == [[2.0]], (
        "its own future is in there, too"
    )
