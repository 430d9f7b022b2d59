"""docs/cache-format.md is enough to write a reader: one that was written from it reads what ours reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from thinkjepa.cache import (
    ArraySpec,
    ClipFeatures,
    ClipRow,
    Codec,
    Failure,
    FeatureCache,
    FeatureSet,
    WriteSession,
    describe_set,
)
from thinkjepa.cache.tables import index as index_module

from . import independent_reader as stranger

CLIPS = [f"{number:016x}@4" for number in range(9)]
LENGTHS = (1, 63, 64, 65, 200, 256)
BROKEN = CLIPS[7]


@pytest.fixture(
    params=[
        ("float16", "none", ()),
        ("bfloat16", "none", ("tokens",)),
        ("bfloat16", "zstd", ()),
        ("float32", "blosc", ("tokens",)),
    ],
    ids=lambda value: "-".join(map(str, value[:2])) + "-fp8" * len(value[2]),
)
def feature_sets(
    request: pytest.FixtureRequest,
    thinker_set: Callable[..., FeatureSet],
    encoder_set: Callable[..., FeatureSet],
) -> tuple[FeatureSet, FeatureSet]:
    dtype, codec, fp8 = request.param
    return (_with(thinker_set(dtype=dtype), codec, fp8), _with(encoder_set(dtype=dtype), codec, ()))


def _with(item: FeatureSet, codec: Codec, fp8: tuple[str, ...]) -> FeatureSet:
    arrays: tuple[ArraySpec, ...] = tuple(item.arrays.values())
    return describe_set(
        item.kind,
        origin=item.origin,
        source={},
        arrays=arrays,
        shard_bytes=2,
        typical_clip_bytes=1,
        codec=codec,
        fp8_arrays=fp8,
    )


@pytest.fixture
def root(
    tmp_path: Path,
    feature_sets: tuple[FeatureSet, FeatureSet],
    make_clip: Callable[..., ClipRow],
    make_features: Callable[..., ClipFeatures],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """Two sets in several shards, some index files joined, a failed clip, a renamed video."""
    monkeypatch.setattr(index_module, "JOIN", 2)
    with WriteSession(tmp_path / "c") as session:
        session.add_clips([make_clip(clip_id) for clip_id in CLIPS])
        session.add_clips([make_clip(CLIPS[3], video="renamed/ü.mp4")])
        for wanted in feature_sets:
            item = session.resolve(wanted)
            with session.writer(item) as writer:
                for number, clip_id in enumerate(CLIPS):
                    if clip_id == BROKEN:
                        writer.append([], [Failure("a/1.mp4", item.kind, "broken", clip_id=clip_id)])
                        continue
                    features = make_features(item, clip_id, num_tokens=LENGTHS[number % len(LENGTHS)])
                    given = {name: features.arrays[name] for name in item.given_arrays}
                    writer.append([ClipFeatures(clip_id, given, token_count=features.token_count)])
    return tmp_path / "c"


def test_the_independent_reader_reads_the_same(root: Path) -> None:
    cache = FeatureCache.open(root)
    assert [item["name"] for item in stranger.catalog(root)] == sorted(cache.feature_sets)
    for item in stranger.catalog(root):
        rows = stranger.index(root, item["name"])
        assert sorted(rows) == sorted(set(CLIPS) - {BROKEN})
        for clip_id, row in rows.items():
            assert row["shard"] == row["row"] // item["rows_per_shard"]
            assert stranger.checksum(root, item, row) == row["checksum"]
            for array in cache.feature_sets[item["name"]].given_arrays:
                ours = cache.read(item["name"], array, [clip_id])[0]
                wanted = ours.numpy() if array == "token_kind" else ours.float().numpy()
                found = stranger.values(root, item, array, row["row"])
                assert np.array_equal(found, wanted), (clip_id, array)


def test_the_independent_reader_knows_the_clips_and_the_small_files(root: Path) -> None:
    rows = stranger.clips(root)
    assert {key[0] for key in rows} == set(CLIPS)
    assert [row["video"] for row in rows.values() if row["clip_id"] == CLIPS[3]] == ["renamed/ü.mp4"]
    assert stranger.ledger_faults(root) == []
    path = next((root / "clips").iterdir())
    path.write_bytes(path.read_bytes() + b" ")
    assert stranger.ledger_faults(root) == [path.relative_to(root).as_posix()]
