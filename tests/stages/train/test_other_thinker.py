"""A run is what it reads: another prompt is nothing new to a variant without a thinker."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from latent_cache import TINY_JEPA

from thinkjepa.cache import ClipFeatures, FeatureCache, WriteSession, describe_set
from thinkjepa.stages.data.partition import SplitRule
from thinkjepa.stages.data.tracked_files import Selection, make_selection, selected_clip_ids, without_thinker
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.run import train

BuildCache = Callable[..., Path]
TINY = replace(TINY_JEPA, batch_size=8)


def ask_again(cache_dir: Path, prompt: str, *, failed: int = 0) -> str:
    """Add a thinker's set of another prompt, in which the last `failed` clips have no features; its name."""
    cache = FeatureCache.open(cache_dir)
    thinkers = [item for item in cache.feature_sets.values() if item.kind == "thinker"]
    first = next(item for item in thinkers if "prompt" not in item.origin)
    other = describe_set(
        "thinker",
        origin={**first.origin, "prompt": prompt},
        source=first.source,
        arrays=tuple(first.arrays.values()),
        shard_bytes=64,
        typical_clip_bytes=1,
    )
    ids = cache.select(first.name).clip_ids.to_pylist()
    states = [
        ClipFeatures(clip_id, {"pooled": cache.read(first.name, "pooled", [clip_id])[0] + 1})
        for clip_id in ids[: len(ids) - failed]
    ]
    with WriteSession(cache_dir) as session, session.writer(session.resolve(other)) as writer:
        assert not writer.append(states)
    return other.name


def selection(cache_dir: Path, thinker: str) -> Selection:
    cache = FeatureCache.open(cache_dir)
    ids = cache.clips.all().clip_ids.to_pylist()
    encoder = cache.choose_set("encoder").name
    return make_selection(cache_dir, thinker_set=thinker, encoder_set=encoder, clip_ids=ids)


def run(cache_dir: Path, out: Path, thinker: str | None, **choices: Any) -> tuple[dict[str, Any], list[int]]:
    """Metrics, and the steps that were trained for them."""
    steps: list[int] = []

    def note(*, epoch: int, step: int, total_steps: int, loss: float) -> None:
        steps.append(step)

    metrics = train(
        cache_dir,
        out,
        replace(TINY, **choices.pop("settings", {})),
        thinker_set=thinker,
        encoder_set=None,
        split=SplitRule(),
        progress=note,
        **choices,
    )
    return metrics, steps


def test_another_prompt_does_not_train_jepa_again(latent_cache: BuildCache, tmp_path: Path) -> None:
    cache, out = latent_cache(), tmp_path / "run"
    metrics, steps = run(cache, out, None)
    assert steps
    assert json.loads((out / "run.json").read_text())["feature_sets"]["thinker"] is None
    other = ask_again(cache, "What happens next?")
    for thinker in (None, other):
        assert run(cache, out, thinker) == (metrics, [])
    chosen = without_thinker(cache, selection(cache, other))
    assert run(cache, out, None, selection=chosen) == (metrics, [])


def test_another_prompt_is_another_run_of_a_guided_variant(latent_cache: BuildCache, tmp_path: Path) -> None:
    cache, guided = latent_cache(), {"variant": "thinkjepa"}
    run(cache, tmp_path / "run", None, settings=guided)
    other = ask_again(cache, "What happens next?")
    with pytest.raises(StageError, match="holds a finished run"):
        run(cache, tmp_path / "run", other, settings=guided)


def test_other_clips_are_another_run_of_jepa(latent_cache: BuildCache, tmp_path: Path) -> None:
    """A thinker that failed on some clips takes them from all variants, so that they can be compared."""
    cache = latent_cache()
    first = FeatureCache.open(cache).choose_set("thinker").name
    whole, _ = run(cache, tmp_path / "run", first)
    fewer = ask_again(cache, "What happens next?", failed=3)
    with pytest.raises(StageError, match="holds a finished run"):
        run(cache, tmp_path / "run", fewer)
    limited, _ = run(cache, tmp_path / "other", fewer)
    assert sum(whole["num_clips"].values()) - sum(limited["num_clips"].values()) == 3


def test_a_selection_without_thinker_follows_from_clips_and_encoder(latent_cache: BuildCache) -> None:
    cache = latent_cache()
    first = selection(cache, FeatureCache.open(cache).choose_set("thinker").name)
    other = selection(cache, ask_again(cache, "What happens next?"))
    fewer = selection(cache, ask_again(cache, "And then?", failed=1))
    assert first != other
    alone = without_thinker(cache, first)
    assert (alone.thinker, alone.encoder, alone.num_clips) == ("", first.encoder, first.num_clips)
    assert without_thinker(cache, other) == alone
    assert without_thinker(cache, fewer) != alone
    assert selected_clip_ids(cache, alone) == selected_clip_ids(cache, first)
