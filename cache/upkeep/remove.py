"""Removing feature sets or clips from a cache. A removal that is cut short is finished by the next writer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from thinkjepa.cache.disk.layout import store_dir
from thinkjepa.cache.reader import FeatureCache
from thinkjepa.cache.records import CacheError
from thinkjepa.cache.session import WriteSession
from thinkjepa.cache.shards.assignment import is_unfinished
from thinkjepa.cache.upkeep.removal import (
    Removal,
    emptied_shards,
    finish_removal,
    plan_removal,
    planned_removal,
)


def plan_set_removal(cache: FeatureCache, selector: str) -> Removal:
    """Plan the removal of one feature set, or find the one that was begun.

    Raises CacheError where no set has that name.
    """
    begun = planned_removal(cache.path)
    if begun and any(name.startswith(selector) for name in begun.feature_sets):
        return begun
    feature_set = cache.find_set(selector)
    folder = store_dir(cache.path) / feature_set.name
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "zarr.json"]
    return Removal((feature_set.name,), (), (), len(files), sum(path.stat().st_size for path in files))


def plan_clip_removal(cache: FeatureCache, clip_ids: Collection[str]) -> Removal:
    """Plan the removal of clips from all sets, or find the one that was begun.

    Raises CacheError for a clip that is not there.
    """
    clips = cache.clips.all()
    known = clips.clip_ids.to_pylist()
    named = set(clip_ids)
    begun = planned_removal(cache.path)
    if begun and named and named <= set(begun.clip_ids):
        return begun
    if missing := sorted(named - set(known)):
        raise CacheError(f"{str(cache.path)!r} holds no clip {missing[0]!r}: thinkjepa-cache ls lists them")
    digests = clips.values("video_digest")
    kept = {digest for clip_id, digest in zip(known, digests, strict=True) if clip_id not in named}
    files = [path for item in cache.feature_sets.values() for path in emptied_shards(cache.path, item, named)]
    return Removal(
        feature_sets=(),
        clip_ids=tuple(sorted(named)),
        video_digests=tuple(sorted(set(digests) - kept)),
        num_shards=len(files),
        freed_bytes=sum(path.stat().st_size for path in files),
    )


def remove(session: WriteSession, removal: Removal, *, labels: bool) -> None:
    """Carry out a removal. One that is cut short is finished by the next session of the cache.

    `labels` removes the labels of videos without clips too.
    """
    root = session.root
    for feature_set in session.feature_sets.values() if removal.clip_ids else ():
        if is_unfinished(root, feature_set.name):
            with session.writer(feature_set):  # seals what an interrupted extraction left open
                pass
    plan_removal(root, removal if labels else replace(removal, video_digests=()))
    session.feature_sets = finish_removal(root, session.feature_sets)
