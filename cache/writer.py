"""Writing one feature set: batches appended to a shard, journaled, sealed, then visible.

Commit order: payload, then journal line (a killed run continues behind it), then, when the shard is full
or the run ends, the sealed shards, and last the index file that makes their clips visible. A sealed
shard is never touched again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from thinkjepa.cache.background_sync import BackgroundSync
from thinkjepa.cache.disk import explained_os_errors
from thinkjepa.cache.index import SetIndex, join_index_files
from thinkjepa.cache.journal import append_line, read_lines, remove
from thinkjepa.cache.layout import index_dir, index_file, journal_file, shard_file
from thinkjepa.cache.parquet_rows import next_number
from thinkjepa.cache.records import ArraySpec, ClipFeatures, Failure, FeatureSet, IndexRow
from thinkjepa.cache.shard import ChunkEntry, ShardWriter, chunk_number, crc32c
from thinkjepa.cache.storing import blocks, prepared
from thinkjepa.cache.tables import INDEX_SCHEMA, write_table
from thinkjepa.cache.zarr_array import create_arrays, grow

NOT_FINITE_BITS = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80, torch.float32: 0x7F800000}
"""Exponent bits that are all ones in inf and NaN; testing them needs no float conversion."""

FINITE_BLOCK = 1 << 18
"""Values tested at a time: 512 KB of float16 stay in the cache between the two passes."""

Bits = npt.NDArray[Any]


def clip_problem(features: ClipFeatures, feature_set: FeatureSet) -> str:
    """Why these features must not be stored, or an empty string. Finds shapes, dtypes, inf and NaN."""
    for name, spec in feature_set.given_arrays.items():
        values = features.arrays.get(name)
        if values is None:
            return f"{name} is missing"
        ragged = spec.dims.index("token") if "token" in spec.dims else None
        expected = tuple(values.shape[i] if i == ragged else size for i, size in enumerate(spec.shape))
        if tuple(values.shape) != expected or values.dtype != spec.torch_dtype:
            return f"{name} is {values.dtype} {tuple(values.shape)}, the set holds {spec.dtype} {spec.shape}"
        if ragged is not None and values.shape[ragged] > spec.shape[ragged]:
            return (
                f"{name} has {values.shape[ragged]} tokens, the cache holds at most {spec.shape[ragged]}: "
                "use fewer thinker frames or a lower resolution"
            )
        if problem := _not_finite(values, spec, feature_set):
            return problem
    return ""


def features_checksum(features: ClipFeatures, feature_set: FeatureSet) -> str:
    """crc32c of all arrays' raw bytes in the order of their names, as the index holds it."""
    checksum = 0
    for name in feature_set.given_arrays:
        values = features.arrays[name].contiguous().view(torch.uint8)
        checksum = crc32c(values.numpy().reshape(-1), checksum)
    return f"{checksum:08x}"


def _not_finite(values: torch.Tensor, spec: ArraySpec, feature_set: FeatureSet) -> str:
    exponent = NOT_FINITE_BITS.get(values.dtype)
    if exponent is None or _all_finite(_bits(values), exponent):
        return ""
    bad = (_bits(values) & exponent) == exponent
    first = int(bad.reshape(bad.shape[0], -1).any(axis=1).argmax())
    where = f"layer {feature_set.layers[first]}" if spec.dims[0] == "layer" else f"{spec.dims[0]} {first}"
    return (
        f"{spec.name}, {where}: {int(bad[first].sum())} values of {tuple(bad[first].shape)} are inf or NaN "
        f"in {spec.dtype}; extract with --dtype {'float32' if spec.dtype == 'bfloat16' else 'bfloat16'}"
    )


def _all_finite(bits: Bits, exponent: int) -> bool:
    """Whether no value has all exponent bits set: by the largest bit patterns of positive and of negative
    values, block by block (11 GB/s, where masks of the whole array reach 0.7)."""
    flat = bits.reshape(-1)
    signed = flat.view(np.dtype(f"i{flat.itemsize}"))
    sign = 1 << (8 * flat.itemsize - 1)
    for start in range(0, len(flat), FINITE_BLOCK):
        stop = start + FINITE_BLOCK
        if signed[start:stop].max() >= exponent or flat[start:stop].max() >= (exponent | sign):
            return False
    return True


def _bits(values: torch.Tensor) -> Bits:
    """The bit patterns of a float tensor, as unsigned integers of its width."""
    unsigned = torch.uint32 if values.dtype.itemsize == 4 else torch.uint16
    bits: Bits = values.contiguous().view(unsigned).numpy()
    return bits


@dataclass(slots=True)
class _OpenShard:
    number: int
    writers: Mapping[str, ShardWriter]
    rows: list[IndexRow]

    @property
    def used(self) -> int:
        return sum(row.status == "ok" for row in self.rows)


class SetWriter:
    """Appends batches of clips to one feature set of a cache that this process holds.

    As a context manager it seals the shard in hand on a normal exit; after an exception the shard stays
    open with its journal, and the next writer of the set continues behind the last committed batch.
    """

    def __init__(self, root: Path, feature_set: FeatureSet) -> None:
        self.root = root
        self.feature_set = feature_set
        create_arrays(root, feature_set)
        self._open: _OpenShard | None = None
        self._failed: set[tuple[str, str, str]] | None = None
        self._sync = BackgroundSync()
        self._resume()

    @property
    def unsealed_rows(self) -> Sequence[IndexRow]:
        """Rows committed to the journal and not yet visible to readers."""
        return tuple(self._open.rows) if self._open else ()

    def append(self, batch: Sequence[ClipFeatures], failures: Sequence[Failure] = ()) -> list[Failure]:
        """Commit a batch. Features that are not finite or misshapen are refused, recorded and returned."""
        refused: list[Failure] = []
        remaining = list(batch)
        lost = [row for row in map(_failed_row, failures) if row.clip_id and self._is_news(row)]
        while remaining or lost:
            shard = self._shard()
            room = self.feature_set.rows_per_shard - shard.used
            now, remaining = remaining[:room], remaining[room:]
            refused += self._commit(shard, now, lost)
            lost = []
            if shard.used == self.feature_set.rows_per_shard:
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
            for writer in self._open.writers.values() if self._open else ():
                writer.close()
            self._sync.close()

    def _is_news(self, row: IndexRow) -> bool:
        """Whether this failure is not what the index says of the clip already."""
        if self._failed is None:
            earlier = SetIndex(self.root, self.feature_set.name).failed.values()
            self._failed = {(old.clip_id, old.stage, old.reason) for old in (*earlier, *self.unsealed_rows)}
        return (row.clip_id, row.stage, row.reason) not in self._failed

    # -- one batch ---------------------------------------------------------------------------------

    def _commit(
        self, shard: _OpenShard, batch: Sequence[ClipFeatures], lost: Sequence[IndexRow]
    ) -> list[Failure]:
        refused: list[Failure] = []
        rows = list(lost)
        chunks: dict[str, list[ChunkEntry]] = {name: [] for name in shard.writers}
        used = shard.used
        for features in batch:
            if problem := clip_problem(features, self.feature_set):
                failure = Failure(
                    video="", stage=self.feature_set.kind, reason=problem, clip_id=features.clip_id
                )
                refused.append(failure)
                if self._is_news(_failed_row(failure)):
                    rows.append(_failed_row(failure))
                continue
            stored = prepared(features, self.feature_set)
            self._write_clip(shard, stored.arrays, used, chunks)
            rows.append(self._ok_row(stored.as_read, shard.number, used))
            used += 1
        for writer in shard.writers.values():
            writer.begin_flush()
        for writer in shard.writers.values():
            writer.end_flush()
        self._journal({"rows": [asdict(row) for row in rows], "chunks": chunks})
        shard.rows.extend(rows)
        return refused

    def _write_clip(
        self,
        shard: _OpenShard,
        arrays: Mapping[str, torch.Tensor],
        slot: int,
        chunks: dict[str, list[ChunkEntry]],
    ) -> None:
        for name, writer in shard.writers.items():
            spec = self.feature_set.arrays[name]
            parts = list(blocks(arrays[name], spec))
            numbers = [chunk_number(spec.chunk_grid, slot, position) for position, _ in parts]
            chunks[name] += writer.append_all(numbers, [raw for _, raw in parts])

    def _ok_row(self, features: ClipFeatures, shard: int, slot: int) -> IndexRow:
        return IndexRow(
            clip_id=features.clip_id,
            status="ok",
            row=shard * self.feature_set.rows_per_shard + slot,
            shard=shard,
            token_count=features.token_count,
            prompt_token_count=features.prompt_token_count,
            token_ids=features.token_ids,
            generated_text=features.generated_text,
            checksum=features_checksum(features, self.feature_set),
        )

    # -- one shard ---------------------------------------------------------------------------------

    def _shard(self) -> _OpenShard:
        if self._open is None:
            number = next_number(index_dir(self.root, self.feature_set.name))
            self._journal({"shard": number, "fingerprint": self.feature_set.fingerprint})
            self._open = _OpenShard(number, self._writers(number, {}), [])
        return self._open

    def _writers(self, number: int, sizes: Mapping[str, int]) -> dict[str, ShardWriter]:
        return {
            name: ShardWriter(
                self._shard_file(number, spec),
                num_chunks=self.feature_set.rows_per_shard * math.prod(spec.chunk_grid),
                sync=self._sync,
                size=sizes.get(name, 0),
            )
            for name, spec in self.feature_set.arrays.items()
        }

    def _shard_file(self, number: int, spec: ArraySpec) -> Path:
        return shard_file(self.root, self.feature_set.name, spec.name, shard=number, rank=1 + len(spec.shape))

    def _seal(self) -> None:
        shard = self._open
        if shard is None:
            return
        for writer in shard.writers.values():
            writer.begin_seal()
        for name, writer in shard.writers.items():
            writer.end_seal()
            grow(self.root, self.feature_set.name, name, (shard.number + 1) * self.feature_set.rows_per_shard)
        self._publish(shard.number, shard.rows)

    def _publish(self, number: int, rows: Sequence[IndexRow]) -> None:
        write_table(index_file(self.root, self.feature_set.name, number), rows, INDEX_SCHEMA)
        join_index_files(index_dir(self.root, self.feature_set.name))
        remove(journal_file(self.root, self.feature_set.name))
        self._open = None

    # -- the journal -------------------------------------------------------------------------------

    def _journal(self, record: Mapping[str, Any]) -> None:
        append_line(journal_file(self.root, self.feature_set.name), record)

    def _resume(self) -> None:
        lines = read_lines(journal_file(self.root, self.feature_set.name))
        if not lines:
            return
        number, batches = int(lines[0]["shard"]), lines[1:]
        rows = [_index_row(row) for line in batches for row in line["rows"]]
        if number < next_number(index_dir(self.root, self.feature_set.name)):
            join_index_files(index_dir(self.root, self.feature_set.name))
            remove(journal_file(self.root, self.feature_set.name))
            return
        self._open = _OpenShard(number, self._reopened(number, batches), rows)
        if self._open.used == self.feature_set.rows_per_shard:
            self._seal()

    def _reopened(self, number: int, batches: Sequence[Mapping[str, Any]]) -> dict[str, ShardWriter]:
        """Writers of a shard left open, behind its last committed chunk.

        A run killed while sealing has renamed some arrays already: their bytes are taken back.
        """
        entries = {
            name: [(int(n), int(at), int(size)) for line in batches for n, at, size in line["chunks"][name]]
            for name in self.feature_set.arrays
        }
        sizes = {
            name: max((at + size for _, at, size in chunks), default=0) for name, chunks in entries.items()
        }
        for spec in self.feature_set.arrays.values():
            sealed = self._shard_file(number, spec)
            if sealed.exists():
                with explained_os_errors("continue", sealed):
                    sealed.replace(sealed.with_name(sealed.name + ".partial"))
        writers = self._writers(number, sizes)
        for name, writer in writers.items():
            writer.adopt(entries[name])
        return writers


def _failed_row(failure: Failure) -> IndexRow:
    return IndexRow(clip_id=failure.clip_id, status="failed", stage=failure.stage, reason=failure.reason)


def _index_row(record: Mapping[str, Any]) -> IndexRow:
    return IndexRow(**{**record, "token_ids": tuple(record["token_ids"])})
