"""The union of caches reads as its sources do, survives kills, and refuses what contradicts itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from thinkjepa.cache import (
    CacheError,
    ClipFeatures,
    Failure,
    FeatureCache,
    FeatureSet,
    WriteSession,
    merge,
    verify,
)
from thinkjepa.cache.upkeep import merge as merging

Build = Callable[..., FeatureSet]
FIRST = [f"{video:016x}@4" for video in range(6)]
SECOND = [f"{video:016x}@4" for video in range(4, 10)]


@pytest.fixture
def fill(tmp_path: Path, make_features: Callable[..., ClipFeatures], make_clip: Callable[..., object]):  # type: ignore[no-untyped-def]
    """Write a cache of random features that depend on the clip's name only. `other` clips differ."""

    def build(name: str, sets: list[FeatureSet], clip_ids: list[str], *, other: tuple[str, ...] = ()) -> Path:
        with WriteSession(tmp_path / name) as session:
            session.add_clips([make_clip(clip_id) for clip_id in clip_ids])  # type: ignore[misc]
            for item in sets:
                features = [make_features(item, clip_id) for clip_id in clip_ids]
                for clip in features:
                    if clip.clip_id in other:
                        next(iter(clip.arrays.values())).add_(1)
                with session.writer(session.resolve(item)) as writer:
                    writer.append(features)
        return tmp_path / name

    return build


def assert_holds(out: Path, source: Path) -> None:
    """Every array of every clip of a source reads the same from the merged cache."""
    merged, cache = FeatureCache.open(out), FeatureCache.open(source)
    for feature_set in cache.feature_sets.values():
        ids = cache.index(feature_set.name).clip_ids.to_pylist()
        for array in feature_set.arrays:
            expected = cache.read(feature_set.name, array, ids)
            assert torch.equal(merged.read(feature_set.name, array, ids), expected)
        for clip_id in ids:
            row, stored = merged.index(feature_set.name)[clip_id], cache.index(feature_set.name)[clip_id]
            assert (row.checksum, row.token_ids, row.generated_text) == (
                stored.checksum,
                stored.token_ids,
                stored.generated_text,
            )


def faults(root: Path) -> list[str]:
    return [item.reason for item in verify(root, full=True, advance=lambda count: None)]


def test_the_union_holds_every_clip_of_both_once(
    tmp_path: Path,
    fill: Callable[..., Path],
    thinker_set: Build,
    encoder_set: Build,
) -> None:
    first = fill("first", [thinker_set(), encoder_set(rows=4)], FIRST)
    second = fill("second", [encoder_set(rows=3), thinker_set(prompt="q")], SECOND)
    report = merge([first, second], tmp_path / "out", advance=lambda count: None)
    assert (report.feature_sets, report.clips, report.copied, report.shared) == (3, 10, 6 + 10 + 6, 2)
    assert_holds(tmp_path / "out", first)
    assert_holds(tmp_path / "out", second)
    assert faults(tmp_path / "out") == []
    again = merge([first, second], tmp_path / "out", advance=lambda count: None)
    assert (again.clips, again.copied) == (10, 0)


def test_a_merge_that_was_killed_is_continued(
    tmp_path: Path, fill: Callable[..., Path], encoder_set: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = fill("first", [encoder_set()], FIRST), fill("second", [encoder_set()], SECOND)
    monkeypatch.setattr(merging, "HELD_BYTES", 1)
    seen = 0

    def stop_after(limit: int) -> Callable[[int], None]:
        def advance(count: int) -> None:
            nonlocal seen
            seen += count
            if seen == limit:
                raise KeyboardInterrupt

        return advance

    for limit in (3, 8):
        seen = 0
        with pytest.raises(KeyboardInterrupt):
            merge([first, second], tmp_path / "out", advance=stop_after(limit))
    report = merge([first, second], tmp_path / "out", advance=lambda count: None)
    assert 0 < report.copied < 10
    assert_holds(tmp_path / "out", first)
    assert_holds(tmp_path / "out", second)
    assert faults(tmp_path / "out") == []


def test_clips_that_differ_are_refused_by_name_and_nothing_is_written(
    tmp_path: Path, fill: Callable[..., Path], encoder_set: Build
) -> None:
    first = fill("first", [encoder_set()], FIRST)
    second = fill("second", [encoder_set()], SECOND, other=(SECOND[0],))
    with pytest.raises(CacheError, match=f"clip '{SECOND[0]}' has other features"):
        merge([first, second], tmp_path / "out", advance=lambda count: None)
    assert not (tmp_path / "out").exists()


def test_a_damaged_source_is_named_and_its_damage_not_copied(
    tmp_path: Path, fill: Callable[..., Path], encoder_set: Build
) -> None:
    first = fill("first", [encoder_set()], FIRST)
    shard = next(path for path in (first / "features.zarr").rglob("c/*") if path.name == "0")
    shard = next(path for path in shard.rglob("*") if path.is_file())
    raw = bytearray(shard.read_bytes())
    raw[40] ^= 8
    shard.write_bytes(raw)
    with pytest.raises(CacheError, match=r"clip '.*@4'"):
        merge([first], tmp_path / "out", advance=lambda count: None)
    assert faults(tmp_path / "out") == []


def test_failures_stay_unless_another_source_has_the_features(
    tmp_path: Path, fill: Callable[..., Path], encoder_set: Build, make_clip: Callable[..., object]
) -> None:
    first, second = fill("first", [encoder_set()], FIRST), fill("second", [encoder_set()], SECOND)
    lost = Failure("a/1.mp4", "encoder", "too dark", clip_id=SECOND[-1])
    bare = Failure("b.mp4", "open", "no video")
    with WriteSession(first) as session:
        with session.writer(next(iter(session.feature_sets.values()))) as writer:
            writer.append([], [lost, Failure("", "encoder", "never", clip_id="nowhere@4")])
        session.record_failures([lost, bare], videos={"a/1.mp4", "b.mp4"})
    merge([first, second], tmp_path / "out", advance=lambda count: None)
    cache = FeatureCache.open(tmp_path / "out")
    assert cache.failures == [bare]
    assert set(cache.index(next(iter(cache.feature_sets))).failed) == {"nowhere@4"}


def test_overlapping_and_foreign_targets_are_refused(
    tmp_path: Path, fill: Callable[..., Path], encoder_set: Build
) -> None:
    first, second = fill("first", [encoder_set()], FIRST), fill("second", [encoder_set()], SECOND)
    copy = shutil.copytree(second, tmp_path / "copy")
    for out, message in ((first, "overlap"), (first / "deep", "overlap"), (copy, "in none of the caches")):
        with pytest.raises(CacheError, match=message):
            merge([first], out, advance=lambda count: None)
    with pytest.raises(CacheError, match="named twice"):
        merge([first, first], tmp_path / "out", advance=lambda count: None)
