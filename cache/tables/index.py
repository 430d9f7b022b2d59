"""Index of a feature set: read in a second for a million clips, a clip found in microseconds.

From a million ids to their places: a sorted array of 64-bit hashes instead of a dictionary.

1,000,000 clip ids take 12 MB beside the ids themselves, where a dictionary of strings takes 180 MB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from thinkjepa.cache.disk.checksums import remove_listed
from thinkjepa.cache.disk.layout import index_dir
from thinkjepa.cache.records import IndexRow
from thinkjepa.cache.tables.lookup import IdLookup, Places
from thinkjepa.cache.tables.parquet import (
    INDEX_SCHEMA,
    READING,
    TRIES,
    ParquetRows,
    RowsChangedError,
    frozen,
    numbered_files,
    release_unused,
    write_arrow,
)

JOIN = 64
"""Index files are joined by 64, and joined ones by 64 again: a million clips lie in fewer than 200 files."""

FOUND_ONE_BY_ONE = 16
"""Up to so many ids, finding each (10 us) is faster than finding all at once (180 us and more)."""

Found = TypeVar("Found")


class SetIndex(Mapping[str, IndexRow]):
    """The index rows of a feature set by clip_id: the features where there are any, else the last failure.

    Columns are read when they are asked for. Where a writer has joined or rewritten files meanwhile, the
    index is read anew: what is asked for by clip_id is right before and after.
    """

    def __init__(self, root: Path, set_name: str) -> None:
        self._folder = index_dir(root, set_name)
        self._load()

    def _load(self) -> None:
        for name in ("failed", "_token_counts"):
            self.__dict__.pop(name, None)
        self._rows = ParquetRows(self._folder, columns=["clip_id", "row"], schema=INDEX_SCHEMA)
        ids, array_rows = self._rows.release("clip_id"), self._rows.release("row").to_numpy()
        ok = array_rows >= 0
        self._ok, self._failed = np.flatnonzero(ok).astype(np.int32), np.flatnonzero(~ok)
        self._ids = ids if ok.all() else ids.filter(pa.array(ok))
        self._array_rows = array_rows[ok]
        self._lookup = IdLookup(self._ids)
        release_unused()  # 1,000,000 clips: 94 MB stay instead of 177

    @property
    def clip_ids(self) -> pa.Array:
        """Ids of the clips with features."""
        return self._ids

    @property
    def token_counts(self) -> Places:
        """Tokens of each of `clip_ids`."""
        return self._current(lambda: self._token_counts)

    def tokens_by_clip(self) -> dict[str, int]:
        """Tokens of every clip with features; 0 in an encoder's set."""
        counts = self.token_counts.tolist()
        return dict(zip(self._ids.to_pylist(), counts, strict=True))

    @cached_property
    def failed(self) -> dict[str, IndexRow]:
        """Clips without features, with the last failure of each."""
        rows = self._current(lambda: [IndexRow(**frozen(row)) for row in self._rows.take(self._failed)])
        return {row.clip_id: row for row in rows if self._lookup.find(row.clip_id) is None}

    def locate(self, clip_id: str) -> int | None:
        """The clip's place on the clip axis of the set's arrays; None where it has no features."""
        place = self._lookup.find(clip_id)
        return None if place is None else int(self._array_rows[place])

    def locate_all(self, clip_ids: Sequence[str]) -> Places:
        """Places of clips on the clip axis; -1 where one has no features."""
        places = self._places(clip_ids)
        known = places >= 0
        places[known] = self._array_rows[places[known]]
        return places

    def count_tokens(self, clip_ids: Sequence[str]) -> Places:
        """Tokens of clips that have features."""
        return self._current(lambda: self._token_counts[self._places(clip_ids)])

    @cached_property
    def _token_counts(self) -> Places:
        counts: Places = self._rows.read_column("token_count").to_numpy()[self._ok].astype(np.int64)
        return counts

    def _places(self, clip_ids: Sequence[str]) -> Places:
        if len(clip_ids) > FOUND_ONE_BY_ONE:
            return self._lookup.find_all(clip_ids).copy()
        found = [self._lookup.find(clip_id) for clip_id in clip_ids]
        return np.array([-1 if place is None else place for place in found], dtype=np.int64)

    def holds(self, clip_ids: pa.Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which of the clips have features."""
        return self._lookup.find_all(clip_ids) >= 0

    def values_of(self, clip_ids: Sequence[str], column: str) -> list[Any]:
        """One column of the index for clips that have features."""
        return self._current(lambda: self._values_of(clip_ids, column))

    def _values_of(self, clip_ids: Sequence[str], column: str) -> list[Any]:
        places = self._lookup.find_all(clip_ids)
        order = np.argsort(places, kind="stable")
        found = [row[column] for row in self._rows.take(self._ok[places[order]].astype(np.int64), [column])]
        values: list[Any] = [None] * len(found)
        for place, value in zip(order, found, strict=True):
            values[place] = value
        return values

    def _current(self, read: Callable[[], Found]) -> Found:
        """What `read` returns from files that have not changed since the index was loaded."""
        for _ in range(TRIES - 1):
            try:
                return read()
            except RowsChangedError:
                self._load()
        return read()

    def __getitem__(self, clip_id: str) -> IndexRow:
        return self._current(lambda: self._row(clip_id))

    def _row(self, clip_id: str) -> IndexRow:
        place = self._lookup.find(clip_id)
        if place is None:
            return self.failed[clip_id]
        return next(IndexRow(**frozen(row)) for row in self._rows.take(self._ok[[place]].astype(np.int64)))

    def __iter__(self) -> Iterator[str]:
        yield from self._ids.to_pylist()
        yield from self.failed

    def __len__(self) -> int:
        return len(self._ids) + len(self.failed)


def join_index_files(folder: Path) -> None:
    """Join full runs of files into one, which is written first, so that no row is ever missing.

    A run with a gap waits: the missing file belongs to a shard that is still being written.
    """
    span = JOIN
    while True:
        files = numbered_files(folder)
        _remove_joined(folder, keep={item.path for item in files})
        if not files or files[-1].last + 1 < span:
            return
        for start in range(0, files[-1].last + 1 - span + 1, span):
            parts = [item for item in files if start <= item.first and item.last < start + span]
            complete = sum(item.last - item.first + 1 for item in parts) == span
            if complete and len(parts) > 1:
                table = pa.concat_tables(
                    [pq.read_table(item.path, schema=INDEX_SCHEMA, **READING) for item in parts]
                )
                write_arrow(folder / f"{start:06d}-{start + span - 1:06d}.parquet", table)
                _remove_joined(folder, keep={item.path for item in numbered_files(folder)})
        span *= JOIN


def _remove_joined(folder: Path, *, keep: set[Path]) -> None:
    for path in folder.glob("[0-9]*.parquet"):
        if path not in keep:
            remove_listed(path)
