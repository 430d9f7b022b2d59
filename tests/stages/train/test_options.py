"""Every option of a run trains, is written to the run, and is read back by what evaluates it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from thinkjepa.cache import FeatureCache
from thinkjepa.pipeline.cli.options import parse_settings
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.train.data.features import choose_features
from thinkjepa.stages.train.data.on_grid import transform_latents, transformed_grid
from thinkjepa.stages.train.model.config import LatentGrid, LatentTransform
from thinkjepa.stages.train.run import train
from thinkjepa.stages.train.settings import TrainSettings

BuildCache = Callable[..., Path]

TINY = TrainSettings(
    epochs=2, batch_size=4, depth=2, width=24, heads=2, fusion_width=16, device="cpu", learning_rate=1e-3
)


def run(cache: Path, out: Path, **overrides: Any) -> dict[str, Any]:
    return train(cache, out, replace(TINY, **overrides))


@pytest.mark.parametrize(
    "options",
    [
        {"guidance": "adaln", "levels": "mixture"},
        {"guidance_form": "paper"},
        {"guidance": "adaln", "guidance_form": "paper", "use_streams": "prompt"},
        {"guidance": "cross", "cross_tokens": "visual,generated"},
        {"guidance": "cross", "levels": "mixture", "use_streams": "prompt"},
        {"use_levels": "middle", "use_streams": "generated", "drop_guidance": 0.5},
        {"variant": "vlm", "use_levels": "last", "next_step_weight": 1.0},
        {"latent_loss": "l1", "normalise_targets": True, "next_step_weight": 0.5},
        {"latent_target": "change", "next_step_weight": 0.5},
        {"latent_target": "change", "whiten_latents": True, "normalise_targets": True},
        {"variant": "vlm", "whiten_latents": True},
        {"latent_loss": "smooth_l1", "schedule": "cosine", "warmup": 0.2, "clip_norm": 0.1},
    ],
    ids=str,
)
def test_an_option_trains_and_is_read_back(
    latent_cache: BuildCache, tmp_path: Path, options: dict[str, Any]
) -> None:
    cache = latent_cache(with_tokens=True)
    metrics = run(cache, tmp_path / "run", **options)
    plain = run(cache, tmp_path / "plain", variant=options.get("variant", "thinkjepa"))
    assert metrics["last_train_loss"] != plain["last_train_loss"]
    trained = TrainedRun.open(tmp_path / "run")
    features, model = trained.features(None), trained.model()
    batch = features.batch(trained.clip_ids("validation"), torch.device("cpu"))
    assert (batch.tokens is not None) == (options.get("guidance") == "cross")
    with torch.no_grad():
        latents = model(batch.observed, batch.pooled, batch.poses, batch.tokens).latents
    error = float((latents - batch.future).square().mean())
    latent_error = metrics["validation_latent_error"]
    assert error == pytest.approx(latent_error, rel=1e-4)


def test_cross_attention_learns_what_only_the_tokens_say(latent_cache: BuildCache, tmp_path: Path) -> None:
    cache = latent_cache(num_videos=40, with_tokens=True)
    rates = {"epochs": 25, "learning_rate": 3e-3, "gate_learning_rate": 3e-2}
    guided = run(cache, tmp_path / "guided", guidance="cross", **rates)
    alone = run(cache, tmp_path / "alone", variant="jepa", **rates)
    assert guided["validation_loss"] < 0.6 * alone["validation_loss"]


def test_one_model_with_dropped_guidance_forecasts_with_and_without(
    latent_cache: BuildCache, tmp_path: Path
) -> None:
    cache = latent_cache(num_videos=40)
    rates = {"epochs": 25, "learning_rate": 3e-3, "gate_learning_rate": 3e-2}
    run(cache, tmp_path / "both", drop_guidance=0.5, **rates)
    run(cache, tmp_path / "never", **rates)
    errors = {}
    for name in ("both", "never"):
        trained = TrainedRun.open(tmp_path / name)
        model, features = trained.model(), trained.features(None)
        batch = features.batch(trained.clip_ids("train"), torch.device("cpu"))
        with torch.no_grad():
            for guided in (0.0, 1.0):
                share = torch.full((len(batch.observed),), guided)
                latents = model(batch.observed, batch.pooled, None, None, share).latents
                errors[name, guided] = float((latents - batch.future).square().mean())
    assert errors["both", 0.0] < 0.85 * errors["never", 0.0]
    assert errors["both", 1.0] < 0.85 * errors["both", 0.0]


def test_pooling_averages_squares_of_patches() -> None:
    grid = LatentGrid(observed_steps=1, future_steps=1, height=2, width=4, dim=1)
    latents = torch.arange(8.0).view(1, 1, 8, 1)  # rows 0 1 2 3 and 4 5 6 7
    pooled = LatentTransform(pool=2)
    assert transform_latents(latents, grid, pooled).flatten().tolist() == [2.5, 4.5]
    assert transformed_grid(grid, pooled) == LatentGrid(
        observed_steps=1, future_steps=1, height=1, width=2, dim=1
    )


def test_a_grid_that_squares_do_not_tile_is_refused(latent_cache: BuildCache, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="2 x 3 patches"):
        run(latent_cache(), tmp_path / "run", latent_pool=2)


def test_normed_latents_are_layer_normed_as_observed_and_as_targets(latent_cache: BuildCache) -> None:
    features = choose_features(FeatureCache.open(latent_cache()), TrainSettings(variant="jepa"))
    ids, cpu = features.clips.clip_ids.to_pylist()[:3], torch.device("cpu")
    stored = features.batch(ids, cpu)
    normed = replace(features, transform=LatentTransform(normalised=True)).batch(ids, cpu)
    for before, after in ((stored.observed, normed.observed), (stored.future, normed.future)):
        torch.testing.assert_close(after, torch.nn.functional.layer_norm(before, (8,)))


def test_presets_fill_what_is_not_given() -> None:
    paper = parse_settings(TrainSettings, {"preset": "paper"})
    assert (paper.heads, paper.schedule, paper.head_learning_rate) == (6, "paper", 1e-3)
    assert (paper.guidance_form, paper.guidance_shape.form) == ("paper", "paper")
    assert parse_settings(TrainSettings, {"preset": "paper", "heads": 8}).heads == 8
    assert parse_settings(TrainSettings, {}) == TrainSettings()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("guidance", "add"),
        ("levels", "some"),
        ("cross_tokens", "images"),
        ("drop_guidance", 1.0),
        ("latent_loss", "huber"),
        ("schedule", "step"),
        ("warmup", -0.1),
        ("clip_norm", -1.0),
        ("latent_pool", 0),
        ("preset", "mine"),
    ],
)
def test_impossible_options_are_refused(field: str, value: object) -> None:
    with pytest.raises(StageError, match=str(value)):
        TrainSettings(**{field: value})  # type: ignore[arg-type]


def test_next_steps_are_not_predicted_by_what_sees_them() -> None:
    """Bidirectional attention would copy its target. `vlm` reads no observed steps and ignores the weight."""
    with pytest.raises(StageError, match=r"--next-step-weight 0\.5 .* use --attention frame_causal"):
        TrainSettings(next_step_weight=0.5, attention="bidirectional")
    assert TrainSettings(variant="vlm", next_step_weight=0.5, attention="bidirectional").in_effect()


@pytest.mark.parametrize("variant", ["thinkjepa", "jepa"])
def test_a_later_step_changes_no_earlier_prediction_of_a_next_step(
    latent_cache: BuildCache, tmp_path: Path, variant: str
) -> None:
    """Each observed step is perturbed in turn, in a trained model: the prediction of it keeps its bits."""
    run(latent_cache(), tmp_path / "run", variant=variant, next_step_weight=1.0)
    trained = TrainedRun.open(tmp_path / "run")
    model = trained.model()
    batch = trained.features(None).batch(trained.clip_ids("validation"), torch.device("cpu"))

    @torch.no_grad()
    def next_steps(observed: torch.Tensor) -> torch.Tensor:
        found = model(observed, batch.pooled, None, with_next_steps=True).next_steps
        assert found is not None
        return found

    before = next_steps(batch.observed)
    for step in range(1, batch.observed.shape[1]):
        altered = batch.observed.clone()
        altered[:, step] += 100
        after = next_steps(altered)
        assert torch.equal(before[:, :step], after[:, :step])
        assert not torch.equal(before[:, step], after[:, step])


def test_whitening_and_a_checkpoint_of_unwhitened_latents_are_refused() -> None:
    with pytest.raises(StageError, match="--whiten-latents with --init-from"):
        TrainSettings(whiten_latents=True, init_from="facebook/some-vjepa2")


def test_cross_attention_without_stored_tokens_is_refused(latent_cache: BuildCache, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="holds no tokens"):
        run(latent_cache(), tmp_path / "run", guidance="cross")


def test_options_stand_in_the_run(latent_cache: BuildCache, tmp_path: Path) -> None:
    run(latent_cache(), tmp_path / "run", guidance="adaln", normalise_targets=True)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["model"]["guidance"]["kind"] == "adaln"
    assert record["model"]["view"] == {"pool": 1, "normalised": True}
