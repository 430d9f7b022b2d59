"""Places that a run reads of the thinker's states: its own attention, and nothing of the future."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from latent_cache import FRAME_SLOTS, THINKER_GRID, TINY_JEPA

from thinkjepa.cache import FeatureCache
from thinkjepa.stages.data.partition import SplitRule
from thinkjepa.stages.evaluate.details.attended import Attended, attended
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.train.model.attention import grid_positions, rotation_at
from thinkjepa.stages.train.model.token_guidance import CrossAttention, Keys
from thinkjepa.stages.train.run import train

CPU = torch.device("cpu")


@pytest.fixture
def trained(latent_cache: Callable[..., Path], tmp_path: Path) -> Callable[..., TrainedRun]:
    """A function that trains a guided run on a cache with slots and labels."""

    def build(guidance: str, **settings: object) -> TrainedRun:
        cache = latent_cache(with_slots=True, labelled=16)
        chosen = replace(TINY_JEPA, variant="thinkjepa", guidance=guidance, depth=2, epochs=2, **settings)
        train(cache, tmp_path / guidance, chosen, split=SplitRule(group_by="video"))
        return TrainedRun.open(tmp_path / guidance)

    return build


def read_of(run: TrainedRun, cache: Path | None = None) -> list[Attended | None]:
    """The places that are read of each test clip."""
    features, model = run.features(cache), run.model()
    ids = run.clip_ids("test")
    return [attended(model, features, features.batch([clip_id], CPU), clip_id) for clip_id in ids]


def test_the_weights_are_those_that_the_forecast_reads_with() -> None:
    torch.manual_seed(0)
    layer = CrossAttention(24, heads=2)
    x, states = torch.randn(2, 6, 24), torch.randn(2, 5, 24)
    rotation = rotation_at(
        grid_positions(first_step=0, num_steps=1, height=2, width=3, device=CPU), head_dim=12
    )
    keys = Keys(states, (5, 3), rotation_at(torch.randn(2, 1, 5, 3), head_dim=12))
    weights = layer.weights(x, states, keys, rotation)
    assert [tuple(found.shape) for found in weights] == [(2, 6, 5), (2, 6, 3)]
    value = layer.value(states).view(2, 5, 2, 12).transpose(1, 2)
    read = torch.stack([found @ value[index, :, : found.shape[-1]] for index, found in enumerate(weights)])
    output = layer.proj(read.transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x, states, keys, rotation), output)


@pytest.mark.parametrize("guidance", ["cross", "spatial"])
def test_the_shares_are_of_all_that_is_read(trained: Callable[..., TrainedRun], guidance: str) -> None:
    found = read_of(trained(guidance))
    assert found
    for looked in found:
        assert looked is not None
        assert looked.kind == guidance
        assert looked.gate > 0
        assert looked.shares.min() > 0
        assert looked.shares.sum() + looked.pairs_share + looked.text_share == pytest.approx(1)
        if guidance == "cross":
            assert looked.shares.shape == THINKER_GRID
            assert looked.pairs_share > 0
            assert looked.text_share > 0
            assert np.all(np.diff(looked.heights) > 0)
    assert len({looked.shares.tobytes() for looked in found if looked}) > 1, "each clip has its own"


@pytest.mark.parametrize("guidance", ["cross", "spatial"])
def test_nothing_of_the_future_is_read(
    trained: Callable[..., TrainedRun], latent_cache: Callable[..., Path], guidance: str
) -> None:
    run = trained(guidance)
    other = latent_cache(name="other", with_slots=True, labelled=16, later=7.0)
    ids = list(run.clip_ids("test"))
    set_name = FeatureCache.open(other).filled_sets("encoder")[0].name
    futures = [
        FeatureCache.open(path).read(set_name, "future", ids) for path in (other, Path(run.record["cache"]))
    ]
    assert (futures[0] != futures[1]).all(), "the futures differ"
    for own, changed in zip(read_of(run), read_of(run, other), strict=True):
        assert own is not None
        assert changed is not None
        assert np.abs(own.shares - changed.shares).max() == 0
        assert (own.pairs_share, own.text_share) == (changed.pairs_share, changed.text_share)


def test_a_slot_that_answers_every_query_has_all_the_attention(trained: Callable[..., TrainedRun]) -> None:
    run = trained("cross", cross_tokens="slots")
    features, model = run.features(None), run.model()
    clip_id = run.clip_ids("test")[0]
    batch = features.batch([clip_id], CPU)
    assert batch.tokens is not None
    num_slots = batch.tokens.slots[0]
    assert num_slots == THINKER_GRID[0] * THINKER_GRID[1] + FRAME_SLOTS
    for layer in model.forecaster.pyramid.layers:  # type: ignore[union-attr]
        layer.weights = lambda x, states, keys, rotation: [torch.eye(num_slots)[2].expand(2, x.shape[1], -1)]
    looked = attended(model, features, batch, clip_id)
    assert looked is not None
    assert looked.shares.sum() == pytest.approx(1)
    positions = FeatureCache.open(Path(run.record["cache"])).read(
        features.thinker.name,  # type: ignore[union-attr]
        "slot_position",
        [clip_id],
    )[0, 2]
    row, column = np.unravel_index(looked.shares.argmax(), looked.shares.shape)
    assert (looked.heights[row], looked.widths[column]) == pytest.approx(tuple(positions[2:].tolist()))


def test_means_have_no_place(trained: Callable[..., TrainedRun]) -> None:
    assert set(read_of(trained("film"))) == {None}
