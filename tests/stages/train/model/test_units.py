"""Input and output of the predictor: latents or their change, as the encoder gives them or whitened."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from thinkjepa.cache import FeatureCache
from thinkjepa.stages.evaluate.evaluation import evaluate
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.train.data.features import choose_features
from thinkjepa.stages.train.data.statistics import LatentStatistics, latent_statistics
from thinkjepa.stages.train.fit.losses import latent_loss, persistence
from thinkjepa.stages.train.model.config import LatentTarget, ModelShape, PredictionTarget
from thinkjepa.stages.train.model.variants import Forecaster, ThinkJepa, build_forecaster
from thinkjepa.stages.train.run import train
from thinkjepa.stages.train.settings import TrainSettings

BuildCache = Callable[..., Path]
BuildShape = Callable[..., ModelShape]
TARGETS = [PredictionTarget(kind, whitened) for kind in ("latents", "change") for whitened in (False, True)]  # type: ignore[arg-type]
CHANGES = [PredictionTarget("change", whitened) for whitened in (False, True)]
TINY = TrainSettings(
    epochs=2, batch_size=4, depth=1, width=24, heads=2, fusion_width=16, head_width=16, device="cpu"
)
STEPS = 5  # two windows and a half


def named(target: PredictionTarget) -> str:
    return f"{target.kind}{'-whitened' if target.whitened else ''}"


def build(model_shape: BuildShape, variant: str, target: PredictionTarget) -> Forecaster:
    """A model with gates that are open, and statistics far from 0 and 1."""
    model = build_forecaster(replace(model_shape(variant), target=target), seed=3)
    if isinstance(model, ThinkJepa):
        torch.nn.init.constant_(model.pyramid.gates, 0.5)
    if target.whitened:
        model.units.set_statistics(statistics())
    return model


def statistics() -> LatentStatistics:
    dims = torch.arange(1.0, 9.0)
    return LatentStatistics(mean=dims, scale=10 * dims, change_scale=dims / 10)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(3, 3, 6, 8, generator=generator), torch.randn(3, 3, 2, 10, generator=generator)


def run(cache: Path, out: Path, **changed: Any) -> dict[str, Any]:
    return train(cache, out, replace(TINY, **changed))


@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("target", CHANGES, ids=named)
@pytest.mark.parametrize("variant", ["jepa", "thinkjepa"])
def test_a_predictor_of_changes_starts_as_latent_persistence_to_the_last_bit(
    model_shape: BuildShape, variant: str, target: PredictionTarget, precision: str
) -> None:
    """Rolled out over windows, too; what is predicted of a next step is the step that is read."""
    model, (observed, pooled) = build(model_shape, variant, target), inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        steps = model.all_steps(observed, pooled, num_steps=STEPS)
    assert torch.equal(steps[:, :3], observed)
    assert torch.equal(steps[:, 3:], persistence(observed, future_steps=STEPS))
    torch.nn.init.normal_(model.predictor.proj.weight, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(model(observed, pooled), persistence(observed, future_steps=2)), "the control"


@torch.no_grad()
@pytest.mark.parametrize("variant", ["jepa", "thinkjepa", "vlm"])
def test_whitened_latents_go_in_and_out_by_hand(model_shape: BuildShape, variant: str) -> None:
    """The plain model of the same weights on latents that were whitened by hand, its output turned back."""
    observed, pooled = inputs()
    whitened = build(model_shape, variant, PredictionTarget("latents", whitened=True))
    plain = build(model_shape, variant, PredictionTarget())
    known = statistics()
    expected = plain((observed - known.mean) / known.scale, pooled) * known.scale + known.mean
    torch.testing.assert_close(whitened(observed, pooled), expected)


@torch.no_grad()
@pytest.mark.parametrize("target", TARGETS, ids=named)
@pytest.mark.parametrize("variant", ["jepa", "thinkjepa"])
def test_no_step_depends_on_a_later_one(
    model_shape: BuildShape, variant: str, target: PredictionTarget
) -> None:
    model, (observed, pooled) = build(model_shape, variant, target), inputs()
    torch.nn.init.normal_(model.predictor.proj.weight, generator=torch.Generator().manual_seed(0))
    before = model.all_steps(observed, pooled)
    for step in range(3):
        altered = observed.clone()
        altered[:, step] += 1.0
        delta = (model.all_steps(altered, pooled) - before).abs().amax(dim=(0, 2, 3))
        assert delta[:step].tolist() == [0.0] * step
        assert (delta[step:] > 1e-5).all()


def test_statistics_are_those_of_all_training_clips(latent_cache: BuildCache) -> None:
    """Against plain means in one go; windows after the first, and other clips, have no part in them."""
    cache = FeatureCache.open(latent_cache(windows=2))
    features = choose_features(cache, replace(TINY, rollout_windows=2))
    clips = features.clips.clip_ids.to_pylist()[:7]
    found = latent_statistics(features, clips)
    batch = features.batch(clips, torch.device("cpu"))
    first = batch.future[:, : features.grid.future_steps].double()
    dims = torch.cat((batch.observed.double(), first), dim=1).flatten(0, 2)
    change = (first - batch.observed[:, -1:].double()).flatten(0, 2)
    torch.testing.assert_close(found.mean, dims.mean(dim=0).float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.scale, dims.std(dim=0, correction=0).float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.change_scale, change.square().mean(dim=0).sqrt().float())


@pytest.mark.parametrize("kind", ["latents", "change"])
def test_a_whitened_loss_of_one_is_that_of_who_knows_nothing(
    latent_cache: BuildCache, kind: LatentTarget
) -> None:
    """The mean of all latents, or no change: either has a squared error of 1 over the training clips."""
    features = choose_features(FeatureCache.open(latent_cache()), TINY)
    clips = features.clips.clip_ids.to_pylist()
    known, batch = latent_statistics(features, clips), features.batch(clips, torch.device("cpu"))
    target = torch.cat((batch.observed, batch.future), dim=1) if kind == "latents" else batch.future
    guess = known.mean.expand_as(target)
    if kind == "change":
        guess = persistence(batch.observed, future_steps=batch.future.shape[1])
    unit = known.scale if kind == "latents" else known.change_scale
    assert float(latent_loss(guess, target, "mse", unit=unit).mean()) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("target", TARGETS[1:], ids=named)
def test_errors_stay_in_the_encoders_units(
    latent_cache: BuildCache, tmp_path: Path, target: PredictionTarget
) -> None:
    """A run that hardly moves stays near persistence where it predicts changes. Evaluation agrees with it."""
    cache, out = latent_cache(), tmp_path / "run"
    settings = {"latent_target": target.kind, "whiten_latents": target.whitened, "learning_rate": 1e-9}
    metrics = run(cache, out, variant="jepa", **settings)
    assert TrainedRun.open(out).shape.target == target
    scores = evaluate(out, split="validation", device="cpu")["latent"]
    assert scores["model"]["l2"] == pytest.approx(metrics["validation_latent_error"], rel=1e-5)
    persisted = metrics["persistence_validation_loss"]
    assert scores["latent_persistence"]["l2"] == pytest.approx(persisted, rel=1e-5)
    if target.kind == "change":
        assert metrics["validation_latent_error"] == pytest.approx(persisted, rel=1e-3)


def test_changes_beat_persistence_where_masks_from_nothing_lose_to_it(
    latent_cache: BuildCache, tmp_path: Path
) -> None:
    """Few clips, few steps; the future is the last step moved, by what only the thinker says."""
    cache = latent_cache(num_videos=40)
    rates = {"epochs": 6, "learning_rate": 3e-3, "gate_learning_rate": 3e-2}
    metrics = {
        kind: run(cache, tmp_path / kind, latent_target=kind, **rates) for kind in ("latents", "change")
    }
    persisted = metrics["change"]["persistence_validation_loss"]
    assert metrics["change"]["validation_latent_error"] < persisted
    assert metrics["change"]["validation_latent_error"] < metrics["latents"]["validation_latent_error"]


def test_a_run_from_before_the_setting_predicts_latents(latent_cache: BuildCache, tmp_path: Path) -> None:
    """Its record has no target, and its weights are read as they are."""
    run(latent_cache(), tmp_path / "run", latent_target="latents")
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    assert record["model"].pop("target") == {"kind": "latents", "whitened": False}
    path.write_text(json.dumps(record))
    trained = TrainedRun.open(tmp_path / "run")
    assert trained.shape.target == PredictionTarget()
    assert not [name for name in trained.model().state_dict() if "units" in name]
