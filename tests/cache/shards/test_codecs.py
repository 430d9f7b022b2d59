"""Compressed sets: the same values as mapped ones, through our reader and through zarr-python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from thinkjepa.cache import (
    ArraySpec,
    CacheError,
    ClipFeatures,
    FeatureCache,
    FeatureSet,
    WriteSession,
    describe_set,
)
from thinkjepa.cache.disk.layout import cache_json, shard_file
from thinkjepa.cache.records import Codec
from thinkjepa.cache.upkeep.verify import clip_fault

Build = Callable[..., FeatureSet]
Make = Callable[..., ClipFeatures]


def with_codec(feature_set: FeatureSet, codec: Codec) -> FeatureSet:
    arrays = {name: replace(spec, codec=codec) for name, spec in feature_set.arrays.items()}
    return replace(feature_set, arrays=arrays)


def write(root: Path, feature_set: FeatureSet, features: list[ClipFeatures]) -> FeatureCache:
    with WriteSession(root) as session, session.writer(session.resolve(feature_set)) as writer:
        assert writer.append(features) == []
    return FeatureCache.open(root)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("codec", ["zstd", "blosc"])
def test_compressed_sets_read_as_mapped_ones_and_as_zarr_reads_them(
    tmp_path: Path, thinker_set: Build, make_features: Make, codec: Codec, dtype: str
) -> None:
    plain = thinker_set(dtype=dtype, layers=(1, 5, 9), rows=3)
    features = [make_features(plain, f"v@{n}", num_tokens=n) for n in (70, 3, 256, 64)]
    mapped = write(tmp_path / "plain", plain, features)
    packed = write(tmp_path / codec, with_codec(plain, codec), features)
    clip_ids = [item.clip_id for item in reversed(features)]
    keys = [(plain.name, name) for name in plain.arrays]
    for layers in (None, (9, 1)):
        for key in keys:
            wanted = mapped.read(*key, clip_ids, layers=layers, tokens=256)
            assert torch.equal(packed.read(*key, clip_ids, layers=layers, tokens=256), wanted)
    indexes = [cache.index(plain.name) for cache in (mapped, packed)]
    assert indexes[0].count_tokens(clip_ids).tolist() == indexes[1].count_tokens(clip_ids).tolist()
    group = zarr.open_group(tmp_path / codec / "features.zarr", mode="r")[plain.name]
    rows = packed.index(plain.name).locate_all(clip_ids)
    for name, spec in plain.arrays.items():
        values = torch.from_numpy(np.asarray(group[name].oindex[rows])).view(spec.torch_dtype)
        assert torch.equal(values, packed.read(plain.name, name, clip_ids))
    stored = (clip_fault(packed, packed.find_set(plain.name), clip_id, full=True) for clip_id in clip_ids)
    assert set(stored) == {""}


def test_values_that_repeat_take_less_disk(tmp_path: Path, encoder_set: Build) -> None:
    sizes = {}
    for codec in ("none", "zstd", "blosc"):
        feature_set = with_codec(encoder_set(), codec)
        arrays = {name: torch.ones(spec.shape) for name, spec in feature_set.arrays.items()}
        write(tmp_path / codec, feature_set, [ClipFeatures("v@1", arrays)])
        path = shard_file(tmp_path / codec, feature_set.name, feature_set.arrays["observed"], 0)
        sizes[codec] = path.stat().st_size
    assert sizes["zstd"] < sizes["none"] - 150
    assert sizes["blosc"] < sizes["none"] - 150


def test_every_flipped_bit_of_a_compressed_payload_is_noticed(
    tmp_path: Path, encoder_set: Build, make_features: Make
) -> None:
    feature_set = with_codec(encoder_set(), "zstd")
    write(tmp_path / "c", feature_set, [make_features(feature_set, "v@1")])
    path = shard_file(tmp_path / "c", feature_set.name, feature_set.arrays["observed"], 0)
    whole = path.read_bytes()
    for position in range(0, len(whole), 11):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with pytest.raises(CacheError, match=r"clip 'v@1', array observed: .*damaged"):
            FeatureCache.open(tmp_path / "c").read(feature_set.name, "observed", ["v@1"])
    path.unlink()
    with pytest.raises(CacheError, match=r"clip 'v@1'.*missing"):
        FeatureCache.open(tmp_path / "c").read(feature_set.name, "observed", ["v@1"])


def test_the_first_writer_decides_the_codec_of_a_set(
    tmp_path: Path, encoder_set: Build, make_features: Make
) -> None:
    feature_set = encoder_set()
    write(tmp_path / "c", with_codec(feature_set, "zstd"), [make_features(feature_set, "v@1")])
    with WriteSession(tmp_path / "c") as session:
        assert session.resolve(feature_set).arrays["observed"].codec == "zstd"


def test_a_codec_changes_neither_the_name_of_a_set_nor_a_plain_catalog(tmp_path: Path) -> None:
    spec = ArraySpec("observed", ("time", "dim"), (2, 8), (2, 8), "float16")
    described = [
        describe_set(
            "encoder",
            origin={"a": 1},
            source={},
            arrays=(spec,),
            shard_bytes=1,
            typical_clip_bytes=1,
            codec=codec,
        )
        for codec in ("none", "zstd")
    ]
    assert described[0].name == described[1].name
    assert described[1].arrays["observed"].codec == "zstd"
    for feature_set in described:
        assert FeatureSet.from_json(feature_set.to_json()) == feature_set
    with WriteSession(tmp_path / "c") as session:
        session.resolve(described[0])
    assert "codec" not in cache_json(tmp_path / "c").read_text()
