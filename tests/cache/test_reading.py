"""Batches of several arrays: the right values, no more bytes than asked for, memory used again."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from thinkjepa.cache import BatchBuffers, CacheError, ClipFeatures, FeatureCache, FeatureSet, WriteSession

Build = Callable[..., FeatureSet]
Make = Callable[..., ClipFeatures]
LENGTHS = (70, 3, 130, 64)


@pytest.fixture
def two_sets(tmp_path: Path, thinker_set: Build, encoder_set: Build, make_features: Make):
    """A cache with four clips in a thinker's and an encoder's set, and what was written."""
    thinker, encoder = thinker_set(dtype="float16", layers=(1, 5, 9), rows=3), encoder_set(rows=2)
    written: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    with WriteSession(tmp_path / "c") as session:
        for feature_set in (thinker, encoder):
            batch = [make_features(feature_set, f"v@{n}", num_tokens=n) for n in LENGTHS]
            with session.writer(session.resolve(feature_set)) as writer:
                assert writer.append(batch) == []
            for name in feature_set.arrays:
                written[feature_set.name, name] = {item.clip_id: item.arrays[name] for item in batch}
    return FeatureCache.open(tmp_path / "c"), thinker, encoder, written


def test_a_batch_of_two_sets_holds_what_was_written(two_sets) -> None:
    cache, thinker, encoder, written = two_sets
    clip_ids = ["v@3", "v@130", "v@70"]
    keys = [(thinker.name, "tokens"), (thinker.name, "pooled"), (encoder.name, "future")]
    lengths = cache.index(thinker.name).count_tokens(clip_ids).tolist()
    assert lengths == [3, 130, 70]
    batch = {key: cache.read(*key, clip_ids, tokens=130) for key in keys}
    tokens = batch[keys[0]]
    assert tokens.shape == (3, 3, 130, 8)
    for position, (clip_id, length) in enumerate(zip(clip_ids, lengths, strict=True)):
        assert torch.equal(tokens[position, :, :length], written[keys[0]][clip_id])
        assert not tokens[position, :, length:].any()
        for key in keys[1:]:
            assert torch.equal(batch[key][position], written[key][clip_id])


def test_only_the_layers_asked_for_are_read_in_their_order(two_sets) -> None:
    cache, thinker, _, written = two_sets
    for key in [(thinker.name, "tokens"), (thinker.name, "pooled")]:
        batch = cache.read(*key, ["v@64", "v@70"], layers=(9, 1), tokens=70)
        for values, clip_id in zip(batch, ["v@64", "v@70"], strict=True):
            wanted = written[key][clip_id][[2, 0]]
            assert torch.equal(values[:, : wanted.shape[1]] if key[1] == "tokens" else values, wanted)
        whole = cache.read(*key, ["v@64", "v@70"], tokens=70)
        assert batch.nbytes * 3 == whole.nbytes * 2


def test_layers_not_asked_for_are_never_touched(two_sets) -> None:
    """Damage in layer 5 is an error for reads of layer 5 only."""
    cache, thinker, _, _ = two_sets
    shard, slot = cache.shard_of(thinker.name, "tokens", "v@70")
    offset = int(shard._index[slot * 12 + 4][0])  # layer position 1 of 4 chunks each, first chunk
    with shard.path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    again = FeatureCache.open(cache.path)
    again.read(thinker.name, "tokens", ["v@70"], layers=(1, 9))
    with pytest.raises(CacheError, match=r"clip 'v@70', array tokens: .* damaged"):
        again.read(thinker.name, "tokens", ["v@70"], layers=(5,))


def test_buffers_are_used_again_and_grow_with_the_longest_clip(two_sets) -> None:
    cache, thinker, encoder, written = two_sets
    key, buffers = (encoder.name, "observed"), BatchBuffers(pinned=False)
    first = cache.read(*key, ["v@3", "v@64"], out=buffers)
    second = cache.read(*key, ["v@130"], out=buffers)
    assert second.data_ptr() == first.data_ptr()
    assert torch.equal(second[0], written[key]["v@130"])
    tokens = (thinker.name, "tokens")
    for clip_id, length in (("v@3", 3), ("v@130", 130), ("v@3", 3)):
        values = cache.read(*tokens, [clip_id], tokens=length, out=buffers)[0]
        assert torch.equal(values, written[tokens][clip_id])


@pytest.mark.parametrize(
    ("clip_id", "array", "layers", "message"),
    [
        ("v@1", "tokens", None, "clip 'v@1' has no features"),
        ("v@3", "words", None, "holds no array 'words'; it holds: pooled, token_kind, tokens"),
        ("v@3", "tokens", (2,), r"holds no layer 2; it holds \(1, 5, 9\)"),
    ],
)
def test_what_a_set_does_not_hold_is_named(
    two_sets, clip_id: str, array: str, layers: Sequence[int] | None, message: str
) -> None:
    cache, thinker, _, _ = two_sets
    with pytest.raises(CacheError, match=message):
        cache.read(thinker.name, array, [clip_id], layers=layers)


class Clips(Dataset[torch.Tensor]):
    def __init__(self, cache: FeatureCache, key: tuple[str, str]) -> None:
        self.cache, self.key = cache, key

    def __len__(self) -> int:
        return len(LENGTHS)

    def __getitem__(self, position: int) -> torch.Tensor:
        return self.cache.read(*self.key, [f"v@{LENGTHS[position]}"])[0]


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_reading_in_the_parent_first_and_then_in_workers_gives_the_same(two_sets, method: str) -> None:
    cache, _, encoder, _ = two_sets
    clips = Clips(cache, (encoder.name, "future"))
    before = torch.stack([clips[position] for position in range(len(clips))])
    loader = DataLoader(
        clips, batch_size=2, num_workers=2, multiprocessing_context=multiprocessing.get_context(method)
    )
    assert torch.equal(torch.cat(list(loader)), before)
