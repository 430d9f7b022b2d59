"""A removal as a durable plan: it is written before the first file goes, and whoever writes next finishes it.

Every step may be repeated. References to features go first (catalog, index rows), then clip rows, then
payload. Shards are never rewritten: a shard's space returns when the last of its clips is gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from thinkjepa.cache.disk.checksums import remove_tree
from thinkjepa.cache.disk.files import (
    explained_os_errors,
    remove_file,
    replace_file,
    require_inside,
)
from thinkjepa.cache.disk.layout import (
    clips_dir,
    failures_file,
    index_dir,
    removal_file,
    shard_file,
    store_dir,
)
from thinkjepa.cache.disk.lines import checked_lines, encoded
from thinkjepa.cache.records import SET_NAME, CacheError, FeatureSet
from thinkjepa.cache.tables.catalog import write_catalog
from thinkjepa.cache.tables.index import SetIndex
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
    """Videos that keep no clip. In a plan: those that lose their labels."""
    num_shards: int
    """Shards whose files go. The other clips of a shard keep it."""
    freed_bytes: int


def planned_removal(root: Path) -> Removal | None:
    """The removal that was begun and is not finished, or None. Raises CacheError for a damaged plan."""
    path = removal_file(root)
    with explained_os_errors("read", path):
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
    records, damage = checked_lines(content)
    if damage or len(records) != 1:
        raise CacheError(f"{str(path)!r} is damaged: restore it from a copy, or remove it and repeat the rm")
    values = {field.name: records[0][field.name] for field in fields(Removal)}
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Removal(**values | lists)


def plan_removal(root: Path, removal: Removal) -> None:
    """Make a removal durable. The caller has the cache locked and finishes it."""
    replace_file(removal_file(root), encoded([asdict(removal)]))


def finish_removal(root: Path, feature_sets: Mapping[str, FeatureSet]) -> dict[str, FeatureSet]:
    """Carry out the planned removal, if there is one. Returns the sets that are left, by name.

    The caller has the cache locked, and no shard of it is open where the plan names clips.
    """
    removal = planned_removal(root)
    if removal is None:
        return dict(feature_sets)
    kept = {name: item for name, item in feature_sets.items() if name not in removal.feature_sets}
    if len(kept) < len(feature_sets):
        write_catalog(root, kept)
    clear_unknown(root, kept)
    _remove_clips(root, kept, removal.clip_ids)
    if removal.video_digests:
        drop_labels(root, removal.video_digests)
    _remove_empty_shards(root, kept.values())
    remove_file(removal_file(root))
    return kept


def clear_unknown(root: Path, feature_sets: Collection[str]) -> None:
    """Remove the index and the payload of sets that the catalog does not know.

    A set enters the catalog before its first file is written, so they are what a removal left.
    """
    for folder in (root, store_dir(root)):
        for path in sorted(folder.glob("*-*")):
            if path.is_dir() and SET_NAME.fullmatch(path.name) and path.name not in feature_sets:
                remove_tree(root, path)


def emptied_shards(root: Path, feature_set: FeatureSet, without: Collection[str] = ()) -> Iterator[Path]:
    """Files of sealed shards that have no clip except those in `without`."""
    index = SetIndex(root, feature_set.name)
    kept = set()
    for clip_id in index.clip_ids.to_pylist():
        row = index.locate(clip_id)
        if row is not None and clip_id not in without:
            kept.add(row // feature_set.rows_per_shard)
    files = numbered_files(index_dir(root, feature_set.name))
    for shard in range(files[-1].last + 1 if files else 0):
        for spec in feature_set.arrays.values():
            path = shard_file(root, feature_set.name, spec, shard)
            if shard not in kept and path.is_file():
                require_inside(root, path)
                yield path


def _remove_clips(root: Path, feature_sets: Collection[str], clip_ids: Collection[str]) -> None:
    gone = pa.array(clip_ids, pa.string())
    for name in feature_sets if clip_ids else ():
        for item in numbered_files(index_dir(root, name)):
            _drop_rows(item.path, gone, INDEX_SCHEMA)
    for item in numbered_files(clips_dir(root)) if clip_ids else ():
        _drop_rows(item.path, gone, CLIPS_SCHEMA)
    if clip_ids and failures_file(root).exists():
        _drop_rows(failures_file(root), gone, FAILURES_SCHEMA)


def _drop_rows(path: Path, clip_ids: pa.Array, schema: pa.Schema) -> None:
    """Rewrite a table without some clips. Even an empty one stays, as the next file is numbered after it."""
    table = read_arrow(path, schema)
    dropped = pc.is_in(table["clip_id"], value_set=clip_ids)
    if pc.any(dropped).as_py():
        write_arrow(path, table.filter(pc.invert(dropped)))


def _remove_empty_shards(root: Path, feature_sets: Iterable[FeatureSet]) -> None:
    for feature_set in feature_sets:
        for path in emptied_shards(root, feature_set):
            remove_file(path)
