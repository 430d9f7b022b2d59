"""What `thinkjepa-cache rm` removes, in words, and doing it."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
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
from thinkjepa.pipeline.units import human_bytes


def plan(path: Path, *, feature_set: str, clip_ids: Sequence[str], video: str) -> Removal:
    """What one of three ways of naming things removes. Raises CacheError for none, several, no match."""
    if sum(map(bool, (feature_set, clip_ids, video))) != 1:
        raise CacheError("rm: name what to remove, with one of --set NAME, --clip ID or --video PATTERN")
    cache = FeatureCache.open(path)
    if feature_set:
        return plan_set_removal(cache, feature_set)
    if video:
        clips = cache.clips.all()
        names = zip(clips.clip_ids.to_pylist(), clips.values("video"), strict=True)
        clip_ids = [clip_id for clip_id, name in names if fnmatchcase(name, video)]
        if not clip_ids:
            raise CacheError(f"rm: no clip's video matches {video!r}: thinkjepa-cache ls lists them")
    return plan_clip_removal(cache, clip_ids)


def run_removal(path: Path, removal: Removal, *, labels: bool) -> None:
    """Remove while holding the cache: never beside another process that writes."""
    with WriteSession(path) as session:
        remove(session, removal, labels=labels)


def describe_removal(removal: Removal) -> str:
    """One line."""
    what = f"set {removal.feature_sets[0]}" if removal.feature_sets else f"{len(removal.clip_ids)} clips"
    return f"{what}, {removal.num_shards} shard files, {human_bytes(removal.freed_bytes)}"
