"""Merging caches: their union is written as an extraction writes, clip after clip through the journal.

A merge that was killed is continued by running it again. The sources are only read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from thinkjepa.cache.disk.layout import cache_json
from thinkjepa.cache.reader import FeatureCache
from thinkjepa.cache.records import CacheError, ClipFeatures, ClipRow, FeatureSet
from thinkjepa.cache.session import SetWriter, WriteSession, done_clip_ids
from thinkjepa.cache.shards.write import features_checksum
from thinkjepa.cache.tables.labels import VideoLabels
from thinkjepa.cache.upkeep.verify import Advance, stored_features

HELD_BYTES = 64 * 10**6
"""Features read before they are committed together: bounds memory, and spares flushes to the disk."""

CLIPS_AT_ONCE = 10_000
"""Clip rows in memory at a time."""


@dataclass(frozen=True, slots=True)
class MergeReport:
    """Contents of a merged cache, and the number of clips copied by this run."""

    feature_sets: int
    clips: int
    copied: int
    """Clips' features copied, once for every set."""
    shared: int
    """Clips of a set that several sources have, with the same checksum."""


def merge(sources: Sequence[Path], out: Path, *, advance: Advance) -> MergeReport:
    """Write the union of caches to a new folder, or continue such a merge.

    `advance` receives the number of features as they are copied. Splits and selections are not copied:
    they belong to the clips of one cache. Raises CacheError where two caches disagree about a clip.
    """
    caches = [FeatureCache.open(path) for path in sources]
    _refuse_overlap(sources, out)
    if cache_json(out).exists():
        caches_with_out = [*caches, FeatureCache.open(out)]
        _refuse_foreign(caches, caches_with_out[-1])
    else:
        caches_with_out = caches
    wanted = _united_sets(caches_with_out)
    shared = sum(_compare(name, caches_with_out) for name in wanted)
    _compare_labels(caches)
    copied = 0
    with WriteSession(out) as session:
        for cache in caches:
            _add_clips(session, cache)
        session.add_labels(_all_labels(caches))
        for feature_set in wanted.values():
            target = session.resolve(feature_set)
            with session.writer(target) as writer:
                for cache in caches:
                    copied += _copy_features(cache, writer, advance)
        _add_failures(session, caches)
    clips = len(FeatureCache.open(out).clips.all().by_clip_id())
    return MergeReport(feature_sets=len(wanted), clips=clips, copied=copied, shared=shared)


def count_features(sources: Sequence[Path]) -> int:
    """Number of features that a merge compares: clips, once for each set and source that has them."""
    caches = [FeatureCache.open(path) for path in sources]
    return sum(len(cache.index(name).clip_ids) for cache in caches for name in cache.feature_sets)


def _refuse_overlap(sources: Sequence[Path], out: Path) -> None:
    real = [path.resolve() for path in sources]
    if len(set(real)) < len(real):
        raise CacheError("merge: the same cache is named twice: name each once")
    for path in real:
        if out.resolve() == path or path in out.resolve().parents or out.resolve() in path.parents:
            raise CacheError(f"merge: --out {str(out)!r} and {str(path)!r} overlap: choose another folder")


def _refuse_foreign(caches: Sequence[FeatureCache], out: FeatureCache) -> None:
    """Raise CacheError where `out` is no interrupted merge of these caches: it has what they have not."""
    known = {clip_id for cache in caches for clip_id in cache.clips.all().clip_ids.to_pylist()}
    sets = {name for cache in caches for name in cache.feature_sets}
    if not (set(out.clips.all().clip_ids.to_pylist()) <= known and set(out.feature_sets) <= sets):
        raise CacheError(
            f"{str(out.path)!r} holds features that are in none of the caches to be merged: "
            "choose a new folder, and name this cache too if it is to be merged"
        )


def _united_sets(caches: Sequence[FeatureCache]) -> dict[str, FeatureSet]:
    """Sets by name, each as the last cache describes it. Raises CacheError where array shapes differ."""
    sets: dict[str, FeatureSet] = {}
    for cache in caches:
        for name, item in cache.feature_sets.items():
            if name in sets and sets[name].arrays != item.arrays:
                raise CacheError(
                    f"set {name} of {str(cache.path)!r} has other array shapes: extract it again"
                )
            sets[name] = item
    return dict(sorted(sets.items()))


def _compare(name: str, caches: Sequence[FeatureCache]) -> int:
    """Number of clips of a set in several caches. Raises CacheError where their checksums differ."""
    holders = [cache for cache in caches if name in cache.feature_sets]
    checksums: dict[str, str] = {}
    shared = 0
    for cache in holders:
        ids = cache.index(name).clip_ids.to_pylist()
        for clip_id, checksum in zip(ids, cache.index(name).values_of(ids, "checksum"), strict=True):
            shared += clip_id in checksums
            if checksums.setdefault(clip_id, checksum) != checksum:
                raise CacheError(
                    f"clip {clip_id!r} has other features in {str(cache.path)!r} (set {name}, checksum "
                    f"{checksum}, elsewhere {checksums[clip_id]}): remove it from one cache with "
                    "thinkjepa-cache rm"
                )
    return shared


def _compare_labels(caches: Sequence[FeatureCache]) -> None:
    digests: dict[str, str | None] = {}
    for cache in caches:
        for video in cache.labels.video_digests:
            found = cache.labels.label_digest(video)
            if digests.setdefault(video, found) != found:
                raise CacheError(
                    f"video {video[:16]} has other labels in {str(cache.path)!r}: import the labels of one "
                    "file into both caches"
                )


def _all_labels(caches: Sequence[FeatureCache]) -> Iterator[VideoLabels]:
    added: set[str] = set()
    for cache in caches:
        for labels in cache.labels:
            if labels.video_digest not in added:
                added.add(labels.video_digest)
                yield labels


def _add_clips(session: WriteSession, cache: FeatureCache) -> None:
    """Add clip rows that are missing: of a video with two names the first cache's counts."""
    clips = cache.clips.all()
    for start in range(0, len(clips), CLIPS_AT_ONCE):
        rows: list[ClipRow] = list(clips[start : start + CLIPS_AT_ONCE])
        known = FeatureCache.open(session.root).clips.find_all(rows)
        session.add_clips([row for row, stored in zip(rows, known, strict=True) if stored is None])


def _copy_features(cache: FeatureCache, writer: SetWriter, advance: Advance) -> int:
    """Copy a source's features that the target lacks of the writer's set, in the order of the shards."""
    name = writer.feature_set.name
    if name not in cache.feature_sets:
        return 0
    index, done, copied = cache.index(name), done_clip_ids(writer), 0
    held: list[ClipFeatures] = []
    held_bytes = 0
    for clip_id in sorted(index.clip_ids.to_pylist(), key=lambda clip_id: index.locate(clip_id) or 0):
        advance(1)
        if clip_id in done:
            continue
        held.append(_checked_features(cache, writer.feature_set, clip_id))
        held_bytes += sum(values.nbytes for values in held[-1].arrays.values())
        if held_bytes >= HELD_BYTES:
            copied += _commit(writer, held)
            held, held_bytes = [], 0
    return copied + _commit(writer, held)


def _commit(writer: SetWriter, held: Sequence[ClipFeatures]) -> int:
    if held and (refused := writer.append(held)):
        raise CacheError(f"clip {refused[0].clip_id!r} cannot be merged: {refused[0].reason}")
    return len(held)


def _checked_features(cache: FeatureCache, feature_set: FeatureSet, clip_id: str) -> ClipFeatures:
    row = cache.index(feature_set.name)[clip_id]
    features = stored_features(cache, feature_set, row)
    if features_checksum(features, feature_set) != row.checksum:
        raise CacheError(
            f"clip {clip_id!r} of {str(cache.path)!r} is damaged: run thinkjepa-cache verify --repair there"
        )
    return features


def _add_failures(session: WriteSession, caches: Sequence[FeatureCache]) -> None:
    """Add failures of clips that have features in no cache."""
    merged = FeatureCache.open(session.root)
    done = set(merged.select(*merged.feature_sets).clip_ids.to_pylist())
    failures = [item for cache in caches for item in cache.failures if item.clip_id not in done]
    session.record_failures(failures, videos={item.video for item in failures})
    for name, feature_set in session.feature_sets.items():
        index = merged.index(name)
        have = set(index.clip_ids.to_pylist())
        failed = {
            clip_id: row.failure
            for cache in caches
            if name in cache.feature_sets
            for clip_id, row in cache.index(name).failed.items()
            if clip_id not in have
        }
        known = {clip_id: row.failure for clip_id, row in index.failed.items()}
        with session.writer(feature_set) as writer:
            writer.append([], [item for clip_id, item in failed.items() if known.get(clip_id) != item])
