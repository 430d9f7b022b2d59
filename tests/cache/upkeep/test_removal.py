"""Removing sets and clips: what is named is gone, the rest is untouched, a kill leaves a whole cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from thinkjepa.cache import (
    CacheError,
    FeatureCache,
    Removal,
    WriteSession,
    plan_clip_removal,
    plan_set_removal,
    remove,
    verify,
)
from thinkjepa.cache.disk.checksums import remove_tree
from thinkjepa.cache.disk.layout import removal_file, shard_file, store_dir
from thinkjepa.cache.shards.assignment import is_unfinished
from thinkjepa.cache.tables.catalog import write_catalog
from thinkjepa.cache.upkeep import removal

Build = Callable[..., object]
CLIPS = [f"{video:016x}@{split}" for video in range(5) for split in (4, 9)]


@pytest.fixture
def filled(
    tmp_path: Path, thinker_set: Build, encoder_set: Build, make_features: Build, make_clip: Build
) -> Path:
    """Ten clips of five videos in two sets, four to a shard."""
    root = tmp_path / "cache"
    with WriteSession(root) as session:
        session.add_clips([make_clip(clip_id, video=f"v{clip_id[15]}.mp4") for clip_id in CLIPS])  # type: ignore[misc]
        for item in (thinker_set(), encoder_set()):
            with session.writer(session.resolve(item)) as writer:  # type: ignore[arg-type]
                writer.append([make_features(item, clip_id) for clip_id in CLIPS])  # type: ignore[misc]
    return root


def problems(root: Path) -> list[str]:
    return [item.reason for item in verify(root, full=True, advance=lambda count: None)]


def run(root: Path, planned: Removal) -> None:
    with WriteSession(root) as session:
        remove(session, planned, labels=False)


def test_a_removed_set_leaves_nothing_and_the_other_is_whole(filled: Path) -> None:
    before = FeatureCache.open(filled).read(name(filled, "encoder"), "observed", CLIPS)
    gone = name(filled, "thinker")
    run(filled, plan_set_removal(FeatureCache.open(filled), "thinker"))
    assert not (filled / gone).exists()
    assert not (store_dir(filled) / gone).exists()
    assert list(FeatureCache.open(filled).feature_sets) == [name(filled, "encoder")]
    assert torch.equal(FeatureCache.open(filled).read(name(filled, "encoder"), "observed", CLIPS), before)
    assert problems(filled) == []


def name(root: Path, kind: str) -> str:
    return next(item.name for item in FeatureCache.open(root).feature_sets.values() if item.kind == kind)


def test_removed_clips_are_gone_from_every_set_and_emptied_shards_free_their_space(filled: Path) -> None:
    planned = plan_clip_removal(FeatureCache.open(filled), CLIPS[:5])
    assert planned.num_shards == 5  # the first shard of each of the five arrays; the second keeps three clips
    assert planned.freed_bytes > 0
    assert planned.video_digests == tuple(f"{video:016x}".ljust(64, "0") for video in range(2))
    encoder = name(filled, "encoder")
    before = FeatureCache.open(filled).read(encoder, "observed", CLIPS[5:])
    run(filled, planned)
    cache = FeatureCache.open(filled)
    assert cache.select(*cache.feature_sets).clip_ids.to_pylist() == CLIPS[5:]
    assert cache.clips.all().by_clip_id().clip_ids.to_pylist() == CLIPS[5:]
    assert torch.equal(cache.read(encoder, "observed", CLIPS[5:]), before)
    observed = cache.feature_sets[encoder].arrays["observed"]
    assert not shard_file(filled, encoder, observed, 0).exists()
    assert shard_file(filled, encoder, observed, 1).exists()
    with pytest.raises(CacheError, match="has no features"):
        cache.read(encoder, "observed", CLIPS[:1])
    assert problems(filled) == []


def test_removed_clips_can_be_extracted_again(filled: Path, encoder_set: Build, make_features: Build) -> None:
    encoder = name(filled, "encoder")
    before = FeatureCache.open(filled).read(encoder, "observed", CLIPS)
    clips = list(FeatureCache.open(filled).clips.all())
    run(filled, plan_clip_removal(FeatureCache.open(filled), CLIPS))
    with WriteSession(filled) as session:
        session.add_clips(clips)
        with session.writer(session.feature_sets[encoder]) as writer:
            writer.append([make_features(encoder_set(), clip_id) for clip_id in CLIPS])  # type: ignore[misc]
    assert torch.equal(FeatureCache.open(filled).read(encoder, "observed", CLIPS), before)
    assert problems(filled) == []


@pytest.mark.parametrize("killed_in", ["clear_unknown", "_remove_clips", "_remove_empty_shards"])
@pytest.mark.parametrize("whole_set", [True, False])
def test_a_removal_that_is_cut_short_leaves_a_whole_cache_and_can_be_finished(
    filled: Path, monkeypatch: pytest.MonkeyPatch, killed_in: str, whole_set: bool
) -> None:
    cache = FeatureCache.open(filled)
    planned = plan_set_removal(cache, "thinker") if whole_set else plan_clip_removal(cache, CLIPS[:4])

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(removal, killed_in, killed)
        run(filled, planned)
    assert problems(filled) == []
    assert removal.planned_removal(filled) is not None
    again = FeatureCache.open(filled)
    asked = plan_set_removal(again, "thinker") if whole_set else plan_clip_removal(again, CLIPS[:4])
    assert asked.freed_bytes == planned.freed_bytes, "the same request finds the removal that was begun"
    rest = [clip_id for clip_id in CLIPS[:5] if clip_id in cache_ids(filled)][-1:]
    run(filled, plan_clip_removal(FeatureCache.open(filled), rest))
    assert problems(filled) == []
    assert removal.planned_removal(filled) is None
    left = {path.name for path in store_dir(filled).iterdir() if path.is_dir()}
    assert left == set(FeatureCache.open(filled).feature_sets)


def cache_ids(root: Path) -> set[str]:
    return set(FeatureCache.open(root).clips.all().clip_ids.to_pylist())


def test_what_an_interrupted_extraction_left_open_is_sealed_first(
    filled: Path, make_clip: Build, encoder_set: Build, make_features: Build
) -> None:
    encoder, late = name(filled, "encoder"), f"{9:016x}@4"
    with pytest.raises(RuntimeError, match="stopped"), WriteSession(filled) as session:
        session.add_clips([make_clip(late)])  # type: ignore[list-item]
        with session.writer(session.feature_sets[encoder]) as writer:
            writer.append([make_features(encoder_set(), late)])  # type: ignore[list-item]
            raise RuntimeError("stopped")
    assert is_unfinished(filled, encoder)
    run(filled, plan_clip_removal(FeatureCache.open(filled), CLIPS[:1]))
    assert FeatureCache.open(filled).index(encoder).locate(late) is not None
    assert problems(filled) == []


def test_an_unknown_clip_is_one_clear_error(filled: Path) -> None:
    with pytest.raises(CacheError, match="holds no clip 'nobody@1'"):
        plan_clip_removal(FeatureCache.open(filled), ["nobody@1"])


def test_nothing_is_removed_while_another_process_writes(filled: Path) -> None:
    planned = plan_set_removal(FeatureCache.open(filled), "thinker")
    with WriteSession(filled), pytest.raises(CacheError, match="being written"):
        run(filled, planned)
    assert problems(filled) == []


@pytest.mark.parametrize("catalogued", [False, True])
def test_what_a_removal_left_is_never_taken_for_new_features(
    filled: Path, thinker_set: Build, make_features: Build, make_clip: Build, catalogued: bool
) -> None:
    """Earlier versions had no plan: a removal cut short left the shards of a set without its index."""
    thinker = name(filled, "thinker")
    remove_tree(filled, filled / thinker)
    with WriteSession(filled) as session:
        pass
    if not catalogued:
        write_catalog(filled, {key: item for key, item in session.feature_sets.items() if key != thinker})
    with pytest.raises(RuntimeError, match="stopped"), WriteSession(filled) as session:
        with session.writer(session.resolve(thinker_set())) as writer:  # type: ignore[arg-type]
            writer.append([make_features(thinker_set(), clip_id) for clip_id in CLIPS[4:6]])  # type: ignore[misc]
            raise RuntimeError("stopped")
    with WriteSession(filled) as session, session.writer(session.feature_sets[thinker]) as writer:
        writer.append([make_features(thinker_set(), clip_id) for clip_id in CLIPS[:4]])  # type: ignore[misc]
    assert problems(filled) == []
    found = FeatureCache.open(filled).read(thinker, "pooled", CLIPS[:6])
    wanted = [make_features(thinker_set(), clip_id).arrays["pooled"] for clip_id in CLIPS[:6]]  # type: ignore[attr-defined]
    assert torch.equal(found, torch.stack(wanted))


def test_a_damaged_plan_is_one_clear_error(filled: Path) -> None:
    removal.plan_removal(filled, plan_set_removal(FeatureCache.open(filled), "thinker"))
    path = removal_file(filled)
    path.write_bytes(path.read_bytes().replace(b"thinker", b"thonker"))
    with pytest.raises(CacheError, match=r"removal\.jsonl.*damaged.*remove it and repeat the rm"):
        WriteSession(filled).__enter__()
    path.unlink()
    assert problems(filled) == []
