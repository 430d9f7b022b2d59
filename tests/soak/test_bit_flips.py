"""One flipped bit anywhere in a cache is found, and named by the clip or the file that it is in."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thinkjepa.cache import CacheError, FeatureCache, VideoLabels, WriteSession, verify
from thinkjepa.cache.disk.layout import journal_dir, shard_file
from thinkjepa.cache.disk.lines import read_lines
from thinkjepa.stages.data.partition import SplitRule, stored_partition
from thinkjepa.stages.data.tracked_files import make_selection
from thinkjepa.stages.train.run import train
from thinkjepa.stages.train.settings import TrainSettings

SHORT, LONG = 40, int(os.environ.get("THINKJEPA_SOAK_FLIPS", "200"))


@contextmanager
def flipped(path: Path, place: int, bit: int) -> Iterator[None]:
    """A file with one bit flipped, mended afterwards."""
    with path.open("r+b", buffering=0) as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << bit)]))
        try:
            yield
        finally:
            file.seek(place)
            file.write(bytes([byte]))


def named_by_verify(root: Path) -> tuple[set[str], str]:
    """Clips that `verify --full` names, and all that it says."""
    try:
        problems = verify(root, full=True, advance=lambda count: None)
    except CacheError as error:
        return set(), str(error)
    return {item.clip_id for item in problems} - {""}, "\n".join(item.reason for item in problems)


@pytest.fixture(scope="module")
def complete(uninterrupted: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with every kind of file: labels, a split and a selection beside what extraction writes."""
    root: Path = shutil.copytree(uninterrupted[0], tmp_path_factory.mktemp("complete") / "cache")
    cache = FeatureCache.open(root)
    thinker, encoder = (cache.choose_set(kind).name for kind in ("thinker", "encoder"))
    clips = cache.select(thinker, encoder)
    make_selection(root, thinker_set=thinker, encoder_set=encoder, clip_ids=clips.clip_ids.to_pylist())
    videos = set(zip(clips.values("video"), clips.values("video_digest"), strict=True))
    stored_partition(root, SplitRule(), videos)
    numbers = np.random.default_rng(0).random((20, 2, 3)).astype(np.float32)
    hands = VideoLabels(
        "test",
        "world",
        ("left", "right"),
        numbers,
        numbers[..., 0],
        video="0.mp4",
        video_digest=sorted(videos)[0][1],
        label_digest="a",
    )
    with WriteSession(root) as session:
        session.add_labels([hands])
    assert named_by_verify(root) == (set(), "")
    return root


def by_kind(root: Path) -> dict[str, list[Path]]:
    """Files that are not empty, by kind: shards by array, others by their pattern."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file() and path.stat().st_size):
        inside = path.relative_to(root).as_posix()
        kind = inside.split("/c/")[0] if "/c/" in inside else re.sub(r"[0-9a-f]{6,}", "*", inside)
        kinds.setdefault(kind, []).append(path)
    return kinds


def flip_and_verify(root: Path, *, flips: int, seed: int) -> None:
    chance = random.Random(seed)
    kinds = by_kind(root)
    assert len(kinds) >= 15
    for number in range(flips):
        kind = sorted(kinds)[number % len(kinds)]
        path = chance.choice(kinds[kind])
        place, bit = chance.randrange(path.stat().st_size), chance.randrange(8)
        with flipped(path, place, bit):
            clips, said = named_by_verify(root)
        inside = path.relative_to(root).as_posix()
        assert clips if "/c/" in inside else inside in said, f"bit {bit} of byte {place} of {inside}: {said}"
    assert named_by_verify(root) == (set(), "")


def test_verify_names_the_clip_or_file_of_any_flipped_bit(complete: Path) -> None:
    flip_and_verify(complete, flips=SHORT, seed=0)


@pytest.mark.soak
def test_verify_names_the_clip_or_file_of_two_hundred_flipped_bits(complete: Path) -> None:
    flip_and_verify(complete, flips=LONG, seed=1)


def test_verify_names_what_is_flipped_in_an_unfinished_shard(
    extractor: Any, uninterrupted: Any, tmp_path: Path
) -> None:
    calls = uninterrupted[1].calls
    root, thinker = tmp_path / "cache", FeatureCache.open(uninterrupted[0]).choose_set("thinker")
    for at in range(calls // 2, calls):
        assert extractor.run(root, die_at_call=at).status == -9
        open_shards = sorted(journal_dir(root, thinker.name).glob("*.jsonl"))
        lines = read_lines(open_shards[0]) if open_shards else []
        if len(lines) > 1:
            break
        shutil.rmtree(root)
    assert named_by_verify(root) == (set(), "")
    shard = shard_file(root, thinker.name, thinker.arrays["pooled"], lines[0]["shard"])
    partial = next(path for path in (shard, shard.with_name(shard.name + ".partial")) if path.exists())
    with flipped(partial, lines[1]["chunks"]["pooled"][0][1] + 5, 3):
        assert named_by_verify(root)[0] == {lines[1]["rows"][0]["clip_id"]}
    journal = open_shards[0]
    for place in (0, 20, journal.stat().st_size - 1):
        with flipped(journal, place, 1):
            assert f"journal/{journal.name}" in named_by_verify(root)[1]


@pytest.mark.parametrize("array", ["observed", "future", "pooled"])
def test_a_training_that_touches_a_flipped_bit_stops_with_the_clips_name(
    complete: Path, tmp_path: Path, array: str
) -> None:
    cache = FeatureCache.open(complete)
    item = cache.choose_set("thinker" if array == "pooled" else "encoder")
    spec = item.arrays[array]
    clip_id = clip_of_a_training(complete)
    row = cache.index(item.name).locate(clip_id)
    assert row is not None
    shard, slot = divmod(row, item.rows_per_shard)
    path = shard_file(complete, item.name, spec, shard)
    with flipped(path, slot * (spec.chunk_bytes + 4) + 100, 2):  # one chunk a clip, its crc32c behind it
        assert named_by_verify(complete)[0] == {clip_id}
        with pytest.raises(CacheError, match=f"clip '{clip_id}', array {array}"):
            run_training(complete, tmp_path / "run")


def test_a_training_never_uses_a_split_that_was_changed(complete: Path, tmp_path: Path) -> None:
    path = next((complete / "splits").glob("*.json"))
    with flipped(path, path.read_text().index('"train"') + 1, 0):
        with pytest.raises(CacheError, match=r"splits/.* is damaged or was changed from outside"):
            run_training(complete, tmp_path / "run")


def clip_of_a_training(root: Path) -> str:
    """A clip of a video that the stored split gives to training."""
    sides = json.loads(next((root / "splits").glob("*.json")).read_text())["videos"]
    clips = FeatureCache.open(root).clips.all()
    return next(clip.clip_id for clip in clips if sides[clip.video_digest] == "train")


def run_training(cache: Path, out: Path) -> None:
    """One epoch of a tiny model that reads all three arrays."""
    settings = TrainSettings(variant="thinkjepa", task="latent", epochs=1, depth=1, width=24, heads=1)
    train(cache, out, settings)
