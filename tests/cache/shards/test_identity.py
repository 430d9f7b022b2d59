"""A shard tells what it is of: one in the place of another is refused, and named by a quick check."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from thinkjepa.cache import CacheError, ClipFeatures, Codec, FeatureCache, FeatureSet, WriteSession, verify
from thinkjepa.cache.disk.layout import journal_file, shard_file
from thinkjepa.cache.shards.identity import MARK, ShardIdentity, read_identity

CLIPS = [f"v@{number}" for number in range(6)]
ROWS = 2


def write(root: Path, item: FeatureSet, features: list[ClipFeatures]) -> None:
    with WriteSession(root) as session, session.writer(session.resolve(item)) as writer:
        assert writer.append(features) == []


def faults(root: Path, clip_id: str = "") -> list[str]:
    """Faults that a quick check finds; the clips' own rows are not written here."""
    problems = verify(root, full=False, advance=lambda count: None)
    found = [item for item in problems if "no row under clips" not in item.reason]
    return [item.reason for item in found if clip_id in (item.clip_id, "")]


@pytest.fixture(params=["none", "zstd"])
def feature_set(request: pytest.FixtureRequest, encoder_set: Callable[..., FeatureSet]) -> FeatureSet:
    codec: Codec = request.param
    return encoder_set(rows=ROWS, codec=codec)


@pytest.fixture
def root(tmp_path: Path, feature_set: FeatureSet, make_features: Callable[..., ClipFeatures]) -> Path:
    """Six clips in three shards."""
    write(tmp_path / "c", feature_set, [make_features(feature_set, clip_id) for clip_id in CLIPS])
    return tmp_path / "c"


def path_of(root: Path, item: FeatureSet, shard: int, array: str = "observed") -> Path:
    return shard_file(root, item.name, item.arrays[array], shard)


def refused(root: Path, item: FeatureSet, clip_id: str) -> str:
    with pytest.raises(CacheError) as caught:
        FeatureCache.open(root).read(item.name, "observed", [clip_id])
    (reason,) = faults(root, clip_id)
    assert reason in str(caught.value), "a quick check names the same fault"
    return str(caught.value)


def test_the_shard_of_another_number_is_refused(root: Path, feature_set: FeatureSet) -> None:
    shutil.copyfile(path_of(root, feature_set, 0), path_of(root, feature_set, 1))
    assert "is of another place: shard 0 of array 'observed'" in refused(root, feature_set, CLIPS[2])


def test_the_shard_of_another_set_is_refused(
    root: Path,
    tmp_path: Path,
    feature_set: FeatureSet,
    encoder_set: Callable[..., FeatureSet],
    make_features: Callable[..., ClipFeatures],
) -> None:
    other = encoder_set(rows=ROWS, dtype="float16", codec=feature_set.arrays["observed"].codec)
    write(tmp_path / "o", other, [make_features(other, clip_id) for clip_id in CLIPS])
    shutil.copyfile(path_of(tmp_path / "o", other, 1), path_of(root, feature_set, 1))
    assert f"set {other.fingerprint[:12]}" in refused(root, feature_set, CLIPS[2])


def test_the_shard_of_other_clips_is_refused(
    root: Path, tmp_path: Path, feature_set: FeatureSet, make_features: Callable[..., ClipFeatures]
) -> None:
    """The same set and number, filled in another order, as after a removal and a new extraction."""
    backwards = [make_features(feature_set, clip_id) for clip_id in reversed(CLIPS)]
    write(tmp_path / "o", feature_set, backwards)
    before = FeatureCache.open(root)
    shutil.copyfile(path_of(tmp_path / "o", feature_set, 1), path_of(root, feature_set, 1))
    assert f"has clip {CLIPS[3]!r} in its place" in refused(root, feature_set, CLIPS[2])
    with pytest.raises(CacheError, match="was changed from outside or since it was opened"):
        before.read(feature_set.name, "observed", [CLIPS[3]])


def test_shards_of_earlier_versions_have_no_identity_and_are_read(
    root: Path, feature_set: FeatureSet, make_features: Callable[..., ClipFeatures]
) -> None:
    path = path_of(root, feature_set, 1)
    whole = path.read_bytes()
    identity = ShardIdentity.of(feature_set, "observed", 1, clips=CLIPS[2:4]).encoded()
    assert whole.count(identity) == 1
    path.write_bytes(whole.replace(identity, b""))
    found = FeatureCache.open(root).read(feature_set.name, "observed", CLIPS)
    wanted = [make_features(feature_set, clip_id).arrays["observed"] for clip_id in CLIPS]
    assert torch.equal(found, torch.stack(wanted))
    assert faults(root) == []


def test_a_shard_is_begun_only_where_no_file_of_it_is(
    root: Path, feature_set: FeatureSet, make_features: Callable[..., ClipFeatures]
) -> None:
    """A run is killed after a batch of the fourth shard, where a sealed file of the first one has come."""
    stale = path_of(root, feature_set, 3)
    stale.parent.mkdir(parents=True)
    shutil.copyfile(path_of(root, feature_set, 0), stale)
    with pytest.raises(RuntimeError, match="stopped"), WriteSession(root) as session:
        with session.writer(feature_set) as writer:
            writer.append([make_features(feature_set, "w@0")])
            assert not stale.exists()
            raise RuntimeError("stopped")
    shutil.copyfile(path_of(root, feature_set, 0), stale)  # after the first line: not this shard's either
    assert journal_file(root, feature_set.name, 3).exists()
    write(root, feature_set, [make_features(feature_set, "w@1")])
    found = FeatureCache.open(root).read(feature_set.name, "observed", ["w@0", "w@1"])
    wanted = [make_features(feature_set, clip_id).arrays["observed"] for clip_id in ("w@0", "w@1")]
    assert torch.equal(found, torch.stack(wanted))


def test_every_flipped_bit_of_an_identity_is_noticed(feature_set: FeatureSet) -> None:
    identity = ShardIdentity.of(feature_set, "observed", 3, clips=CLIPS)
    whole = b"payload" + identity.encoded()
    assert read_identity(np.frombuffer(whole, dtype=np.uint8)) == identity
    assert whole.endswith(MARK)
    for position in range(len(b"payload"), len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        with pytest.raises(CacheError, match="damaged"):
            read_identity(np.frombuffer(damaged, dtype=np.uint8))
    assert read_identity(np.frombuffer(b"payload", dtype=np.uint8)) is None
