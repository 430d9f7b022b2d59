"""The torch dataset of a cache: what its items hold, alone, in batches and in spawned workers."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from thinkjepa.cache import (
    CacheError,
    ClipFeatures,
    ClipRow,
    FeatureCache,
    FeatureDataset,
    FeatureSet,
    WriteSession,
)

CLIPS = {"a@4": 70, "b@4": 3, "c@4": 200, "d@4": 70}
"""Tokens by clip id. D has no encoder features."""


@pytest.fixture
def cache(
    tmp_path: Path,
    thinker_set: Callable[..., FeatureSet],
    encoder_set: Callable[..., FeatureSet],
    make_clip: Callable[..., ClipRow],
    make_features: Callable[..., ClipFeatures],
) -> FeatureCache:
    thinker, encoder = thinker_set(layers=(1, 5, 9)), encoder_set(dtype="bfloat16")
    with WriteSession(tmp_path / "c") as session:
        session.add_clips([make_clip(clip_id) for clip_id in CLIPS])
        with session.writer(session.resolve(thinker)) as writer:
            writer.append([make_features(thinker, name, num_tokens=count) for name, count in CLIPS.items()])
        with session.writer(session.resolve(encoder)) as writer:
            writer.append([make_features(encoder, name) for name in ("a@4", "b@4", "c@4")])
    return FeatureCache.open(str(tmp_path / "c"))


def stored(cache: FeatureCache, array: str, clip_id: str) -> torch.Tensor:
    kind = "encoder" if array in ("observed", "future") else "thinker"
    return cache.read(cache.choose_set(kind).name, array, [clip_id])[0]


def test_items_hold_what_is_stored(cache: FeatureCache) -> None:
    dataset = FeatureDataset(cache.path)
    assert dataset.clip_ids == ["a@4", "b@4", "c@4"]
    for index, clip_id in enumerate(dataset.clip_ids):
        item = dataset[index]
        assert list(item) == ["clip_id", "observed", "future", "pooled"]
        assert item["clip_id"] == clip_id
        assert all(torch.equal(item[name], stored(cache, name, clip_id)) for name in list(item)[1:])
    assert dataset[-1]["clip_id"] == "c@4"
    with pytest.raises(IndexError):
        dataset[3]


def test_spawned_workers_read_the_same_batches(cache: FeatureCache) -> None:
    dataset = FeatureDataset(cache, ("pooled", "tokens", "token_kind"))
    options = {"batch_size": 3, "num_workers": 2, "multiprocessing_context": "spawn"}
    first, last = DataLoader(dataset, **options)
    assert (first["clip_id"], last["clip_id"]) == (["a@4", "b@4", "c@4"], ["d@4"])
    assert first["token_count"].tolist() == [70, 3, 200]
    assert first["tokens"].shape[2] == 200
    assert last["tokens"].shape[2] == 70
    for position, clip_id in enumerate(first["clip_id"]):
        assert torch.equal(first["tokens"][position], stored(cache, "tokens", clip_id)[:, :200])
        assert torch.equal(first["pooled"][position], stored(cache, "pooled", clip_id))


def test_layers_and_windows_limit_what_is_read(cache: FeatureCache) -> None:
    item = FeatureDataset(cache, ("pooled", "future"), layers=(9, 1), windows=1)[0]
    assert torch.equal(item["pooled"], stored(cache, "pooled", "a@4")[[2, 0]])
    assert torch.equal(item["future"], stored(cache, "future", "a@4")[:1])
    with pytest.raises(CacheError, match="holds 2 future windows, not 3"):
        FeatureDataset(cache, windows=3)


def test_chosen_clips_keep_their_order(cache: FeatureCache) -> None:
    chosen = FeatureDataset(cache).only(["c@4", "a@4"])
    assert [chosen[index]["clip_id"] for index in range(len(chosen))] == ["c@4", "a@4"]
    assert {clip.clip_id for clip in chosen.clips} == {"a@4", "c@4"}
    with pytest.raises(CacheError, match="clip 'd@4' has no features in all of"):
        FeatureDataset(cache).only(["d@4"])


def test_nothing_that_was_opened_travels_to_workers(cache: FeatureCache) -> None:
    dataset = FeatureDataset(cache)
    size = len(ForkingPickler.dumps(dataset))
    assert dataset[0]["observed"].shape
    assert len(ForkingPickler.dumps(dataset)) == size


def test_unclear_choices_are_refused(
    cache: FeatureCache,
    thinker_set: Callable[..., FeatureSet],
    make_features: Callable[..., ClipFeatures],
) -> None:
    with pytest.raises(
        CacheError, match=r"no set of .* holds 'latents'; arrays are future, observed, pooled"
    ):
        FeatureDataset(cache, ("latents",))
    other = thinker_set(prompt="other")
    with WriteSession(cache.path) as session, session.writer(session.resolve(other)) as writer:
        writer.append([make_features(other, "a@4")])
    with pytest.raises(CacheError, match="2 thinker sets, choose one"):
        FeatureDataset(cache.path)
    name = cache.choose_set("thinker").name
    assert len(FeatureDataset(cache.path, sets=[name])) == 3
