"""An extraction that is killed anywhere, any number of times, ends with the same bytes as one that is not."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from thinkjepa.cache import FeatureCache, verify

SHORT, LONG = 20, int(os.environ.get("THINKJEPA_SOAK_KILLS", "100"))
BATCH = 2


def content(root: Path) -> dict[str, str]:
    """Digest of every file of a cache."""
    files = [
        path for path in root.rglob("*") if path.is_file() and path.name not in (".lock", ".holder.json")
    ]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def committed(root: Path) -> int:
    """Clips that readers see in every set."""
    cache = FeatureCache.open(root)
    return len(cache.select(*cache.feature_sets))


def killed_until_done(
    extractor: Any, cache: Path, whole: Any, *, clips: int, chance: random.Random
) -> Iterator[bool]:
    """Run and kill again until a run comes to its end; yields whether each run was killed."""
    left = clips
    while True:
        by_call = chance.random() < 0.5
        moment = {"die_at_call": chance.randint(1, whole.calls)} if by_call else {}
        ended = extractor.run(cache, **(moment or {"kill_after_s": chance.uniform(0.01, whole.seconds)}))
        assert ended.status in (0, -9)
        if ended.pending is not None:
            assert ended.pending <= left, "a batch that was reported as done was computed again"
            left = ended.pending - ended.advanced
        yield ended.status == -9
        if ended.status == 0:
            return


def kill_and_compare(extractor: Any, uninterrupted: Any, folder: Path, *, kills: int, seed: int) -> None:
    cache, whole = uninterrupted
    expected, clips = content(cache), committed(cache)
    assert whole.pending == clips == whole.advanced
    chance = random.Random(seed)
    count, attempt = 0, 0
    while count < kills:
        copy = folder / f"{attempt}"
        count += sum(killed_until_done(extractor, copy, whole, clips=clips, chance=chance))
        assert content(copy) == expected, f"after {count} kills, seed {seed}"
        attempt += 1
    assert verify(copy, full=True, advance=lambda count: None) == []


def test_every_resume_ends_bit_identical(extractor: Any, uninterrupted: Any, tmp_path: Path) -> None:
    kill_and_compare(extractor, uninterrupted, tmp_path, kills=SHORT, seed=0)


@pytest.mark.soak
def test_every_resume_of_a_hundred_kills_ends_bit_identical(
    extractor: Any, uninterrupted: Any, tmp_path: Path
) -> None:
    kill_and_compare(extractor, uninterrupted, tmp_path, kills=LONG, seed=1)
