"""Removing feature sets or clips from a cache. A kill between any two steps leaves it whole.

References to features go first (catalog, index rows), then clip rows, then payload. Shards are never
rewritten: a shard's space returns when the last of its clips is gone.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from thinkjepa.cache.disk.checksums import remove_listed
from thinkjepa.cache.disk.files import explained_os_errors, require_inside
from thinkjepa.cache.disk.layout import clips_dir, failures_file, index_dir, shard_file, store_dir
from thinkjepa.cache.reader import FeatureCache
from thinkjepa.cache.records import CacheError, FeatureSet
from thinkjepa.cache.session import WriteSession
from thinkjepa.cache.shards.assignment import is_unfinished
from thinkjepa.cache.tables.catalog import write_catalog
from thinkjepa.cache.tables.labels import drop_labels
from thinkjepa.cache.tables.parquet import (
    CLIPS_SCHEMA,
    FAILURES_SCHEMA,
    INDEX_SCHEMA,
    numbered_files,
    read_arrow,
    write_arrow,
)


@dataclass(frozen=True, slots=True)
class Removal:
    """The sets, clips, shards and bytes that a removal takes away."""

    feature_sets: tuple[str, ...]
    clip_ids: tuple[str, ...]
    video_digests: tuple[str, ...]
    """Videos that keep no clip."""
    num_shards: int
    """Shards whose files go. The other clips of a shard keep it."""
    freed_bytes: int


def plan_set_removal(cache: FeatureCache, selector: str) -> Removal:
    """Plan the removal of one feature set. Raises CacheError where no set has that name."""
    feature_set = cache.find_set(selector)
    folder = store_dir(cache.path) / feature_set.name
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "zarr.json"]
    return Removal((feature_set.name,), (), (), len(files), sum(path.stat().st_size for path in files))


def plan_clip_removal(cache: FeatureCache, clip_ids: Collection[str]) -> Removal:
    """Plan the removal of clips from all sets. Raises CacheError for a clip that is not there."""
    clips = cache.clips.all()
    known = clips.clip_ids.to_pylist()
    named = set(clip_ids)
    if missing := sorted(named - set(known)):
        raise CacheError(f"{str(cache.path)!r} holds no clip {missing[0]!r}: thinkjepa-cache ls lists them")
    digests = clips.values("video_digest")
    kept = {digest for clip_id, digest in zip(known, digests, strict=True) if clip_id not in named}
    files = [path for item in cache.feature_sets.values() for path in _emptied(cache, item, named)]
    return Removal(
        feature_sets=(),
        clip_ids=tuple(sorted(named)),
        video_digests=tuple(sorted(set(digests) - kept)),
        num_shards=len(files),
        freed_bytes=sum(path.stat().st_size for path in files),
    )


def remove(session: WriteSession, removal: Removal, *, labels: bool) -> None:
    """Carry out a removal, and remove the payload that an interrupted one left.

    `labels` removes the labels of videos without clips too.
    """
    root = session.root
    for feature_set in session.feature_sets.values():
        if is_unfinished(root, feature_set.name):
            with session.writer(feature_set):  # seals what an interrupted extraction left open
                pass
    for name in removal.feature_sets:
        del session.feature_sets[name]
        write_catalog(root, session.feature_sets)
    if removal.clip_ids:
        _remove_clips(session, pa.array(removal.clip_ids, pa.string()))
    if labels:
        drop_labels(root, removal.video_digests)
    _remove_uncatalogued(root, session.feature_sets)
    _remove_empty_shards(root, session.feature_sets.values())


def _remove_clips(session: WriteSession, clip_ids: pa.Array) -> None:
    for name in session.feature_sets:
        for item in numbered_files(index_dir(session.root, name)):
            _drop_rows(item.path, clip_ids, INDEX_SCHEMA)
    for item in numbered_files(clips_dir(session.root)):
        _drop_rows(item.path, clip_ids, CLIPS_SCHEMA)
    if failures_file(session.root).exists():
        _drop_rows(failures_file(session.root), clip_ids, FAILURES_SCHEMA)


def _drop_rows(path: Path, clip_ids: pa.Array, schema: pa.Schema) -> None:
    """Rewrite a table without some clips. Even an empty one stays, as the next file is numbered after it."""
    table = read_arrow(path, schema)
    dropped = pc.is_in(table["clip_id"], value_set=clip_ids)
    if pc.any(dropped).as_py():
        write_arrow(path, table.filter(pc.invert(dropped)))


def _remove_uncatalogued(root: Path, feature_sets: Collection[str]) -> None:
    """Remove index files before arrays: as long as a row is there, its features are."""
    indexed = [folder.parent.name for folder in root.glob("*/index")]
    stored = [folder.name for folder in store_dir(root).glob("*") if folder.is_dir()]
    for name in sorted({*indexed, *stored} - set(feature_sets)):
        for path in sorted(index_dir(root, name).glob("*.parquet")):
            remove_listed(path)
        for path in sorted((store_dir(root) / name).rglob("zarr.json")):
            remove_listed(path)
        for folder in (root / name, store_dir(root) / name):
            if folder.exists():
                with explained_os_errors("remove", folder):
                    shutil.rmtree(folder)


def _remove_empty_shards(root: Path, feature_sets: Collection[FeatureSet]) -> None:
    cache = FeatureCache.open(root)
    for feature_set in feature_sets:
        for path in _emptied(cache, feature_set, set()):
            with explained_os_errors("remove", path):
                path.unlink()


def _emptied(cache: FeatureCache, feature_set: FeatureSet, without: Collection[str]) -> Iterator[Path]:
    """Files of sealed shards that have no clip except those in `without`."""
    index = cache.index(feature_set.name)
    kept = set()
    for clip_id in index.clip_ids.to_pylist():
        row = index.locate(clip_id)
        if row is not None and clip_id not in without:
            kept.add(row // feature_set.rows_per_shard)
    files = numbered_files(index_dir(cache.path, feature_set.name))
    for shard in range(files[-1].last + 1 if files else 0):
        for spec in feature_set.arrays.values():
            path = shard_file(cache.path, feature_set.name, spec, shard)
            if shard not in kept and path.is_file():
                require_inside(cache.path, path)
                yield path
