"""Writing one feature set from one process: batches fill one shard after another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from thinkjepa.cache.assignment import forget, next_shard, unfinished_shards
from thinkjepa.cache.index import SetIndex, join_index_files
from thinkjepa.cache.layout import index_dir
from thinkjepa.cache.open_shard import OpenShard
from thinkjepa.cache.records import ClipFeatures, Failure, FeatureSet, IndexRow
from thinkjepa.cache.zarr_array import create_arrays


class SetWriter:
    """Appends batches of clips to one feature set of a cache that this process holds.

    As a context manager it seals the shard in hand on a normal exit; after an exception the shard stays
    open with its journal, and the next writer of the set continues behind the last committed batch.
    """

    def __init__(self, root: Path, feature_set: FeatureSet) -> None:
        self.root = root
        self.feature_set = feature_set
        create_arrays(root, feature_set)
        forget(root, feature_set.name)
        self._open: OpenShard | None = None
        for number in unfinished_shards(root, feature_set.name):
            self._seal()  # of several that were left open the last one goes on
            self._open = OpenShard(root, feature_set, number)
        if self._open and self._open.is_full:
            self._seal()

    @property
    def unsealed_rows(self) -> Sequence[IndexRow]:
        """Rows committed to the journal and not yet visible to readers."""
        return self._open.rows if self._open else ()

    def append(self, batch: Sequence[ClipFeatures], failures: Sequence[Failure] = ()) -> list[Failure]:
        """Commit a batch. Features that are not finite or misshapen are refused, recorded and returned."""
        refused: list[Failure] = []
        remaining, lost = list(batch), list(failures)
        while remaining or lost:
            shard = self._shard()
            room = self.feature_set.rows_per_shard - shard.used
            now, remaining = remaining[:room], remaining[room:]
            refused += shard.append(now, lost)
            lost = []
            if shard.is_full:
                self._seal()
        return refused

    def __enter__(self) -> SetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._seal()
        finally:
            if self._open:
                self._open.close()

    def _shard(self) -> OpenShard:
        if self._open is None:
            self._open = OpenShard(self.root, self.feature_set, next_shard(self.root, self.feature_set.name))
        return self._open

    def _seal(self) -> None:
        if self._open is None:
            return
        with self._open:
            pass
        self._open = None
        join_index_files(index_dir(self.root, self.feature_set.name))


def done_clip_ids(writer: SetWriter) -> set[str]:
    """Clips with features in the set, visible or committed to the shard in hand."""
    visible = SetIndex(writer.root, writer.feature_set.name).clip_ids.to_pylist()
    return {*visible, *(row.clip_id for row in writer.unsealed_rows if row.status == "ok")}
