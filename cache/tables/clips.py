"""The clips of a cache: a table of a million rows, of which only requested rows become objects."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from thinkjepa.cache.disk.kept import KeptFile
from thinkjepa.cache.disk.layout import clips_dir
from thinkjepa.cache.records import ClipRow, Kind
from thinkjepa.cache.tables.index import IdLookup, last_of_equal
from thinkjepa.cache.tables.parquet import CLIPS_SCHEMA, ParquetRows, Positions, frozen, release_unused

Frames = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

Times = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

KEY = ("clip_id", "thinker_sampling", "dense_sampling")
"""Key of a clip row: the clip, and the sampling of the frames of each model."""


class ClipTable:
    """All planned clips, with or without features. Of rows with the same key the newest counts."""

    def __init__(self, root: Path, *, kept: Sequence[KeptFile] | None = None) -> None:
        """Read the present files, or those `kept`."""
        self._rows = ParquetRows(clips_dir(root), columns=KEY, schema=CLIPS_SCHEMA, kept=kept)
        self._ids, thinker, dense = (self._rows.release(name) for name in KEY)
        keys = pc.binary_join_element_wise(self._ids, thinker, dense, " ")
        sparse = thinker.dictionary_encode()
        self._samplings = {"thinker": sparse, "encoder": dense.dictionary_encode(), "history": sparse}
        self._newest = last_of_equal(keys)

    def all(self) -> ClipSelection:
        """Every clip, once for each sampling of its frames."""
        return self._selection(self._newest)

    def sampled(self, kind: Kind, sampling: str, *, within: ClipSelection) -> ClipSelection:
        """The clips of `within` whose frames for one model have this sampling."""
        column = self._samplings[kind].take(pa.array(within.positions))
        return within.where(pc.equal(column, sampling).to_numpy(zero_copy_only=False))

    def find_all(self, clips: Sequence[ClipRow]) -> list[ClipRow | None]:
        """The stored row with the key of each clip, None where there is none."""
        newest = pa.array(self._newest)
        columns = (self._ids, *(self._samplings[kind].cast(pa.string()) for kind in ("thinker", "encoder")))
        keys = pc.binary_join_element_wise(*(column.take(newest) for column in columns), " ")
        positions = IdLookup(keys).find_all([" ".join(getattr(clip, name) for name in KEY) for clip in clips])
        known = np.flatnonzero(positions >= 0)
        stored = iter(self._selection(self._newest[positions[known]]))
        found: list[ClipRow | None] = [None] * len(clips)
        for position in known:
            found[position] = next(stored)
        return found

    def _selection(self, positions: Positions) -> ClipSelection:
        return ClipSelection(self._rows, self._ids, positions)


class ClipSelection(Sequence[ClipRow]):
    """Chosen clips in a fixed order. Columns are read whole, rows on request."""

    def __init__(self, rows: ParquetRows, ids: pa.Array, positions: Positions) -> None:
        self._rows = rows
        self._ids = ids
        self.positions = positions

    @property
    def clip_ids(self) -> pa.Array:
        """Ids in the order of the selection."""
        return self._ids.take(pa.array(self.positions))

    def by_clip_id(self) -> ClipSelection:
        """The selection sorted by clip_id, each id once: of equal ids the last one."""
        ids = self.clip_ids
        once = last_of_equal(ids)
        order = pc.sort_indices(ids.take(pa.array(once))).to_numpy()
        release_unused()
        return ClipSelection(self._rows, self._ids, self.positions[once[order]])

    def where(self, chosen: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> ClipSelection:
        """The clips marked True, in the same order."""
        return ClipSelection(self._rows, self._ids, self.positions[chosen])

    def only(self, clip_ids: Collection[str]) -> ClipSelection:
        """The clips that are named, in the same order."""
        named = pa.array(sorted(clip_ids), pa.string())
        return self.where(pc.is_in(self.clip_ids, value_set=named).to_numpy(zero_copy_only=False))

    def values(self, column: str) -> list[Any]:
        """One column for all clips. Equal texts are one object."""
        chosen = self._rows.read_column(column).take(pa.array(self.positions))
        if pa.types.is_string(chosen.type):
            encoded = chosen.dictionary_encode()
            texts = encoded.dictionary.to_pylist()
            values = [texts[position] for position in encoded.indices.to_numpy()]
        else:
            values = chosen.to_pylist()
        release_unused()
        return values

    def frames(self, column: str) -> Frames:
        """A column of frame indices, `(clip, frame)`, future windows one after the other.

        All clips have the same number of frames: the selection has one sampling.
        """
        frames: Frames = self._flat(column)
        return frames

    def times_s(self, column: str) -> Times:
        """A column of frame times in seconds, as `frames`."""
        times_s: Times = self._flat(column)
        return times_s

    def first_times_s(self, column: str) -> Times:
        """The first of each clip's frame times in a column, `(clip,)`. Clips may differ in their number."""
        chosen = self._rows.read_column(column).take(pa.array(self.positions))
        first: Times = pc.list_element(chosen, 0).to_numpy()
        return first

    def _flat(self, column: str) -> Any:
        chosen = self._rows.read_column(column).take(pa.array(self.positions))
        while pa.types.is_list(chosen.type):
            chosen = chosen.flatten()
        return chosen.to_numpy().reshape(len(self), -1 if len(self) else 0)

    @overload
    def __getitem__(self, index: int) -> ClipRow: ...
    @overload
    def __getitem__(self, index: slice) -> ClipSelection: ...
    def __getitem__(self, index: int | slice) -> ClipRow | ClipSelection:
        if isinstance(index, slice):
            return ClipSelection(self._rows, self._ids, self.positions[index])
        return next(iter(ClipSelection(self._rows, self._ids, self.positions[[index]])))

    def __iter__(self) -> Iterator[ClipRow]:
        for row in self._rows.take(self.positions):
            yield ClipRow(**frozen(row))

    def __len__(self) -> int:
        return len(self.positions)
