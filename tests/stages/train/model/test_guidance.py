"""Guidance of every kind starts shut, reaches its own sample only, and can be dropped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from thinkjepa.cache import FeatureCache
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.data.features import choose_features
from thinkjepa.stages.train.data.tokens import TokenBatch
from thinkjepa.stages.train.fit.losses import latent_mse
from thinkjepa.stages.train.model.config import ModelShape
from thinkjepa.stages.train.model.reading import GuidanceShape, TokenReading
from thinkjepa.stages.train.model.variants import Forecaster, ThinkJepa, build_forecaster
from thinkjepa.stages.train.randomness import is_dropped
from thinkjepa.stages.train.settings import TrainSettings

BuildShape = Callable[..., ModelShape]
KINDS = ("film", "adaln", "cross", "spatial")
SHAPES = [GuidanceShape(kind=kind, levels=levels) for kind in KINDS for levels in ("fixed", "mixture")]  # type: ignore[arg-type]
SLOTS = GuidanceShape(
    kind="cross", cross_tokens="slots,text,generated", token_array="text_tokens", positions=True
)
SHAPES += [SLOTS, replace(SLOTS, cross_tokens="slots", levels="mixture")]
PAPERS = [GuidanceShape(kind=kind, form="paper") for kind in ("film", "adaln")]  # type: ignore[arg-type]
SHAPES += PAPERS
COUNTS = (5, 2, 7)


def named(guidance: GuidanceShape) -> str:
    reading = f"-{guidance.cross_tokens}" if guidance.positions else ""
    return f"{guidance.kind}-{guidance.levels}-{guidance.form}{reading}"


def build(model_shape: BuildShape, guidance: GuidanceShape, *, gate: float | None = 0.5) -> ThinkJepa:
    """A guided model with these gates; None leaves them as a run begins with them."""
    model = build_forecaster(replace(model_shape("thinkjepa"), guidance=guidance), seed=3)
    assert isinstance(model, ThinkJepa)
    if gate is not None:
        torch.nn.init.constant_(model.pyramid.gates, gate)
    return model


def known(
    guidance: GuidanceShape | None = None, seed: int = 5
) -> tuple[torch.Tensor, torch.Tensor, TokenBatch]:
    """Observed latents, pooled states and what `guidance` reads one by one, of three clips."""
    generator = torch.Generator().manual_seed(seed)
    observed, pooled = (
        torch.randn(3, 3, 6, 8, generator=generator),
        torch.randn(3, 3, 2, 10, generator=generator),
    )
    states = torch.randn(3, 3, max(COUNTS), 10, generator=generator)
    for place, count in enumerate(COUNTS):
        states[place, :, count:] = 0
    reading = guidance.reading() if guidance else TokenReading()
    slots = () if not reading.slots else (2, 1, 4) if reading.kinds else COUNTS
    positions = None
    if reading.positioned:
        positions = torch.rand(3, max(COUNTS), 3, generator=generator) * torch.tensor([4.0, 2.0, 3.0]) - 1.0
        for clip, (count, num_slots) in enumerate(zip(COUNTS, slots, strict=True)):
            positions[clip, num_slots:, 1:] = torch.nan
            positions[clip, count:] = 0
    return observed, pooled, TokenBatch(states, COUNTS, slots, positions)


def of_clips(tokens: TokenBatch, clips: list[int], *, most: int | None = None) -> TokenBatch:
    """The first `most` states of some clips, in this order."""
    return TokenBatch(
        tokens.states[clips, :, :most],
        tuple(tokens.counts[clip] for clip in clips),
        tuple(tokens.slots[clip] for clip in clips) if tokens.slots else (),
        None if tokens.positions is None else tokens.positions[clips, :most],
    )


def changed_samples(before: torch.Tensor, after: torch.Tensor) -> list[bool]:
    return (after - before).abs().amax(dim=(1, 2, 3)).gt(1e-5).tolist()


@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("guidance", SHAPES, ids=named)
def test_shut_gates_equal_the_unguided_predictor_to_the_last_bit(
    model_shape: BuildShape, guidance: GuidanceShape, precision: str
) -> None:
    """With and without dropped guidance, at the future steps and at the observed ones."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        compare_shut_gates(model_shape, guidance)


def compare_shut_gates(model_shape: BuildShape, guidance: GuidanceShape) -> None:
    """Shut gates give the unguided predictor's latents, opened ones do not."""
    observed, pooled, tokens = known(guidance)
    alone: Forecaster = build_forecaster(model_shape("jepa"), seed=3)
    shut, opened = (build(model_shape, guidance, gate=gate) for gate in (None, 0.5))
    for guided in (None, torch.tensor([1.0, 0.0, 1.0]), torch.zeros(3)):
        assert torch.equal(shut(observed, 1000 * pooled, tokens, guided), alone(observed, None))
        assert torch.equal(
            shut.all_steps(observed, 1000 * pooled, tokens, guided), alone.all_steps(observed, None)
        )
    assert all(changed_samples(alone(observed, None), opened(observed, pooled, tokens)))


@torch.no_grad()
@pytest.mark.parametrize("guidance", SHAPES, ids=named)
def test_a_samples_thinker_states_reach_its_own_output_only(
    model_shape: BuildShape, guidance: GuidanceShape
) -> None:
    observed, pooled, tokens = known(guidance)
    other = known(seed=6)
    pooled_altered, states_altered = pooled.clone(), tokens.states.clone()
    pooled_altered[1], states_altered[1] = other[1][1], other[2].states[1]
    model = build(model_shape, guidance)
    before = model(observed, pooled, tokens)
    after = model(observed, pooled_altered, replace(tokens, states=states_altered))
    assert (after - before)[[0, 2]].abs().max() == 0
    assert changed_samples(before, after) == [False, True, False]


@torch.no_grad()
@pytest.mark.parametrize("attention", ["frame_causal", "bidirectional"])
@pytest.mark.parametrize("guidance", SHAPES, ids=named)
def test_guided_or_not_an_observed_step_reaches_no_earlier_output(
    model_shape: BuildShape, guidance: GuidanceShape, attention: str
) -> None:
    """Outputs at the observed steps too; bidirectional attention is the control."""
    observed, pooled, tokens = known(guidance)
    shape = replace(model_shape("thinkjepa", attention=attention), guidance=guidance)
    model = build_forecaster(shape, seed=3)
    assert isinstance(model, ThinkJepa)
    torch.nn.init.constant_(model.pyramid.gates, 0.5)
    before = model.all_steps(observed, pooled, tokens)
    assert torch.equal(before[:, 3:], model(observed, pooled, tokens)), "one forward, two readings of it"
    for changed in range(3):
        altered = observed.clone()
        altered[:, changed] += 1.0
        delta = (model.all_steps(altered, pooled, tokens) - before).abs().amax(dim=(0, 2, 3))
        assert (delta[changed:] > 1e-5).all()
        if attention == "frame_causal":
            assert delta[:changed].tolist() == [0.0] * changed
        else:
            assert (delta > 1e-5).all()


@torch.no_grad()
@pytest.mark.parametrize("guidance", SHAPES, ids=named)
def test_order_of_the_batch_and_padding_do_not_matter(
    model_shape: BuildShape, guidance: GuidanceShape
) -> None:
    observed, pooled, tokens = known(guidance)
    model = build(model_shape, guidance)
    together = model(observed, pooled, tokens)
    order = [2, 0, 1]
    turned = model(observed[order], pooled[order], of_clips(tokens, order))
    torch.testing.assert_close(turned, together[order], atol=1e-6, rtol=1e-5)
    for place, count in enumerate(COUNTS):
        one, own = slice(place, place + 1), of_clips(tokens, [place], most=count)
        alone = model(observed[one], pooled[one], own)
        torch.testing.assert_close(alone, together[one], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_what_lies_behind_a_clips_tokens_is_never_read(model_shape: BuildShape) -> None:
    observed, pooled, tokens = known()
    model = build(model_shape, GuidanceShape(kind="cross"))
    filled = tokens.states.clone()
    filled[1, :, COUNTS[1] :] = 1e4
    before = model(observed, pooled, tokens)
    assert torch.equal(model(observed, pooled, replace(tokens, states=filled)), before)
    filled[1, :, COUNTS[1] - 1] = 1e4
    assert changed_samples(before, model(observed, pooled, replace(tokens, states=filled))) == [
        False,
        True,
        False,
    ]


@torch.no_grad()
def test_a_clip_without_tokens_is_forecast_without_guidance(model_shape: BuildShape) -> None:
    observed, pooled, tokens = known()
    model = build(model_shape, GuidanceShape(kind="cross"))
    without = model(observed, pooled, TokenBatch(tokens.states, (5, 0, 7)))
    unguided = build_forecaster(model_shape("jepa"), seed=3)(observed, None)
    assert torch.equal(without[1], unguided[1])
    assert changed_samples(unguided, without) == [True, False, True]


@torch.no_grad()
@pytest.mark.parametrize("guidance", SHAPES, ids=named)
def test_dropped_guidance_equals_the_unguided_predictor(
    model_shape: BuildShape, guidance: GuidanceShape
) -> None:
    observed, pooled, tokens = known(guidance)
    model = build(model_shape, guidance)
    mixed = model(observed, pooled, tokens, torch.tensor([1.0, 0.0, 1.0]))
    assert torch.equal(mixed[1], build_forecaster(model_shape("jepa"), seed=3)(observed, None)[1])
    assert torch.equal(mixed[[0, 2]], model(observed, pooled, tokens)[[0, 2]])


@pytest.mark.parametrize("guidance", SHAPES, ids=named)
def test_gradients_reach_every_parameter(model_shape: BuildShape, guidance: GuidanceShape) -> None:
    observed, pooled, tokens = known(guidance)
    model = build(model_shape, guidance)
    future = torch.randn(3, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    latent_mse(model(observed, pooled, tokens), future).mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in without if not name.endswith("key.bias")] == []
    assert future.grad is None
    assert pooled.grad is None


@pytest.mark.parametrize("guidance", SHAPES, ids=named)
def test_shut_gates_learn(model_shape: BuildShape, guidance: GuidanceShape) -> None:
    observed, pooled, tokens = known(guidance)
    model = build(model_shape, guidance, gate=None)
    model(observed, pooled, tokens).square().mean().backward()
    assert model.pyramid.gates.grad is not None
    assert model.pyramid.gates.grad.ne(0).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("use", "levels"), [("all", {0, 1, 2}), ("last", {2}), ("middle", {1})])
@pytest.mark.parametrize("assignment", ["fixed", "mixture"])
def test_only_the_used_levels_are_read(
    model_shape: BuildShape, kind: str, use: str, levels: set[int], assignment: str
) -> None:
    shape = replace(model_shape("thinkjepa", depth=3))
    guidance = GuidanceShape(kind=kind, use_levels=use, levels=assignment)  # type: ignore[arg-type]
    model = build_forecaster(replace(shape, guidance=guidance), seed=3)
    assert isinstance(model, ThinkJepa)
    torch.nn.init.ones_(model.pyramid.gates)
    observed, pooled, tokens = known(guidance)
    other = known(seed=6)
    read = set()
    for level in range(3):
        pooled_altered, states_altered = pooled.clone(), tokens.states.clone()
        pooled_altered[:, level], states_altered[:, level] = other[1][:, level], other[2].states[:, level]
        after = model(observed, pooled_altered, replace(tokens, states=states_altered))
        if not torch.equal(after, model(observed, pooled, tokens)):
            read.add(level)
    assert read == levels


@torch.no_grad()
@pytest.mark.parametrize("variant", ["thinkjepa", "vlm"])
@pytest.mark.parametrize(("use", "streams"), [("both", {0, 1}), ("prompt", {0}), ("generated", {1})])
def test_only_the_used_streams_are_read(
    model_shape: BuildShape, variant: str, use: str, streams: set[int]
) -> None:
    guidance = GuidanceShape(use_streams=use)
    model = build_forecaster(replace(model_shape(variant), guidance=guidance), seed=3)
    if isinstance(model, ThinkJepa):
        torch.nn.init.ones_(model.pyramid.gates)
    observed, pooled, _ = known()
    read = set()
    for stream in (0, 1):
        altered = pooled.clone()
        altered[:, :, stream] = known(seed=6)[1][:, :, stream]
        if not torch.equal(model(observed, altered), model(observed, pooled)):
            read.add(stream)
    assert read == streams


@pytest.mark.parametrize(
    ("tokens", "streams", "kinds"),
    [
        ("all", "both", (1, 2, 3, 4)),
        ("prompt", "both", (1, 2)),
        ("visual", "both", (2,)),
        ("generated", "both", (3, 4)),
        ("generated,reasoning", "both", (3, 4)),
        ("reasoning", "both", (4,)),
        ("answer", "both", (3,)),
        ("all", "generated", (3, 4)),
        ("visual, generated", "prompt", (2,)),
    ],
)
def test_chosen_tokens_are_kinds_of_the_cache(tokens: str, streams: str, kinds: tuple[int, ...]) -> None:
    shape = GuidanceShape(kind="cross", cross_tokens=tokens, use_streams=streams)  # type: ignore[arg-type]
    assert shape.reading() == TokenReading(kinds=kinds)


@pytest.mark.parametrize("chosen", ["all", "prompt", "visual", "generated", "text,generated"])
def test_tokens_of_the_chosen_kinds_are_read_and_no_other(
    latent_cache: Callable[..., Path], chosen: str
) -> None:
    """Against the arrays as they are stored, clip by clip, whatever the number of tokens."""
    cache = FeatureCache.open(latent_cache(with_tokens=True, num_videos=6))
    features = choose_features(cache, TrainSettings())
    reading = GuidanceShape(kind="cross", cross_tokens=chosen).reading()
    ids = features.clips.clip_ids.to_pylist()
    found = replace(features, reading=reading).tokens(ids)
    assert features.thinker is not None
    for place, clip_id in enumerate(ids):
        stored = cache.read(features.thinker.name, "tokens", [clip_id])[0]
        stored_kinds = cache.read(features.thinker.name, "token_kind", [clip_id])[0].tolist()
        wanted = [number for number, kind in enumerate(stored_kinds) if kind in reading.kinds]
        assert found.counts[place] == len(wanted)
        assert torch.equal(found.states[place, :, : len(wanted)], stored[:, wanted])
        assert not found.states[place, :, len(wanted) :].any()
    assert len(set(found.counts)) > 1 or chosen in ("text,generated", "generated")


@pytest.mark.parametrize(
    ("tokens", "streams", "message"), [("images", "both", "images"), ("visual", "generated", "no token")]
)
def test_a_choice_of_no_tokens_is_refused(tokens: str, streams: str, message: str) -> None:
    shape = GuidanceShape(kind="cross", cross_tokens=tokens, use_streams=streams)  # type: ignore[arg-type]
    with pytest.raises(StageError, match=message):
        shape.check_names()


def test_dropping_is_a_pure_function_with_the_asked_share() -> None:
    moments = [(epoch, step, f"clip{number}") for epoch in (1, 2) for step in (1, 2) for number in range(500)]

    def drawn(seed: int) -> list[bool]:
        return [is_dropped(clip, "drop", share=0.3, seed=seed, epoch=e, step=s) for e, s, clip in moments]

    first = drawn(0)
    assert first == drawn(0)
    assert first != drawn(1)
    assert sum(first) / len(first) == pytest.approx(0.3, abs=0.03)
    by_step = [first[start : start + 500] for start in range(0, 2000, 500)]
    assert len({tuple(step) for step in by_step}) == 4
