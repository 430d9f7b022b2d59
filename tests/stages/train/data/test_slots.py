"""Slots, by time and place: as they are stored, as they are read, and as they guide a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from latent_cache import GRID, THINKER

from thinkjepa.cache import FeatureCache
from thinkjepa.stages.data.framing import VJEPA2_FRAMING
from thinkjepa.stages.data.partition import SplitRule
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.baselines import inputs_at_split
from thinkjepa.stages.evaluate.evaluation import evaluate, predictions, rows_of
from thinkjepa.stages.evaluate.partners import permutations_of
from thinkjepa.stages.evaluate.rollout import evaluate_rollout
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.train.data.features import Features, choose_features
from thinkjepa.stages.train.data.on_grid import OnGrid, grid_part
from thinkjepa.stages.train.data.sources import GuidanceSource
from thinkjepa.stages.train.data.statistics import thinker_statistics
from thinkjepa.stages.train.run import train
from thinkjepa.stages.train.settings import TrainSettings

BuildCache = Callable[..., Path]
SIZES: dict[str, int] = {"depth": 1, "width": 24, "heads": 2, "fusion_width": 16, "head_width": 16}
RATES = {"learning_rate": 3e-3, "gate_learning_rate": 0.1}
TINY = TrainSettings(epochs=2, batch_size=8, device="cpu", tracker="none", **SIZES, **RATES)  # type: ignore[arg-type]
BY_PLACE = {
    "cross": {"guidance": "cross"},
    "spatial": {"guidance": "spatial"},
    "vlm": {"guidance": "cross", "variant": "vlm"},
}
KINDS: dict[str, dict[str, Any]] = {"film": {}, "adaln": {"guidance": "adaln"}, **BY_PLACE}


def run(cache: Path, out: Path, **changes: Any) -> dict[str, Any]:
    rule = SplitRule(group_by="video", test_fraction=0.3, validation_fraction=0.3)
    return train(cache, out, replace(TINY, **changes), split=rule)


def features_of(cache: Path, **changes: Any) -> Features:
    return choose_features(FeatureCache.open(cache), replace(TINY, **changes))


def test_slots_then_text_are_read_as_they_are_stored(latent_cache: BuildCache) -> None:
    cache = FeatureCache.open(latent_cache(with_slots=True, num_videos=3))
    features = choose_features(cache, replace(TINY, guidance="cross"))
    ids = features.clips.clip_ids.to_pylist()
    found = features.tokens(ids)
    assert features.thinker is not None
    name = features.thinker.name
    for index, clip_id in enumerate(ids):
        slots, text = (cache.read(name, array, [clip_id])[0] for array in ("slots", "text_tokens"))
        num_text = found.counts[index] - 6
        assert torch.equal(found.states[index, :, :6], slots[:, :6])
        assert torch.equal(found.states[index, :, 6 : found.counts[index]], text[:, :num_text])
        assert not found.states[index, :, found.counts[index] :].any()
    assert found.slots == (6,) * len(ids)
    assert sorted(set(found.counts)) == [7, 8, 9]


def test_positions_are_steps_before_the_split_and_patches(latent_cache: BuildCache) -> None:
    """A step has two frames at ten a second; the grid has 3 observed steps and 2 x 3 patches."""
    features = features_of(latent_cache(with_slots=True, num_videos=3), guidance="cross")
    positions = features.tokens(features.clips.clip_ids.to_pylist()).positions
    assert positions is not None
    split = GRID.observed_steps - 0.5
    places = [[0.0, 0.25], [0.0, 1.75], [1.0, 0.25], [1.0, 1.75]]
    wanted = [[split - 1.0 / 0.2, *place] for place in places]
    torch.testing.assert_close(positions[:, :4], torch.tensor(wanted).expand(len(positions), 4, 3))
    torch.testing.assert_close(positions[0, 4:6, 0], torch.tensor([split - 7.5, split - 2.5]))
    assert positions[0, 6, 0] == split
    assert positions[0, 4:7, 1:].isnan().all()


@pytest.mark.parametrize(
    ("framing", "size_px", "place", "wanted"),
    [
        (None, (320, 240), (0.5, 0.5), (7.5, 7.5)),
        (VJEPA2_FRAMING, None, (0.5, 0.5), (7.5, 7.5)),
        (VJEPA2_FRAMING, (292, 292), (18 / 292, 18 / 292), (-0.5, -0.5)),
        (VJEPA2_FRAMING, (584, 292), (0.5, (292 - 128) / 584), (7.5, -0.5)),
        (VJEPA2_FRAMING, (584, 292), (0.5, 0.0), (7.5, -(292 - 128) / 16 - 0.5)),
        ({"letterbox": {"height": 256, "width": 256}}, (200, 100), (0.0, 1.0), (3.5, 15.5)),
    ],
)
def test_a_place_in_the_frame_is_found_on_the_encoders_patches(
    framing: Any, size_px: Any, place: tuple[float, float], wanted: tuple[float, float]
) -> None:
    """16 x 16 patches; what the encoder cuts off lies outside the grid."""
    grid = replace(GRID, height=16, width=16)
    on_grid = OnGrid(grid, 0.2, grid_part(framing, size_px))
    found = on_grid.coordinates(torch.tensor([[0.0, 0.0, *place]]))
    torch.testing.assert_close(found, torch.tensor([[GRID.observed_steps - 0.5, *wanted]]), atol=1e-4, rtol=0)


def test_slots_and_text_have_statistics_of_their_own(latent_cache: BuildCache) -> None:
    features = features_of(latent_cache(with_slots=True, num_videos=3), guidance="cross")
    ids = features.clips.clip_ids.to_pylist()
    clips = [features.tokens([clip_id]) for clip_id in ids]
    _, found = thinker_statistics(features, ids)
    assert found is not None
    for group, part in enumerate((slice(0, 6), slice(6, None))):
        every = torch.cat([clip.states[0, :, part] for clip in clips], dim=1).double()
        torch.testing.assert_close(found.mean[group], every.mean(dim=1).float())
    assert thinker_statistics(replace(features, reading=replace(features.reading, kinds=())), ids)[
        1
    ].mean.shape == (THINKER.levels, THINKER.dim)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("cache", "choice", "streams"),
    [
        ("old", "auto", ("prompt", "generated")),
        ("old", "both", ("prompt", "generated")),
        ("old", "generated", ("generated",)),
        ("new", "auto", ("visual", "text", "last", "generated")),
        ("new", "generated, prompt", ("prompt", "generated")),
        ("new", "last", ("last",)),
    ],
)
def test_chosen_streams_are_read(
    latent_cache: BuildCache, cache: str, choice: str, streams: tuple[str, ...]
) -> None:
    opened = FeatureCache.open(latent_cache(with_slots=cache == "new", num_videos=3))
    features = choose_features(opened, replace(TINY, use_streams=choice))
    ids = features.clips.clip_ids.to_pylist()
    assert features.thinker is not None
    held = features.thinker.streams
    stored = opened.read(features.thinker.name, "pooled", ids)
    assert features.thinker_shape.streams == streams
    assert torch.equal(features.pooled(ids), stored[:, :, [held.index(name) for name in streams]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_streams": "visual"}, "has no stream 'visual', only prompt, generated: .*upgrade"),
        ({"guidance": "spatial"}, "holds no slots, .*extract again with --keep pooled,slots,text, or"),
        ({"guidance": "cross", "cross_tokens": "slots"}, "holds no slots"),
        ({"guidance": "cross"}, "holds no tokens, .*--keep pooled,slots,text,tokens"),
    ],
)
def test_a_set_that_lacks_what_is_asked_for_is_refused_by_name(
    latent_cache: BuildCache, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(StageError, match=message):
        run(latent_cache(), tmp_path / "run", **changes)


def test_all_tokens_are_refused_where_slots_alone_are_kept(latent_cache: BuildCache, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="holds no tokens"):
        run(latent_cache(with_slots=True), tmp_path / "run", guidance="cross", cross_tokens="visual,text")


def forecasts(run_dir: Path, cache: Path, *, windows: int = 1) -> torch.Tensor:
    """Latents and shuffled latents that the run forecasts of its test clips."""
    trained = TrainedRun.open(run_dir)
    features = trained.features(cache, windows=windows)
    clips = rows_of(trained.clip_ids("test"), features)
    found = [
        draw.latents
        for _, _, predicted in predictions(
            trained, trained.model(), features, clips, device=torch.device("cpu")
        )
        for method in ("model", "shuffled_guidance")
        for draw in predicted[method].draws
    ]
    return torch.stack([latents for latents in found if latents is not None])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_future_enters_a_forecast(latent_cache: BuildCache, tmp_path: Path, kind: str) -> None:
    """Not in training, nor in evaluation or a rollout: the difference is exactly zero.

    As a control, states of one clip that change do change forecasts.
    """
    cache = latent_cache(windows=2, with_slots=True)
    later = latent_cache(name="later", windows=2, with_slots=True, later=5.0)
    altered = latent_cache(name="altered", windows=2, with_slots=True, altered_seen=1.0)
    run(cache, tmp_path / "run", **KINDS[kind])
    for windows in (1, 2):
        before = forecasts(tmp_path / "run", cache, windows=windows)
        assert torch.equal(forecasts(tmp_path / "run", later, windows=windows), before)
        assert not torch.equal(forecasts(tmp_path / "run", altered, windows=windows), before)
    whole = evaluate(tmp_path / "run", cache_dir=cache)
    rolled = evaluate_rollout(tmp_path / "run", horizons=[2, 4], cache_dir=cache)
    assert rolled["horizons"][0]["latent"]["model"]["l2"]["mean"] == pytest.approx(
        whole["latent"]["model"]["l2"], rel=1e-9
    )


def test_a_partners_slots_come_with_the_partners_positions(latent_cache: BuildCache) -> None:
    """In training on shuffled states, and in the evaluation's shuffles."""
    features = features_of(latent_cache(with_slots=True, num_videos=6), guidance="cross")
    ids = features.clips.clip_ids.to_pylist()
    partners = dict(zip(ids, ids[1:] + ids[:1], strict=True))
    shuffled = replace(features, source=GuidanceSource("shuffled", partners=partners))
    own, others = features.tokens([*ids[1:], ids[0]]), shuffled.tokens(ids)
    assert torch.equal(own.states, others.states)
    assert own.positions is not None
    assert others.positions is not None
    assert torch.equal(own.positions.nan_to_num(), others.positions.nan_to_num())
    clips = list(features.clips)
    (first, *_) = permutations_of(clips)
    batch = features.batch(ids, torch.device("cpu"))
    inputs = inputs_at_split(features, clips, batch, permutations=[first], device=batch.observed.device)
    expected = features.tokens([first[clip_id] for clip_id in ids])
    found = inputs.shuffled[0][1]
    assert found is not None
    assert found.counts == expected.counts
    assert torch.equal(found.states, expected.states.float())


@pytest.mark.parametrize("kind", BY_PLACE)
@pytest.mark.parametrize("source", ["shuffled", "none", "oracle:moment"])
def test_controls_read_slots_of_their_own_kind(
    latent_cache: BuildCache, tmp_path: Path, kind: str, source: str
) -> None:
    cache = latent_cache(with_slots=True)
    table = tmp_path / "table.csv"
    rows = [f"{clip.clip_id},{clip.split_frame}" for clip in FeatureCache.open(cache).clips.all()]
    table.write_text("\n".join(["clip_id,moment", *rows]) + "\n")
    run(cache, tmp_path / "run", guidance_source=source, oracle_table=str(table), **BY_PLACE[kind])
    assert evaluate(tmp_path / "run")["latent"]["model"]["l2"] > 0


@pytest.mark.parametrize("kind", ["cross", "spatial"])
def test_swapped_contents_and_positions_of_two_slots_change_nothing(
    latent_cache: BuildCache, tmp_path: Path, kind: str
) -> None:
    """Contents alone, or positions alone, do: a model knows a slot by its position, not by its number.

    Attention is made sharp, as a few steps of training leave it almost even.
    """
    cache = latent_cache(with_slots=True)
    run(cache, tmp_path / "run", **BY_PLACE[kind])
    trained = TrainedRun.open(tmp_path / "run")
    features, ids, model = trained.features(cache), list(trained.clip_ids("test")), trained.model()
    for name, parameter in model.named_parameters():
        if "pyramid" in name and name.endswith(("query.weight", "key.weight")):
            parameter.data.mul_(20.0)
    batch = features.batch(ids, torch.device("cpu"))
    tokens = batch.tokens
    assert tokens is not None
    assert tokens.positions is not None
    order = [1, 0, *range(2, tokens.states.shape[2])]
    states, positions = tokens.states[:, :, order], tokens.positions[:, order]

    @torch.no_grad()
    def latents(changed: Any) -> torch.Tensor:
        found: torch.Tensor = model(batch.observed, batch.pooled, batch.poses, changed).latents
        return found

    before = latents(tokens)
    torch.testing.assert_close(latents(replace(tokens, states=states, positions=positions)), before)
    for changed in (replace(tokens, states=states), replace(tokens, positions=positions)):
        assert (latents(changed) - before).abs().max() > 1e-4
