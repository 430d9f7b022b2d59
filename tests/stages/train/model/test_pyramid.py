"""The thinker's states reach each depth, per sample, behind gates that start shut."""

from __future__ import annotations

import math
from fractions import Fraction
from math import floor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thinkjepa.stages.train.data.statistics import StateStatistics, pooled_statistics
from thinkjepa.stages.train.model.config import ThinkerShape
from thinkjepa.stages.train.model.guidance import (
    FixedLevels,
    MixedLevels,
    Pyramid,
    ThinkerProjection,
    assign_levels,
    build_levels,
    signature,
)
from thinkjepa.stages.train.model.reading import GuidanceKind, GuidanceShape, LevelChoice
from thinkjepa.stages.train.model.trunk import NORM_EPS, initialize
from thinkjepa.stages.train.randomness import named_generator

THINKER = ThinkerShape(levels=3, dim=10)


def pooled_states(batch: int = 4, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, THINKER.levels, 2, THINKER.dim, generator=torch.Generator().manual_seed(seed))


def open_pyramid(depth: int = 4) -> Pyramid:
    pyramid = Pyramid(THINKER, depth=depth, width=24, fusion_width=16)
    initialize(pyramid, named_generator(0, "pyramid"))
    torch.nn.init.ones_(pyramid.gates)
    return pyramid


def test_levels_of_the_paper_spread_over_its_depths() -> None:
    assert assign_levels(num_levels=8, depth=12) == (0, 1, 1, 2, 3, 3, 4, 4, 5, 6, 6, 7)


@given(num_levels=st.integers(1, 40), depth=st.integers(2, 40))
def test_levels_follow_the_formula_and_rise_from_first_to_last(num_levels: int, depth: int) -> None:
    levels = assign_levels(num_levels=num_levels, depth=depth)
    exact = [index * (num_levels - 1) / (depth - 1) for index in range(depth)]
    assert all(abs(level - value) <= 0.5 for level, value in zip(levels, exact, strict=True))
    assert list(levels) == sorted(levels)
    assert (levels[0], levels[-1]) == (0, num_levels - 1)


@given(num_levels=st.integers(1, 40), depth=st.integers(2, 40))
def test_levels_are_those_of_exact_arithmetic(num_levels: int, depth: int) -> None:
    """`round(l * (L - 1) / (depth - 1))` in fractions, halves up: no float rounding decides a level."""
    exact = [Fraction(index * (num_levels - 1), depth - 1) for index in range(depth)]
    assert assign_levels(num_levels=num_levels, depth=depth) == tuple(
        floor(value + Fraction(1, 2)) for value in exact
    )


def test_a_mixture_weighs_the_used_levels_by_softmax_depth_by_depth() -> None:
    mixed = MixedLevels((1, 2), depth=2)
    per_level = torch.tensor([[[1e6], [2.0], [6.0]]])
    assert mixed.at(0, per_level).item() == pytest.approx(4.0), "equal logits: the mean of the used levels"
    with torch.no_grad():
        mixed.mixture[1] = torch.tensor([math.log(3.0), 0.0])  # three to one
    assert mixed.at(1, per_level).item() == pytest.approx(0.75 * 2 + 0.25 * 6)
    assert mixed.at(0, per_level).item() == pytest.approx(4.0), "each depth has its own"


@pytest.mark.parametrize(("use", "level"), [("last", 2), ("middle", 1)])
def test_one_level_is_no_mixture(use: LevelChoice, level: int) -> None:
    """A mixture of one could not learn: its gradient is zero."""
    found = build_levels(GuidanceShape(levels="mixture", use_levels=use), num_levels=3, depth=4)
    assert isinstance(found, FixedLevels)
    assert found.levels == (level,) * 4


def test_a_single_block_is_guided_by_the_last_level() -> None:
    assert assign_levels(num_levels=5, depth=1) == (4,)


def test_signature_holds_both_streams_their_distance_and_product() -> None:
    projected = torch.tensor([[[[1.0, -2.0], [3.0, 5.0]]]])
    assert signature(projected).tolist() == [[[1, -2, 3, 5, 2, 7, 3, -10]]]


def test_projecting_the_mean_equals_the_mean_of_projections() -> None:
    projection = ThinkerProjection(THINKER, width=24)
    tokens = 0.5 + torch.randn(
        70, 2, THINKER.levels, 2, THINKER.dim, generator=torch.Generator().manual_seed(0)
    )
    projection.set_statistics(pooled_statistics([tokens.flatten(0, 1)]))
    pooled_first = projection.project(tokens.mean(dim=0))
    pooled_last = projection.project(tokens).mean(dim=0)
    torch.testing.assert_close(pooled_first, pooled_last, atol=1e-6, rtol=0)


def test_guidance_is_per_sample() -> None:
    pyramid, pooled = open_pyramid(), pooled_states()
    altered = pooled.clone()
    altered[2] += 1.0
    delta = (pyramid(altered) - pyramid(pooled)).abs().amax(dim=(1, 2, 3))
    assert delta[[0, 1, 3]].tolist() == [0.0, 0.0, 0.0]
    assert delta[2] > 1e-4


def test_each_depth_reads_its_own_level_only() -> None:
    pyramid, pooled = open_pyramid(depth=5), pooled_states()
    for level in range(THINKER.levels):
        altered = pooled.clone()
        altered[:, level] += 1.0
        changed = (pyramid(altered) != pyramid(pooled)).any(dim=3).any(dim=2).any(dim=0)
        assert changed.tolist() == [assigned == level for assigned in pyramid.levels.levels]


def test_shut_gates_give_no_guidance() -> None:
    pyramid = Pyramid(THINKER, depth=4, width=24, fusion_width=16)
    initialize(pyramid, named_generator(0, "pyramid"))
    assert not pyramid(pooled_states()).any()


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e4, 65504.0, 1e18])
def test_guidance_is_finite_for_any_size_of_states(size: float) -> None:
    assert torch.isfinite(open_pyramid()(size * pooled_states())).all()


def test_a_stream_that_was_not_generated_projects_to_zero_whatever_the_statistics() -> None:
    projection = ThinkerProjection(THINKER, width=24)
    projection.set_statistics(pooled_statistics([5 + pooled_states(16)]))
    pooled = pooled_states()
    pooled[1, :, 1] = 0.0
    projected = projection(pooled)
    assert not projected[1, :, 1].any()
    assert projected[1, :, 0].abs().amin(dim=-1).gt(0).all()


def test_massive_dims_do_not_drown_the_others() -> None:
    """Two clips that differ in an ordinary dim stay apart although one dim is in the thousands for both."""
    states = pooled_states(256)
    states[..., 4] += 3000.0
    projection = ThinkerProjection(THINKER, width=24)
    initialize(projection, named_generator(0, "projection"))
    raw = torch.pdist(projection(states[:16])[:, 0, 0]).mean()
    projection.set_statistics(pooled_statistics([states]))
    standardised = torch.pdist(projection(states[:16])[:, 0, 0]).mean()
    assert raw < 0.05
    assert standardised > 1.0


def test_statistics_do_not_depend_on_the_batches() -> None:
    states = pooled_states(20)
    states[::3, :, 1] = 0.0
    whole, parts = pooled_statistics([states]), pooled_statistics(states.split(7))
    torch.testing.assert_close(whole.mean, parts.mean)
    torch.testing.assert_close(whole.scale, parts.scale)
    present = states[[i for i in range(20) if i % 3]][:, :, 1]
    torch.testing.assert_close(whole.mean[:, 1], present.mean(dim=0))
    assert isinstance(whole, StateStatistics)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["film", "adaln"])
def test_the_papers_form_by_hand(kind: GuidanceKind) -> None:
    """A projection for each stream, a norm over the signature, an MLP a depth, tanh of its gate."""
    depth, width = 3, 24
    guidance = GuidanceShape(kind=kind, form="paper")
    pyramid = Pyramid(THINKER, depth=depth, width=width, fusion_width=16, guidance=guidance)
    initialize(pyramid, named_generator(0, "pyramid"))
    assert pyramid(pooled_states()).eq(0).all(), "gates start shut"
    pyramid.gates.copy_(torch.tensor([0.5, -2.0, 30.0]))
    pyramid.projection.set_statistics(
        StateStatistics(torch.full((3, 2, 10), 0.5), torch.full((3, 2, 10), 2.0))
    )
    states = (pooled_states() - 0.5) / 2
    prompt, generated = (
        states[:, :, stream] @ layer.weight.T  # type: ignore[operator]
        for stream, layer in enumerate(pyramid.projection.proj.layers)
    )
    assert not torch.equal(*(layer.weight for layer in pyramid.projection.proj.layers))  # type: ignore[arg-type]
    parts = torch.cat((prompt, generated, (prompt - generated).abs(), prompt * generated), dim=-1)
    centred = parts - parts.mean(dim=-1, keepdim=True)
    normed = centred / (parts.var(dim=-1, keepdim=True, correction=0) + NORM_EPS).sqrt()
    levels = assign_levels(num_levels=3, depth=depth)
    for index, gate in enumerate((0.5, -2.0, 30.0)):
        expected = math.tanh(gate) * pyramid.fusion[index](normed[:, levels[index]])
        found = pyramid(pooled_states())[:, index].flatten(1)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
