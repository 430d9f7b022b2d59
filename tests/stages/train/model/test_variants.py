"""The three models: equal where they must be, and each fed by what its name says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from thinkjepa.pipeline.cli.options import parse_settings
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.data.tokens import TokenBatch
from thinkjepa.stages.train.fit.losses import latent_mse
from thinkjepa.stages.train.fit.state import shape_from_json
from thinkjepa.stages.train.model.config import LatentGrid, ModelShape, ThinkerShape
from thinkjepa.stages.train.model.reading import GuidanceShape
from thinkjepa.stages.train.model.variants import Forecaster, ThinkerOnly, ThinkJepa, build_forecaster
from thinkjepa.stages.train.settings import TrainSettings

BuildShape = Callable[..., ModelShape]
TRUNK_WIDTH = 24
VARIANTS = ("thinkjepa", "jepa", "vlm")


def features(shape: ModelShape, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Observed and future latents, and pooled thinker states."""
    grid, generator = shape.grid, torch.Generator().manual_seed(5)
    observed = torch.randn(batch, grid.observed_steps, grid.tokens_per_step, grid.dim, generator=generator)
    future = torch.randn(batch, grid.future_steps, grid.tokens_per_step, grid.dim, generator=generator)
    return observed, future, torch.randn(batch, 3, 2, 10, generator=generator)


def opened(model: Forecaster) -> Forecaster:
    if isinstance(model, ThinkJepa):
        torch.nn.init.constant_(model.pyramid.gates, 0.5)
    return model


@pytest.mark.parametrize("attention", ["frame_causal", "bidirectional"])
def test_training_starts_as_the_jepa_baseline_to_the_last_bit(
    model_shape: BuildShape, attention: str
) -> None:
    guided = build_forecaster(model_shape("thinkjepa", attention=attention), seed=3)
    alone = build_forecaster(model_shape("jepa", attention=attention), seed=3)
    observed, future, pooled = features(model_shape())
    outputs = [model(observed, 1000 * pooled) for model in (guided, alone)]
    assert torch.equal(*outputs)
    for output in outputs:
        latent_mse(output, future).mean().backward()
    own = dict(guided.named_parameters())
    for name, parameter in alone.named_parameters():
        assert torch.equal(parameter, own[name])
        torch.testing.assert_close(parameter.grad, own[name].grad)


def test_an_open_gate_changes_the_prediction(model_shape: BuildShape) -> None:
    model = build_forecaster(model_shape("thinkjepa"), seed=3)
    observed, _, pooled = features(model_shape())
    shut = model(observed, pooled)
    assert (opened(model)(observed, pooled) - shut).abs().max() > 1e-3


def test_shut_gates_learn(model_shape: BuildShape) -> None:
    model = build_forecaster(model_shape("thinkjepa"), seed=3)
    observed, future, pooled = features(model_shape())
    latent_mse(model(observed, pooled), future).mean().backward()
    assert isinstance(model, ThinkJepa)
    assert model.pyramid.gates.grad is not None
    assert model.pyramid.gates.grad.ne(0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_parameter_and_no_target(model_shape: BuildShape, variant: str) -> None:
    model = opened(build_forecaster(model_shape(variant), seed=1))
    observed, future, pooled = features(model_shape(variant))
    latent_mse(model(observed, pooled), future).mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias of the keys shifts all of a query's scores alike, which softmax does not see.
    assert [name for name in without if not name.endswith("attention.key.bias")] == []
    assert future.grad is None
    assert not future.requires_grad


@torch.no_grad()
@pytest.mark.parametrize("variant", ["thinkjepa", "vlm"])
def test_guidance_of_one_sample_reaches_no_other(model_shape: BuildShape, variant: str) -> None:
    model = opened(build_forecaster(model_shape(variant), seed=1))
    observed, _, pooled = features(model_shape(variant))
    altered = pooled.clone()
    altered[1] = altered[1].flip(0)
    delta = (model(observed, altered) - model(observed, pooled)).abs().amax(dim=(1, 2, 3))
    assert delta[[0, 2]].tolist() == [0.0, 0.0]
    assert delta[1] > 1e-5


@torch.no_grad()
@pytest.mark.parametrize("attention", ["frame_causal", "bidirectional"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_kernel_is_ever_given_a_mask(
    model_shape: BuildShape, variant: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Causality is in which keys a kernel gets: a mask would cost memory, and the flash kernels."""
    calls: list[tuple[int, int]] = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def spied(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: object) -> torch.Tensor:
        assert not options
        calls.append((query.shape[2], key.shape[2]))
        return kernel(query, key, value)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spied)
    shape = model_shape(variant, attention=attention)
    observed, _, pooled = features(shape)
    build_forecaster(shape, seed=0)(observed, pooled)
    longest = max(keys for _, keys in calls)
    whole = {queries == longest for queries, _ in calls}
    assert whole == ({True} if attention == "bidirectional" else {False})


@torch.no_grad()
def test_thinker_only_sees_no_latents(model_shape: BuildShape) -> None:
    model = build_forecaster(model_shape("vlm"), seed=1)
    observed, _, pooled = features(model_shape("vlm"))
    assert torch.equal(model(observed, pooled), model(observed + 1, pooled))


@torch.no_grad()
def test_thinker_only_predicts_each_position_apart(model_shape: BuildShape) -> None:
    shape = model_shape("vlm")
    model = build_forecaster(shape, seed=1)
    observed, _, pooled = features(shape, batch=1)
    outputs = model(observed, pooled).flatten(0, 2)
    assert len(torch.unique(outputs, dim=0)) == shape.grid.future_steps * shape.grid.tokens_per_step


@torch.no_grad()
def test_thinker_only_is_causal_over_its_steps(model_shape: BuildShape) -> None:
    model = build_forecaster(model_shape("vlm"), seed=1)
    assert isinstance(model, ThinkerOnly)
    observed, _, pooled = features(model_shape("vlm"))
    before = model(observed, pooled)
    model.step_embedding[1] += torch.linspace(-1, 1, TRUNK_WIDTH)
    delta = (model(observed, pooled) - before).abs().amax(dim=(0, 2, 3))
    assert delta[0] == 0
    assert delta[1] > 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_depend_on_the_seed_and_nothing_else(model_shape: BuildShape, variant: str) -> None:
    torch.manual_seed(1)
    first = build_forecaster(model_shape(variant), seed=7).state_dict()
    torch.manual_seed(2)
    second = build_forecaster(model_shape(variant), seed=7).state_dict()
    other = build_forecaster(model_shape(variant), seed=8).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("variant", VARIANTS)
def test_shape_survives_json(model_shape: BuildShape, variant: str) -> None:
    shape = model_shape(variant)
    assert shape_from_json(asdict(shape), path=Path("run.json")) == shape


def test_guided_variant_without_a_thinker_is_refused(model_shape: BuildShape) -> None:
    shape = model_shape("jepa")
    without = ModelShape("thinkjepa", shape.grid, shape.trunk, thinker=None, fusion_width=16)
    with pytest.raises(StageError, match="--variant jepa"):
        build_forecaster(without, seed=0)


@pytest.mark.parametrize(("preset", "millions"), [("paper", 37.8), ("default", 37.0)])
def test_size_at_the_papers_settings(preset: str, millions: float) -> None:
    """The default shares one projection of 0.8 M between the two streams, which the preset does not."""
    grid = LatentGrid(observed_steps=16, future_steps=16, height=16, width=16, dim=1024)
    thinker = ThinkerShape(levels=8, dim=2048)
    settings = parse_settings(TrainSettings, {"preset": preset})
    shape = ModelShape(
        "thinkjepa",
        grid,
        settings.trunk,
        thinker,
        settings.fusion_width,
        guidance=settings.guidance_shape,
    )
    num_parameters = sum(parameter.numel() for parameter in build_forecaster(shape, seed=0).parameters())
    assert num_parameters == pytest.approx(1e6 * millions, rel=0.002)


def tokens_of(batch: int = 3, seed: int = 6) -> TokenBatch:
    states = torch.randn(batch, 3, 7, 10, generator=torch.Generator().manual_seed(seed))
    counts = (7, 2, 5)
    for place, count in enumerate(counts):
        states[place, :, count:] = 0
    return TokenBatch(states, counts)


def reading_tokens(model_shape: BuildShape, *, gate: float | None = 0.5) -> ThinkerOnly:
    shape = replace(model_shape("vlm"), guidance=GuidanceShape(kind="cross"))
    model = build_forecaster(shape, seed=3)
    assert isinstance(model, ThinkerOnly)
    assert model.pyramid is not None
    if gate is not None:
        torch.nn.init.constant_(model.pyramid.gates, gate)
    return model


def test_thinker_only_reads_tokens_of_its_own_sample_and_starts_as_without(model_shape: BuildShape) -> None:
    observed, _, pooled = features(model_shape("vlm"))
    plain = build_forecaster(model_shape("vlm"), seed=3)
    shut, open_ = reading_tokens(model_shape, gate=None), reading_tokens(model_shape)
    tokens, others = tokens_of(), tokens_of(seed=7)
    with torch.no_grad():
        assert torch.equal(shut(observed, pooled, tokens), plain(observed, pooled))
        before = open_(observed, pooled, tokens)
        assert (before - plain(observed, pooled)).abs().amax(dim=(1, 2, 3)).gt(1e-3).all()
        mixed = tokens.states.clone()
        mixed[1] = others.states[1]
        after = open_(observed, pooled, TokenBatch(mixed, tokens.counts))
        assert (after - before).abs().amax(dim=(1, 2, 3)).gt(1e-5).tolist() == [False, True, False]
        assert (after - before)[[0, 2]].abs().max() == 0
        assert torch.equal(open_(100 * observed, pooled, tokens), before), "no latents"


def test_gradients_reach_every_parameter_of_a_thinker_only_that_reads_tokens(
    model_shape: BuildShape,
) -> None:
    model = reading_tokens(model_shape)
    observed, future, pooled = features(model_shape("vlm"))
    latent_mse(model(observed, pooled, tokens_of()), future).mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in without if not name.endswith("key.bias")] == []
    assert model.pyramid is not None
    assert "pyramid.gates" in dict(model.named_parameters())


def test_vlm_learns_a_target_of_its_own_for_each_step_of_several_windows(model_shape: BuildShape) -> None:
    """Later windows are other than the first one's last step, which only steps beyond them repeat."""
    shape = replace(model_shape("vlm", depth=1), windows=3)
    model, (observed, _, pooled) = build_forecaster(shape, seed=0), features(shape)
    window_steps, steps = shape.grid.future_steps, shape.trained_steps
    target = (torch.arange(steps) - 2.0).view(1, steps, 1, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        (model(observed, pooled, num_steps=steps) - target).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        rolled = model(observed, pooled, num_steps=steps + 2)
        assert torch.equal(model(observed, pooled), rolled[:, :window_steps])
    assert float((rolled[:, :steps] - target).abs().max()) < 0.3
    assert torch.equal(rolled[:, steps:], rolled[:, steps - 1 : steps].expand(-1, 2, -1, -1))
