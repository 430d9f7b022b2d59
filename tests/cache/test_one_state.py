"""A reader next to writers sees the cache of its opening: clips, rows, counts and failures."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from thinkjepa.cache import (
    CacheError,
    ClipFeatures,
    ClipRow,
    Failure,
    FeatureCache,
    FeatureSet,
    Problem,
    WriteSession,
    plan_clip_removal,
    plan_set_removal,
    remove,
    repair,
    verify,
)
from thinkjepa.cache.disk import kept
from thinkjepa.cache.tables import index as index_module

ROWS = 2
CLIPS = [f"{number:016x}@4" for number in range(6)]
LATER = f"{9:016x}@4"

Make = Callable[..., ClipFeatures]


@pytest.fixture
def feature_set(thinker_set: Callable[..., FeatureSet]) -> FeatureSet:
    return thinker_set(rows=ROWS)


@pytest.fixture
def root(
    tmp_path: Path, feature_set: FeatureSet, make_features: Make, make_clip: Callable[..., ClipRow]
) -> Path:
    """Six clips in three shards, each with a number of tokens of its own."""
    with WriteSession(tmp_path / "c") as session:
        session.add_clips([make_clip(clip_id) for clip_id in CLIPS])
        session.record_failures([Failure("x.mp4", "open", "no video")], videos=["x.mp4"])
        with session.writer(session.resolve(feature_set)) as writer:
            writer.append(features(feature_set, make_features))
    return tmp_path / "c"


def features(item: FeatureSet, make: Make) -> list[ClipFeatures]:
    return [make(item, clip_id, num_tokens=40 + number) for number, clip_id in enumerate(CLIPS)]


def shown(cache: FeatureCache, name: str) -> dict[str, object]:
    """All that a cache tells of its clips without reading features."""
    index = cache.index(name)
    return {
        "rows": list(cache.select(name)),
        "index": [index[clip_id] for clip_id in CLIPS],
        "counts": index.count_tokens(CLIPS).tolist(),
        "of one": [index.count_tokens([clip_id]).tolist() for clip_id in CLIPS],
        "by clip": index.tokens_by_clip(),
        "texts": index.values_of(CLIPS, "generated_text"),
        "failed": index.failed,
        "failures": cache.failures,
    }


@pytest.mark.parametrize("held_bytes", [kept.HELD_BYTES, 0], ids=["in memory", "by descriptor"])
def test_what_is_removed_and_added_after_the_opening_is_not_seen(
    root: Path,
    feature_set: FeatureSet,
    make_features: Make,
    make_clip: Callable[..., ClipRow],
    monkeypatch: pytest.MonkeyPatch,
    held_bytes: int,
) -> None:
    monkeypatch.setattr(kept, "HELD_BYTES", held_bytes)
    monkeypatch.setattr(index_module, "JOIN", 2)
    wanted = shown(FeatureCache.open(root), feature_set.name)
    unread, begun = FeatureCache.open(root), FeatureCache.open(root)
    assert begun.read(feature_set.name, "pooled", CLIPS).shape[0] == len(CLIPS)
    with WriteSession(root) as session:
        remove(session, plan_clip_removal(FeatureCache.open(root), [CLIPS[0], CLIPS[5]]), labels=True)
        session.add_clips([make_clip(LATER)])
        with session.writer(session.feature_sets[feature_set.name]) as writer:
            writer.append([make_features(feature_set, LATER)], [Failure("", "thinker", "no", clip_id="f@4")])
        session.record_failures([Failure("y.mp4", "open", "no video")], videos=["x.mp4", "y.mp4"])
    for cache in (unread, begun):
        assert shown(cache, feature_set.name) == wanted
        found = cache.read(feature_set.name, "pooled", CLIPS[1:5])
        expected = [item.arrays["pooled"] for item in features(feature_set, make_features)[1:5]]
        assert torch.equal(found, torch.stack(expected))
    opened_again = copy.deepcopy(begun)  # as a pickle does
    ids = opened_again.select(feature_set.name).clip_ids.to_pylist()
    assert ids == sorted([*CLIPS[1:5], LATER])
    with pytest.raises(CacheError, match=f"clip '{CLIPS[0]}' has no features"):
        opened_again.index(feature_set.name).count_tokens([CLIPS[1], CLIPS[0]])


def test_a_set_that_is_made_anew_under_a_reader_never_gives_another_clip(
    root: Path, feature_set: FeatureSet, make_features: Make
) -> None:
    """The set is removed, and extracted again in another order: row 0 is another clip's."""
    reader = FeatureCache.open(root)
    with WriteSession(root) as session:
        remove(session, plan_set_removal(FeatureCache.open(root), "thinker"), labels=False)
        with session.writer(session.resolve(feature_set)) as writer:
            writer.append(features(feature_set, make_features)[::-1])
    with pytest.raises(CacheError, match=f"has clip '{CLIPS[5]}' in its place.*run the command again"):
        reader.read(feature_set.name, "pooled", [CLIPS[0]])
    expected = [item.arrays["pooled"] for item in features(feature_set, make_features)]
    assert torch.equal(FeatureCache.open(root).read(feature_set.name, "pooled", CLIPS), torch.stack(expected))


def test_repair_keeps_what_was_made_anew_after_the_check(
    root: Path, feature_set: FeatureSet, make_features: Make, make_clip: Callable[..., ClipRow]
) -> None:
    """Two clips are damaged when a check looks; one of them is made anew before the repair has the lock."""
    name = feature_set.name
    for clip_id in (CLIPS[0], CLIPS[2]):
        shard, slot = FeatureCache.open(root).shard_of(name, "pooled", clip_id)
        with shard.path.open("r+b") as file:
            file.seek(int(shard._index[slot][0]) + 5)
            file.write(b"\xff\xff\xff")
    problems = verify(root, full=True, advance=lambda count: None)
    assert [item.clip_id for item in problems] == [CLIPS[0], CLIPS[2]]
    with WriteSession(root) as session:
        remove(session, plan_clip_removal(FeatureCache.open(root), [CLIPS[0]]), labels=False)
        session.add_clips([make_clip(CLIPS[0])])
        with session.writer(session.feature_sets[name]) as writer:
            writer.append([make_features(feature_set, CLIPS[0])])
    gone = Problem(name, LATER, "of a clip that is removed")
    with WriteSession(root):
        assert repair(root, [*problems, gone], full=True) == 1
    assert FeatureCache.open(root).index(name).locate(CLIPS[0]) is not None
    assert FeatureCache.open(root).index(name)[CLIPS[2]].stage == "verify"
