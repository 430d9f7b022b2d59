"""A run is bound to what it reads: sets with more windows or layers serve it, others do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from latent_cache import TINY_JEPA, encoder_set

from thinkjepa.cache import (
    ArraySpec,
    ClipFeatures,
    FeatureCache,
    FeatureSet,
    WriteSession,
    describe_set,
)
from thinkjepa.cache.upkeep.remove import plan_set_removal, remove
from thinkjepa.pipeline.report.evaluation import rollout_page
from thinkjepa.pipeline.report.rollouts import rollout_markdown
from thinkjepa.stages.data.partition import SplitRule
from thinkjepa.stages.data.plan import ClipSettings, with_windows
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.compared.comparison import compare
from thinkjepa.stages.evaluate.compared.rollouts import compare_rollouts
from thinkjepa.stages.evaluate.evaluation import evaluate
from thinkjepa.stages.evaluate.rollout import evaluate_rollout, roll_out
from thinkjepa.stages.evaluate.runs import TrainedRun, read_evaluations
from thinkjepa.stages.json_files import read_json
from thinkjepa.stages.train.data.feature_sets import serves, set_record
from thinkjepa.stages.train.data.features import choose_features
from thinkjepa.stages.train.run import train
from thinkjepa.stages.train.settings import TrainSettings

BuildCache = Callable[..., Path]


def train_on(cache: Path, out: Path, settings: TrainSettings = TINY_JEPA) -> Path:
    train(
        cache,
        out,
        settings,
        thinker_set=None,
        encoder_set=None,
        split=SplitRule(group_by="video"),
        progress=lambda **_: None,
    )
    return out


def test_the_advice_of_a_refused_rollout_works(latent_cache: BuildCache, tmp_path: Path) -> None:
    """Features with more windows are extracted into the cache, of the videos that are long enough."""
    cache = latent_cache()
    run = train_on(cache, tmp_path / "run")
    with pytest.raises(StageError, match="--future-windows 3"):
        evaluate_rollout(run, horizons=[2, 6])
    before = evaluate(run)
    latent_cache(windows=3, num_videos=6, kinds=("encoder",))
    found = roll_out(run, horizons=[2, 6])
    rolled, compared = found.result, compare_rollouts({"run": found})
    assert evaluate(run) == before
    ids = TrainedRun.open(run).clip_ids("test")
    held = TrainedRun.open(run).features(None, windows=3).clips.only(ids).clip_ids.to_pylist()
    assert rolled["num_clips"] == len(held)
    assert rolled["num_clips_left_out"] == len(ids) - len(held) > 0
    line = f"{len(ids) - len(held)} of {len(ids)} test clips left out"
    assert line in rollout_markdown(compared)
    assert line in rollout_page(compared, tmp_path / "rollout")


def test_a_run_finds_its_features_in_a_set_with_more_windows(
    latent_cache: BuildCache, tmp_path: Path
) -> None:
    few, many = latent_cache(), latent_cache(name="more", windows=3)
    run = train_on(few, tmp_path / "run")
    assert evaluate(run, cache_dir=many)["latent"] == evaluate(run, cache_dir=few)["latent"]


def test_seeds_on_sets_with_other_windows_are_one_group(latent_cache: BuildCache, tmp_path: Path) -> None:
    caches = [latent_cache(), latent_cache(name="more", windows=3)]
    runs = []
    for seed, cache in enumerate(caches):
        runs.append(train_on(cache, tmp_path / f"run-{seed}", replace(TINY_JEPA, seed=seed)))
        evaluate(runs[-1])
    records = [read_json(run / "run.json")["feature_sets"]["encoder"] for run in runs]
    assert records[0] == records[1]
    found = compare(read_evaluations(runs, "test"))
    assert [group["seeds"] for group in found["groups"]] == [[0, 1]]
    assert found["latents_compared"]


@pytest.mark.parametrize(("windows", "held"), [(1, 1), (2, 3)])
def test_training_takes_the_set_with_as_many_windows_as_it_reads(
    latent_cache: BuildCache, windows: int, held: int
) -> None:
    cache = latent_cache()
    latent_cache(windows=3, kinds=("encoder",))
    settings = replace(TINY_JEPA, rollout_windows=windows)
    features = choose_features(FeatureCache.open(cache), settings)
    assert features.encoder.arrays["future"].shape[0] == held
    with pytest.raises(StageError, match="--future-windows 4"):
        choose_features(FeatureCache.open(cache), replace(TINY_JEPA, rollout_windows=4))


def test_a_rollout_takes_no_set_that_an_extraction_left_empty(
    latent_cache: BuildCache, tmp_path: Path
) -> None:
    cache = latent_cache(windows=4)
    run = train_on(cache, tmp_path / "run")
    before = evaluate_rollout(run, horizons=[2, 6])
    with WriteSession(cache) as session:
        session.resolve(encoder_set(3, None))
    assert evaluate_rollout(run, horizons=[2, 6]) == before


def more_layers(cache: Path, layers: list[int]) -> FeatureSet:
    """Replace the thinker's set by one of these layers, among them its own with the same states."""
    opened = FeatureCache.open(cache)
    own = opened.choose_set("thinker")
    arrays = [replace_levels(spec, len(layers)) for spec in own.arrays.values()]
    other = describe_set(
        "thinker",
        origin={**own.origin, "layers": layers},
        source=own.source,
        arrays=tuple(arrays),
        shard_bytes=64,
        typical_clip_bytes=1,
    )
    ids = opened.select(own.name).clip_ids.to_pylist()
    features = []
    for clip_id in ids:
        (pooled,) = opened.read(own.name, "pooled", [clip_id])
        wide = torch.full((len(layers), *pooled.shape[1:]), 7.0)
        for position, layer in enumerate(own.layers):
            wide[layers.index(layer)] = pooled[position]
        features.append(ClipFeatures(clip_id, {"pooled": wide}))
    with WriteSession(cache) as session:
        remove(session, plan_set_removal(opened, own.name), labels=False)
        with session.writer(session.resolve(other)) as writer:
            assert not writer.append(features)
    return other


def replace_levels(spec: ArraySpec, levels: int) -> ArraySpec:
    return replace(spec, shape=(levels, *spec.shape[1:]), chunks=(1, *spec.chunks[1:]))


def test_a_run_reads_its_layers_of_a_set_with_more(latent_cache: BuildCache, tmp_path: Path) -> None:
    cache = latent_cache()
    run = train_on(cache, tmp_path / "run", replace(TINY_JEPA, variant="thinkjepa", gate_learning_rate=0.1))
    before = evaluate(run)
    wide = more_layers(cache, [0, 5, 1, 2])
    assert FeatureCache.open(cache).choose_set("thinker").name == wide.name
    assert evaluate(run)["latent"] == before["latent"]


def test_features_of_other_origin_do_not_serve(latent_cache: BuildCache) -> None:
    cache = FeatureCache.open(latent_cache(windows=3))
    encoder, thinker = cache.choose_set("encoder"), cache.choose_set("thinker")
    assert serves(encoder, set_record(encoder))
    assert serves(encoder, {"fingerprint": encoder.fingerprint})  # as earlier versions recorded it
    faster = with_windows({**encoder.origin["sampling"], "fps": 5.0}, 1)
    for origin in ({**encoder.origin, "tubelet": 1}, {**encoder.origin, "sampling": faster}):
        other = describe_set(
            "encoder",
            origin=origin,
            source=encoder.source,
            arrays=tuple(encoder.arrays.values()),
            shard_bytes=64,
            typical_clip_bytes=1,
        )
        assert not serves(encoder, set_record(other))
    assert not serves(thinker, {**set_record(thinker), "layers": [0, 9]})


def test_a_record_with_one_window_is_that_of_an_extraction_with_one() -> None:
    many, one = ClipSettings(future_windows=4, dense_fps=8.0), ClipSettings(dense_fps=8.0)
    assert with_windows(many.dense_sampling, 1) == one.dense_sampling
