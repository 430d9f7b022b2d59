"""Features return as they were written, through our reader and through zarr-python."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thinkjepa.cache import (
    CacheError,
    ClipFeatures,
    ClipRow,
    FeatureCache,
    FeatureSet,
    WriteSession,
    done_clip_ids,
)
from thinkjepa.cache.disk.layout import shard_file

Build = Callable[..., FeatureSet]
Make = Callable[..., ClipFeatures]
TreeDigest = Callable[[Path], dict[str, str]]


def write(root: Path, feature_set: FeatureSet, batches: list[list[ClipFeatures]]) -> None:
    with WriteSession(root) as session, session.writer(session.resolve(feature_set)) as writer:
        for batch in batches:
            writer.append(batch)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_reader_and_zarr_return_the_written_bits(
    tmp_path: Path, thinker_set: Build, make_features: Make, dtype: str
) -> None:
    feature_set = thinker_set(dtype=dtype)
    features = [make_features(feature_set, f"v@{n}", num_tokens=n) for n in (1, 63, 64, 65, 200, 256)]
    write(tmp_path / "c", feature_set, [features[:2], features[2:]])

    cache = FeatureCache.open(tmp_path / "c")
    group = zarr.open_group(tmp_path / "c" / "features.zarr", mode="r")[feature_set.name]
    for item in features:
        row = cache.index(feature_set.name)[item.clip_id]
        for name, values in item.arrays.items():
            read = cache.read(feature_set.name, name, [item.clip_id])[0]
            plain = torch.from_numpy(np.ascontiguousarray(group[name][row.row])).view(read.dtype)
            assert bits(read) == bits(plain)
            if "token" in feature_set.arrays[name].dims:
                axis = feature_set.arrays[name].dims.index("token")
                assert bits(read.narrow(axis, 0, item.token_count)) == bits(values)
                assert not read.narrow(axis, item.token_count, 256 - item.token_count).any()
            else:
                assert bits(read) == bits(values)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 256), min_size=1, max_size=12),
    batch=st.integers(1, 5),
    rows=st.integers(1, 5),
    order=st.randoms(use_true_random=False),
)
def test_any_lengths_batches_and_shard_sizes_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    thinker_set: Build,
    make_features: Make,
    lengths: list[int],
    batch: int,
    rows: int,
    order: st.DataObject,
) -> None:
    root = tmp_path_factory.mktemp("cache")
    feature_set = thinker_set(rows=rows)
    features = [make_features(feature_set, f"v@{i}", num_tokens=n) for i, n in enumerate(lengths)]
    write(root / "c", feature_set, [features[i : i + batch] for i in range(0, len(features), batch)])
    order.shuffle(features)
    read = FeatureCache.open(root / "c").read(feature_set.name, "tokens", [item.clip_id for item in features])
    for position, item in enumerate(features):
        assert bits(read[position, :, : item.token_count]) == bits(item.arrays["tokens"])


def test_reading_into_a_given_tensor_fills_it(
    tmp_path: Path, encoder_set: Build, make_features: Make
) -> None:
    feature_set = encoder_set(dtype="bfloat16")
    features = [make_features(feature_set, f"v@{n}") for n in range(3)]
    write(tmp_path / "c", feature_set, [features])
    out = torch.full((2, 2, 4, 8), 7.0, dtype=torch.bfloat16)
    FeatureCache.open(tmp_path / "c").read(feature_set.name, "observed", ["v@2", "v@0"], out=out)
    assert torch.equal(out, torch.stack([features[2].arrays["observed"], features[0].arrays["observed"]]))


@pytest.mark.parametrize("stop_after", [0, 1, 2, 3])
def test_interrupted_run_continues_to_the_same_bytes(
    tmp_path: Path, thinker_set: Build, make_features: Make, tree_digest: TreeDigest, stop_after: int
) -> None:
    feature_set = thinker_set(rows=3)
    features = [make_features(feature_set, f"v@{i}", num_tokens=20 + i) for i in range(8)]
    batches = [features[i : i + 2] for i in range(0, 8, 2)]
    write(tmp_path / "whole", feature_set, batches)

    with pytest.raises(RuntimeError), WriteSession(tmp_path / "cut") as session:
        with session.writer(session.resolve(feature_set)) as writer:
            for batch in batches[:stop_after]:
                writer.append(batch)
            raise RuntimeError("interrupted")
    with WriteSession(tmp_path / "cut") as session, session.writer(session.resolve(feature_set)) as writer:
        done = done_clip_ids(writer)
        assert done == {item.clip_id for batch in batches[:stop_after] for item in batch}
        for batch in batches[stop_after:]:
            writer.append(batch)
    assert tree_digest(tmp_path / "cut") == tree_digest(tmp_path / "whole")


def test_torn_bytes_behind_the_last_commit_are_cut_off(
    tmp_path: Path, thinker_set: Build, make_features: Make, tree_digest: TreeDigest
) -> None:
    feature_set = thinker_set(rows=8)
    features = [make_features(feature_set, f"v@{i}") for i in range(4)]
    write(tmp_path / "whole", feature_set, [features[:2], features[2:]])
    with pytest.raises(RuntimeError), WriteSession(tmp_path / "cut") as session:
        with session.writer(session.resolve(feature_set)) as writer:
            writer.append(features[:2])
            raise RuntimeError("killed")
    for partial in (tmp_path / "cut").rglob("*.partial"):
        partial.write_bytes(partial.read_bytes() + b"torn payload")
    journal = tmp_path / "cut" / feature_set.name / "journal" / "000000.jsonl"
    journal.write_bytes(journal.read_bytes() + b'01234567 {"rows": [')
    write(tmp_path / "cut", feature_set, [features[2:]])
    assert tree_digest(tmp_path / "cut") == tree_digest(tmp_path / "whole")


def test_clips_of_an_open_shard_are_invisible(
    tmp_path: Path, thinker_set: Build, make_features: Make
) -> None:
    feature_set = thinker_set()
    with WriteSession(tmp_path / "c") as session, session.writer(session.resolve(feature_set)) as writer:
        writer.append([make_features(feature_set, "v@1")])
        assert FeatureCache.open(tmp_path / "c").index(feature_set.name).failed == {}
    assert set(FeatureCache.open(tmp_path / "c").index(feature_set.name)) == {"v@1"}


@pytest.mark.parametrize(
    ("dtype", "value"), [("float32", float("nan")), ("float16", float("inf")), ("bfloat16", float("-inf"))]
)
def test_values_that_are_not_finite_are_refused_with_their_layer(
    tmp_path: Path, thinker_set: Build, make_features: Make, dtype: str, value: float
) -> None:
    feature_set = thinker_set(dtype=dtype, layers=(1, 5, 9))
    good, bad = make_features(feature_set, "v@1"), make_features(feature_set, "v@2")
    bad.arrays["tokens"][1, 3, 2] = value
    with WriteSession(tmp_path / "c") as session, session.writer(session.resolve(feature_set)) as writer:
        refused = writer.append([bad, good])
    assert [failure.clip_id for failure in refused] == ["v@2"]
    assert "tokens, layer 5: 1 values of (70, 8) are inf or NaN" in refused[0].reason
    index = FeatureCache.open(tmp_path / "c").index(feature_set.name)
    assert (index["v@1"].status, index["v@2"].status) == ("ok", "failed")


def test_more_tokens_than_the_capacity_are_refused(
    tmp_path: Path, thinker_set: Build, make_features: Make
) -> None:
    feature_set = thinker_set()
    with WriteSession(tmp_path / "c") as session, session.writer(session.resolve(feature_set)) as writer:
        refused = writer.append([make_features(feature_set, "v@1", num_tokens=257)])
    assert "257 tokens" in refused[0].reason


def test_every_flipped_bit_of_a_payload_is_noticed_and_named(
    tmp_path: Path, encoder_set: Build, make_features: Make
) -> None:
    feature_set = encoder_set()
    write(tmp_path / "c", feature_set, [[make_features(feature_set, "v@1")]])
    path = shard_file(tmp_path / "c", feature_set.name, feature_set.arrays["observed"], 0)
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with pytest.raises(CacheError, match=r"v@1|damaged|outside"):
            FeatureCache.open(tmp_path / "c").read(feature_set.name, "observed", ["v@1"])


def test_missing_and_truncated_shards_are_errors_not_zeros(
    tmp_path: Path, encoder_set: Build, make_features: Make
) -> None:
    feature_set = encoder_set()
    write(tmp_path / "c", feature_set, [[make_features(feature_set, "v@1")]])
    path = shard_file(tmp_path / "c", feature_set.name, feature_set.arrays["future"], 0)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CacheError, match="damaged or truncated"):
        FeatureCache.open(tmp_path / "c").read(feature_set.name, "future", ["v@1"])
    path.unlink()
    with pytest.raises(CacheError, match="missing"):
        FeatureCache.open(tmp_path / "c").read(feature_set.name, "future", ["v@1"])


def test_selection_pairs_sets_only_over_the_same_frames(
    tmp_path: Path,
    thinker_set: Build,
    encoder_set: Build,
    make_features: Make,
    make_clip: Callable[..., ClipRow],
) -> None:
    thinker, encoder = thinker_set(), encoder_set()
    with WriteSession(tmp_path / "c") as session:
        session.add_clips([make_clip("a@4"), make_clip("b@4"), make_clip("c@4", thinker="other")])
        with session.writer(session.resolve(thinker)) as writer:
            writer.append([make_features(thinker, name) for name in ("a@4", "c@4")])
        with session.writer(session.resolve(encoder)) as writer:
            writer.append([make_features(encoder, name) for name in ("a@4", "b@4", "c@4")])
    cache = FeatureCache.open(tmp_path / "c")
    assert [clip.clip_id for clip in cache.select(thinker.name, encoder.name)] == ["a@4"]
    assert [clip.clip_id for clip in cache.select(encoder.name)] == ["a@4", "b@4", "c@4"]
    assert cache.select(encoder.name)[0] == make_clip("a@4")


def test_a_renamed_video_keeps_its_clips_under_the_new_name(
    tmp_path: Path, make_clip: Callable[..., ClipRow]
) -> None:
    for video in ("a/1.mp4", "b/2.mp4"):
        with WriteSession(tmp_path / "c") as session:
            session.add_clips([make_clip("a@4", video=video)])
            session.add_clips([make_clip("a@4", video=video)])
    assert [clip.video for clip in FeatureCache.open(tmp_path / "c").clips.all()] == ["b/2.mp4"]
    assert len(list((tmp_path / "c" / "clips").iterdir())) == 2


def test_a_subset_of_layers_resolves_to_the_set_that_holds_them(tmp_path: Path, thinker_set: Build) -> None:
    with WriteSession(tmp_path / "c") as session:
        wide = session.resolve(thinker_set(layers=(1, 5, 9)))
        assert session.resolve(thinker_set(layers=(5, 9))) == wide
        assert session.resolve(thinker_set(layers=(2, 9))).name != wide.name
        assert session.resolve(thinker_set(layers=(5, 9), prompt="other")).name != wide.name


def test_a_second_writer_learns_who_is_in_the_way(tmp_path: Path) -> None:
    with WriteSession(tmp_path / "c"), pytest.raises(CacheError, match="being written by process"):
        with WriteSession(tmp_path / "c"):
            pass


def test_foreign_folders_and_other_schemas_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("mine")
    with pytest.raises(CacheError, match="not empty and not a feature cache"):
        WriteSession(tmp_path)
    with pytest.raises(CacheError, match="not a feature cache"):
        FeatureCache.open(tmp_path)
    (tmp_path / "cache.json").write_text('{"schema": "thinkjepa.cache.v9", "feature_sets": []}')
    with pytest.raises(CacheError, match=r"schema 'thinkjepa\.cache\.v9', this version reads"):
        FeatureCache.open(tmp_path)
    (tmp_path / "cache.json").write_text("not json")
    with pytest.raises(CacheError, match="damaged"):
        FeatureCache.open(tmp_path)


def test_the_reader_travels_to_a_spawned_process(
    tmp_path: Path, encoder_set: Build, make_features: Make
) -> None:
    feature_set = encoder_set()
    write(tmp_path / "c", feature_set, [[make_features(feature_set, "v@1")]])
    cache = FeatureCache.open(tmp_path / "c")
    before = cache.read(feature_set.name, "observed", ["v@1"])
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        after = pool.submit(cache.read, feature_set.name, "observed", ["v@1"]).result(timeout=120)
    assert torch.equal(after, before)
