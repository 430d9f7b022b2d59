"""What `thinkjepa-cache rm` removes, in words, and doing it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from thinkjepa.cache import (
    CacheError,
    FeatureCache,
    Removal,
    WriteSession,
    plan_clip_removal,
    plan_set_removal,
    remove,
)
from thinkjepa.cache.clip_names import clips_of, find_clip_id
from thinkjepa.pipeline.units import counted, human_bytes


def plan(path: Path, *, feature_set: str, clip_ids: Sequence[str], video: str) -> Removal:
    """What one of three ways of naming things removes. Raises CacheError for none, several, no match."""
    if sum(map(bool, (feature_set, clip_ids, video))) != 1:
        raise CacheError("rm: name what to remove, with one of --set NAME, --clip ID or --video PATTERN")
    cache = FeatureCache.open(path)
    if feature_set:
        return plan_set_removal(cache, feature_set)
    if video:
        return plan_clip_removal(cache, clips_of(cache, video).clip_ids.to_pylist())
    return plan_clip_removal(cache, [find_clip_id(cache, name) for name in clip_ids])


def run_removal(path: Path, removal: Removal, *, labels: bool) -> None:
    """Remove while holding the cache: never beside another process that writes."""
    with WriteSession(path) as session:
        remove(session, removal, labels=labels)


def describe_removal(removal: Removal) -> str:
    """One line."""
    what = (
        f"set {removal.feature_sets[0]}" if removal.feature_sets else counted(len(removal.clip_ids), "clip")
    )
    return f"{what}, {removal.num_shards} shard files, {human_bytes(removal.freed_bytes)}"
