"""Checking a cache against itself: small files, index, clip rows, zarr metadata, and every stored byte.

A quick check reads no features: small files against the ledger, sizes, shard indexes, rows, and the journals
and chunks of unfinished shards. A full check also covers every block's crc32c, every clip's checksum, and
that all values are finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from thinkjepa.cache.disk.checksums import ledger_faults
from thinkjepa.cache.disk.json_text import parse_json
from thinkjepa.cache.disk.layout import (
    array_dir,
    assigned_file,
    clips_dir,
    index_dir,
    journal_dir,
    labels_dir,
    shard_file,
)
from thinkjepa.cache.disk.lines import checked_lines
from thinkjepa.cache.reader import FeatureCache
from thinkjepa.cache.records import (
    DROPPED,
    ArraySpec,
    CacheError,
    ClipFeatures,
    ClipRow,
    FeatureSet,
    IndexRow,
    fingerprint,
    length_of,
)
from thinkjepa.cache.shards.format import ChunkEntry, is_intact
from thinkjepa.cache.shards.write import clip_problem, features_checksum
from thinkjepa.cache.tables.index import SetIndex
from thinkjepa.cache.tables.labels import LabelTable
from thinkjepa.cache.tables.parquet import CLIPS_SCHEMA, INDEX_SCHEMA, numbered_files, read_table, write_table


@dataclass(frozen=True, slots=True)
class Problem:
    """A fault of a cache. `clip_id` is empty where a file is at fault, not a clip."""

    feature_set: str
    clip_id: str
    reason: str


Advance = Callable[[int], None]
"""Receives the number of clips that were processed."""


def count_clips(cache: FeatureCache) -> int:
    """Number of clips to check, once for every set that has them, 0 where an index cannot be read."""
    try:
        return sum(len(cache.index(name).clip_ids) for name in cache.feature_sets)
    except CacheError:
        return 0


def verify(root: Path, *, full: bool, advance: Advance) -> list[Problem]:
    """All problems of a cache. Raises CacheError where `root` is none, or cannot be opened at all."""
    cache = FeatureCache.open(root)
    faults = list(ledger_faults(root))
    problems = [Problem("", "", f"{str(root / file)!r}: {reason}") for file, reason in faults]
    unreadable = list(_planned_clips(root))
    if unreadable:
        return [*problems, *unreadable]
    if not any(file.startswith(f"{labels_dir(root).name}/") for file, _ in faults):
        problems += _labels(root)
    for feature_set in cache.feature_sets.values():
        problems += _unfinished(root, feature_set)
        try:
            index = cache.index(feature_set.name)
        except CacheError as error:
            problems += [*_described(cache, feature_set), Problem(feature_set.name, "", str(error))]
            continue
        problems += _described(cache, feature_set, may_lack_arrays=not len(index.clip_ids))
        problems += _rows(cache, feature_set, index)
        for clip_id in index.clip_ids.to_pylist():
            reason = clip_fault(cache, feature_set, clip_id, full=full)
            if reason:
                problems.append(Problem(feature_set.name, clip_id, reason))
            advance(1)
    return problems


def _unfinished(root: Path, feature_set: FeatureSet) -> Iterator[Problem]:
    """Check what an interrupted run left: damaged lines, and chunks that are not as they were written."""
    journals = sorted(journal_dir(root, feature_set.name).glob("[0-9]*.jsonl"))
    for path in (assigned_file(root, feature_set.name), *journals):
        lines, damage = checked_lines(path.read_bytes()) if path.exists() else ([], [])
        yield from (Problem(feature_set.name, "", f"{str(path)!r}: {reason}") for reason in damage)
        if lines and "shard" in lines[0]:
            yield from _committed_chunks(root, feature_set, int(lines[0]["shard"]), lines[1:])


def _committed_chunks(
    root: Path, feature_set: FeatureSet, shard: int, batches: Sequence[Mapping[str, Any]]
) -> Iterator[Problem]:
    for batch in batches:
        clips = {int(row["row"]) % feature_set.rows_per_shard: str(row["clip_id"]) for row in batch["rows"]}
        for name, chunks in batch["chunks"].items():
            spec = feature_set.arrays[name]
            for number in _damaged_chunks(_open_shard(root, feature_set, spec, shard), chunks):
                clip_id = clips.get(number // math.prod(spec.chunk_grid), "")
                reason = f"array {name}, inner chunk {number} of the unfinished shard is damaged or missing"
                yield Problem(feature_set.name, clip_id, reason)


def _open_shard(root: Path, feature_set: FeatureSet, spec: ArraySpec, shard: int) -> Path:
    """The file of a shard that an interrupted run left: unfinished, or just sealed."""
    sealed = shard_file(root, feature_set.name, spec, shard)
    return sealed if sealed.exists() else sealed.with_name(sealed.name + ".partial")


def _damaged_chunks(path: Path, chunks: Iterable[ChunkEntry]) -> Iterator[int]:
    """Numbers of the chunks whose bytes in a file do not have their crc32c."""
    if not path.exists():
        yield from (number for number, _, _ in chunks)
        return
    with path.open("rb") as file:
        for number, offset, size in chunks:
            file.seek(offset)
            raw = np.frombuffer(file.read(size), dtype=np.uint8)
            if len(raw) < size or not is_intact(raw):
                yield number


def clip_fault(cache: FeatureCache, feature_set: FeatureSet, clip_id: str, *, full: bool) -> str:
    """The fault of one clip's features in words, or an empty string."""
    try:
        if not full:
            for name in feature_set.arrays:
                cache.shard_of(feature_set.name, name, clip_id)
            return ""
        row = cache.index(feature_set.name)[clip_id]
        features = stored_features(cache, feature_set, row)
    except CacheError as error:
        return str(error)
    if features_checksum(features, feature_set) != row.checksum:
        return "the stored features do not have the checksum of the index"
    return clip_problem(features, feature_set)


def stored_features(cache: FeatureCache, feature_set: FeatureSet, row: IndexRow) -> ClipFeatures:
    """Read a clip's features back in the form that the writer takes."""
    return ClipFeatures(
        clip_id=row.clip_id,
        arrays={
            name: cache.read(feature_set.name, name, [row.clip_id], tokens=length_of(row, spec))[0]
            for name, spec in feature_set.arrays.items()
        },
        token_count=row.token_count,
        slot_count=row.slot_count,
        text_count=row.text_count,
        frame_width_px=row.frame_width_px,
        frame_height_px=row.frame_height_px,
        prompt_token_count=row.prompt_token_count,
        token_ids=row.token_ids,
        generated_text=row.generated_text,
    )


def repair(root: Path, problems: Iterable[Problem], *, full: bool) -> int:
    """Drop the clips whose problems are still there, so that extraction computes them again.

    The caller has the cache locked: what another process has mended or made since then is kept. Returns the
    number of dropped clips.
    """
    cache = FeatureCache.open(root)
    named: dict[str, set[str]] = {}
    for problem in problems:
        if problem.clip_id and problem.feature_set in cache.feature_sets:
            named.setdefault(problem.feature_set, set()).add(problem.clip_id)
    present: list[Problem] = []
    for name, clip_ids in named.items():
        feature_set, index = cache.feature_sets[name], cache.index(name)
        present += [item for item in _rows(cache, feature_set, index) if item.clip_id in clip_ids]
        for clip_id in sorted(clip_ids):
            held = index.locate(clip_id) is not None
            if held and (reason := clip_fault(cache, feature_set, clip_id, full=full)):
                present.append(Problem(name, clip_id, reason))
    return drop_clips(root, present)


def drop_clips(root: Path, problems: Iterable[Problem]) -> int:
    """Mark clips with problems as failed in the index, so that extraction computes them again.

    The caller has the cache locked. Returns the number of dropped clips.
    """
    dropped = 0
    by_set: dict[str, dict[str, str]] = {}
    for problem in problems:
        if problem.clip_id:
            by_set.setdefault(problem.feature_set, {})[problem.clip_id] = problem.reason
    for name, reasons in by_set.items():
        for file in numbered_files(index_dir(root, name)):
            rows = read_table(file.path, IndexRow, INDEX_SCHEMA)
            if any(row.clip_id in reasons and row.status == "ok" for row in rows):
                mended = [_dropped(row, reasons) for row in rows]
                dropped += sum(new != old for new, old in zip(mended, rows, strict=True))
                write_table(file.path, mended, INDEX_SCHEMA)
    return dropped


def _dropped(row: IndexRow, reasons: dict[str, str]) -> IndexRow:
    if row.status != "ok" or row.clip_id not in reasons:
        return row
    return replace(IndexRow(row.clip_id, "failed"), stage=DROPPED, reason=f"dropped: {reasons[row.clip_id]}")


def _planned_clips(root: Path) -> Iterator[Problem]:
    for file in numbered_files(clips_dir(root)):
        try:
            read_table(file.path, ClipRow, CLIPS_SCHEMA)
        except CacheError as error:
            yield Problem("", "", str(error))


def _labels(root: Path) -> Iterator[Problem]:
    """Find labels that cannot be read, or whose numbers are not those that were stored."""
    table = LabelTable(root)
    try:
        videos = table.video_digests
    except CacheError as error:
        yield Problem("", "", str(error))
        return
    for digest in videos:
        try:
            table.find(digest)
        except CacheError as error:
            yield Problem("", "", str(error))


def _described(
    cache: FeatureCache, feature_set: FeatureSet, *, may_lack_arrays: bool = False
) -> Iterator[Problem]:
    """Check the set's name against its origin, and zarr's metadata against the catalog.

    An array is created when its first features are written: a set without any `may_lack_arrays`.
    """
    digest = fingerprint({"kind": feature_set.kind, **feature_set.origin})
    if digest != feature_set.fingerprint or not feature_set.name.endswith(digest[:12]):
        yield Problem(
            feature_set.name, "", "cache.json: the set's origin does not have its name's fingerprint"
        )
    for spec in feature_set.arrays.values():
        path = array_dir(cache.path, feature_set.name, spec.name) / "zarr.json"
        if may_lack_arrays and not path.exists():
            continue
        if reason := _metadata_fault(path, feature_set, spec):
            yield Problem(feature_set.name, "", f"{str(path)!r}: {reason}")


def _metadata_fault(path: Path, feature_set: FeatureSet, spec: ArraySpec) -> str:
    try:
        metadata = parse_json(path.read_bytes())
        shape, sharding = metadata["shape"], metadata["codecs"][0]["configuration"]
        found = (tuple(shape[1:]), tuple(sharding["chunk_shape"]), metadata["attributes"].get("encoding"))
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        return f"cannot be read ({type(error).__name__}: {error})"
    expected = (spec.shape, (1, *spec.chunks), spec.dtype)
    return "" if found == expected else f"describes {found}, the catalog {expected}"


def _rows(cache: FeatureCache, feature_set: FeatureSet, index: SetIndex) -> Iterator[Problem]:
    """Find rows used twice, and clips of the set that no clip row describes."""
    clip_ids = index.clip_ids.to_pylist()
    clip_of: dict[int, str] = {}
    for clip_id, row in zip(clip_ids, index.locate_all(clip_ids).tolist(), strict=True):
        if row in clip_of:
            yield Problem(feature_set.name, clip_id, f"has the same row as {clip_of[row]!r}")
        clip_of[row] = clip_id
    known = set(cache.clips.all().clip_ids.to_pylist())
    for clip_id in clip_of.values():
        if clip_id not in known:
            yield Problem(feature_set.name, clip_id, "has features, but no row under clips/")
