"""Writing one shard of a feature set by one process: batches are checked, appended, journaled and sealed.

Commit order: payload, then journal line (a killed run continues after it), then the sealed array files, and
last the index file that makes the clips visible. A sealed shard never changes. Different processes may write
different shards of a set at once. The lock on the journal keeps two from writing the same one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from thinkjepa.cache.disk.files import (
    BackgroundSync,
    checksum,
    explained_os_errors,
    remove_file,
    require_inside,
)
from thinkjepa.cache.disk.layout import index_file, journal_file, shard_file
from thinkjepa.cache.disk.lines import LineFile
from thinkjepa.cache.disk.lock import check_holder
from thinkjepa.cache.records import (
    POSITIONS,
    ArraySpec,
    CacheError,
    ClipFeatures,
    Failure,
    FeatureSet,
    IndexRow,
    length_of,
)
from thinkjepa.cache.shards.assignment import is_visible
from thinkjepa.cache.shards.encoding import blocks, prepared
from thinkjepa.cache.shards.format import ChunkEntry, MappedShard, ShardWriter, chunk_number
from thinkjepa.cache.shards.identity import ShardIdentity
from thinkjepa.cache.shards.metadata import grow
from thinkjepa.cache.tables.index import SetIndex
from thinkjepa.cache.tables.parquet import INDEX_SCHEMA, write_table

NOT_FINITE_BITS = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80, torch.float32: 0x7F800000}
"""Exponent bits that are all ones in inf and NaN. Testing them needs no float conversion."""

ENTRIES = {
    "token": ("tokens", "use fewer --thinker-frames or a lower --thinker-size, or --keep without tokens"),
    "slot": ("slots", "use fewer --slot-segments or a lower --thinker-size"),
    "text": ("text tokens", "use a shorter --prompt or fewer --max-new-tokens"),
}
"""What lies along a ragged axis, and the ways to have less of it."""

FINITE_BLOCK = 1 << 18
"""Values tested at a time: 512 KB of float16 stay in the cache between the two passes."""

Bits = npt.NDArray[Any]


def clip_problem(features: ClipFeatures, feature_set: FeatureSet) -> str:
    """The fault of features in words, or an empty string: missing, wrong shape or dtype, inf or NaN."""
    for name, spec in feature_set.given_arrays.items():
        values = features.arrays.get(name)
        if values is None:
            return f"{name} is missing"
        ragged = spec.dims.index(spec.ragged) if spec.ragged else None
        expected = tuple(values.shape[i] if i == ragged else size for i, size in enumerate(spec.shape))
        if tuple(values.shape) != expected or values.dtype != spec.torch_dtype:
            return f"{name} is {values.dtype} {tuple(values.shape)}, the set holds {spec.dtype} {spec.shape}"
        if ragged is not None and (problem := _length_problem(values.shape[ragged], spec, features)):
            return problem
        if problem := _not_finite(values, spec, feature_set):
            return problem
    return ""


def _length_problem(length: int, spec: ArraySpec, features: ClipFeatures) -> str:
    """The fault of a length along the ragged axis in words, or an empty string."""
    capacity, own = spec.shape[spec.dims.index(spec.ragged)], length_of(features, spec)
    entries, remedy = ENTRIES[spec.ragged]
    if length > capacity:
        return f"{spec.name} has {length} {entries}, the cache holds at most {capacity}: {remedy}"
    return "" if length == own else f"{spec.name} has {length} {entries}, the clip {own}"


def features_checksum(features: ClipFeatures, feature_set: FeatureSet) -> str:
    """crc32c of all arrays' raw bytes in the order of their names, as in the index."""
    return checksum(
        features.arrays[name].contiguous().view(torch.uint8).numpy() for name in feature_set.given_arrays
    )


def _not_finite(values: torch.Tensor, spec: ArraySpec, feature_set: FeatureSet) -> str:
    exponent = NOT_FINITE_BITS.get(values.dtype)
    if exponent is None or spec.name in POSITIONS or _all_finite(_bits(values), exponent):
        return ""
    bad = (_bits(values) & exponent) == exponent
    first = int(bad.reshape(bad.shape[0], -1).any(axis=1).argmax())
    where = f"layer {feature_set.layers[first]}" if spec.dims[0] == "layer" else f"{spec.dims[0]} {first}"
    return (
        f"{spec.name}, {where}: {int(bad[first].sum())} values of {tuple(bad[first].shape)} are inf or NaN "
        f"in {spec.dtype}; extract with --dtype {'float32' if spec.dtype == 'bfloat16' else 'bfloat16'}"
    )


def _all_finite(bits: Bits, exponent: int) -> bool:
    """True if no value has all exponent bits set.

    It compares the largest bit patterns of positive and of negative values, block by block: 11 GB/s, where
    masks of the whole array reach 0.7.
    """
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


PATIENCE_S = 300.0
"""Wait for the last writer of a shard: a process that was asked to stop finishes its batch first."""


class OpenShard:
    """A shard that this process writes, after the batches that an interrupted run committed to it.

    As a context manager it seals the shard on a normal exit. After an exception the shard stays open with its
    journal, and the process that opens it next continues after the last committed batch.
    """

    def __init__(self, root: Path, feature_set: FeatureSet, number: int, *, token: str = "") -> None:
        """Open the shard for the session with `token`, empty where this process has the cache locked.

        Raises CacheError where another process writes the shard, or the session has ended.
        """
        self.root, self.feature_set, self.number = root, feature_set, number
        self._token = token
        self._sync = BackgroundSync()
        self._writers: dict[str, ShardWriter] = {}
        self._journal = LineFile(journal_file(root, feature_set.name, number), patience_s=PATIENCE_S)
        self._rows: list[IndexRow] = []
        try:
            check_holder(root, token)
            self.is_sealed = is_visible(root, feature_set.name, number)
            """Whether another process sealed it before: then there is nothing left to do."""
            if not self.is_sealed:
                self._resume()
        except BaseException:
            self.close()
            raise

    @property
    def rows(self) -> Sequence[IndexRow]:
        """Rows committed to the journal, not yet visible to readers."""
        return tuple(self._rows)

    @property
    def processed(self) -> frozenset[str]:
        """Clips with features or a failure in the shard."""
        return frozenset(row.clip_id for row in self._rows)

    @property
    def used(self) -> int:
        """Clips with features in the shard."""
        return sum(row.status == "ok" for row in self._rows)

    @property
    def is_full(self) -> bool:
        """True if no further clip fits in the shard."""
        return self.used >= self.feature_set.rows_per_shard

    def append(self, batch: Sequence[ClipFeatures], failures: Sequence[Failure] = ()) -> list[Failure]:
        """Commit a batch. Features that are not finite or misshapen are refused, recorded and returned."""
        if len(batch) > self.feature_set.rows_per_shard - self.used:
            raise ValueError(f"{len(batch)} clips do not fit in shard {self.number}, which holds {self.used}")
        rows = [row for row in map(_failed_row, failures) if row.clip_id and self._is_new_failure(row)]
        refused: list[Failure] = []
        chunks: dict[str, list[ChunkEntry]] = {name: [] for name in self._writers}
        used = self.used
        for features in batch:
            if problem := clip_problem(features, self.feature_set):
                refused.append(Failure("", self.feature_set.kind, problem, clip_id=features.clip_id))
                if self._is_new_failure(_failed_row(refused[-1])):
                    rows.append(_failed_row(refused[-1]))
                continue
            stored = prepared(features, self.feature_set)
            self._write_clip(stored.arrays, used, chunks)
            rows.append(self._ok_row(stored.as_read, used))
            used += 1
        if rows:
            self._commit(rows, chunks)
        return refused

    def seal(self) -> None:
        """Make the clips visible."""
        if not self.is_sealed:
            check_holder(self.root, self._token)
            for name, writer in self._writers.items():
                writer.begin_seal(self._identity(self.feature_set.arrays[name]))
            num_rows = (self.number + 1) * self.feature_set.rows_per_shard
            for name, writer in self._writers.items():
                writer.end_seal()
                grow(self.root, self.feature_set.name, name, num_rows)
            write_table(index_file(self.root, self.feature_set.name, self.number), self._rows, INDEX_SCHEMA)
        remove_file(self._journal.path)  # that of a shard that was sealed before is new, without a line
        self._journal.close()

    def discard(self) -> None:
        """Remove the shard, to which nothing was committed: its number is free again."""
        assert not self._rows
        for spec in self.feature_set.arrays.values():
            self._writers[spec.name].close()
            remove_file(_partial(self._file(spec)))
        remove_file(self._journal.path)
        self.close()

    def close(self) -> None:
        """Close the files. Committed batches stay for the next process."""
        for writer in self._writers.values():
            writer.close()
        self._sync.close()
        self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.seal()
        finally:
            self.close()

    def _commit(self, rows: Sequence[IndexRow], chunks: Mapping[str, Sequence[ChunkEntry]]) -> None:
        for writer in self._writers.values():
            writer.begin_flush()
        for writer in self._writers.values():
            writer.end_flush()
        check_holder(self.root, self._token)
        self._journal.append([{"rows": [asdict(row) for row in rows], "chunks": chunks}])
        self._rows.extend(rows)

    def _write_clip(
        self, arrays: Mapping[str, torch.Tensor], slot: int, chunks: dict[str, list[ChunkEntry]]
    ) -> None:
        for name, writer in self._writers.items():
            spec = self.feature_set.arrays[name]
            parts = list(blocks(arrays[name], spec))
            numbers = [chunk_number(spec.chunk_grid, slot, position) for position, _ in parts]
            chunks[name] += writer.append_all(numbers, [raw for _, raw in parts])

    def _ok_row(self, features: ClipFeatures, slot: int) -> IndexRow:
        return IndexRow(
            clip_id=features.clip_id,
            status="ok",
            row=self.number * self.feature_set.rows_per_shard + slot,
            shard=self.number,
            token_count=features.token_count,
            slot_count=features.slot_count,
            text_count=features.text_count,
            frame_width_px=features.frame_width_px,
            frame_height_px=features.frame_height_px,
            prompt_token_count=features.prompt_token_count,
            token_ids=features.token_ids,
            generated_text=features.generated_text,
            checksum=features_checksum(features, self.feature_set),
        )

    def _is_new_failure(self, row: IndexRow) -> bool:
        """True if neither the index nor the shard has this failure yet."""
        known = (self._known_failures.get(row.clip_id), *self._rows)
        return all(old is None or _failure_of(old) != _failure_of(row) for old in known)

    @cached_property
    def _known_failures(self) -> Mapping[str, IndexRow]:
        return SetIndex(self.root, self.feature_set.name).failed

    def _resume(self) -> None:
        """Continue after the journal. Its first line is written only where no file of the shard is."""
        lines = self._journal.resume()
        first = {"shard": self.number, "fingerprint": self.feature_set.fingerprint}
        if not lines:
            for spec in self.feature_set.arrays.values():
                remove_file(self._file(spec))
                remove_file(_partial(self._file(spec)))
            self._journal.append([first])
            self._open_writers({})
            return
        if lines[0] != first:
            raise CacheError(f"{str(self._journal.path)!r} is the journal of another shard: put back its own")
        self._rows = journal_rows(lines)
        self._reopen(lines[1:])

    def _reopen(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Open writers after the last committed chunk.

        A run killed while sealing has renamed some arrays already: they are renamed back. A file with other
        clips is none of them.
        """
        entries = {
            name: [(int(n), int(at), int(size)) for line in batches for n, at, size in line["chunks"][name]]
            for name in self.feature_set.arrays
        }
        for spec in self.feature_set.arrays.values():
            sealed = self._file(spec)
            if sealed.exists() and not self._is_own(sealed, spec):
                remove_file(sealed)
            elif sealed.exists():
                with explained_os_errors("continue", sealed):
                    sealed.replace(_partial(sealed))
        self._open_writers(
            {name: max((at + size for _, at, size in chunks), default=0) for name, chunks in entries.items()}
        )
        for name, writer in self._writers.items():
            writer.adopt(entries[name])

    def _open_writers(self, sizes: Mapping[str, int]) -> None:
        for name, spec in self.feature_set.arrays.items():
            self._writers[name] = ShardWriter(
                self._file(spec),
                num_chunks=self._num_chunks(spec),
                sync=self._sync,
                size=sizes.get(name, 0),
            )

    def _num_chunks(self, spec: ArraySpec) -> int:
        return self.feature_set.rows_per_shard * math.prod(spec.chunk_grid)

    def _identity(self, spec: ArraySpec) -> ShardIdentity:
        clips = [row.clip_id for row in self._rows if row.status == "ok"]
        return ShardIdentity.of(self.feature_set, spec.name, self.number, clips=clips)

    def _is_own(self, sealed: Path, spec: ArraySpec) -> bool:
        """True unless a sealed file says that it has other clips. Its chunks have checksums of their own."""
        try:
            shard = MappedShard(sealed, num_chunks=self._num_chunks(spec), chunk_bytes=spec.chunk_bytes)
        except CacheError:
            return True
        return shard.identity in (None, self._identity(spec))

    def _file(self, spec: ArraySpec) -> Path:
        path = shard_file(self.root, self.feature_set.name, spec, self.number)
        require_inside(self.root, _partial(path))
        return path


def _partial(sealed: Path) -> Path:
    """The file of a shard that is not sealed yet."""
    return sealed.with_name(sealed.name + ".partial")


def _failed_row(failure: Failure) -> IndexRow:
    return IndexRow(clip_id=failure.clip_id, status="failed", stage=failure.stage, reason=failure.reason)


def _failure_of(row: IndexRow) -> tuple[str, str, str]:
    return row.clip_id, row.stage, row.reason


def journal_rows(lines: Sequence[Mapping[str, Any]]) -> list[IndexRow]:
    """The index rows in the lines of a journal, after its first line, which names the shard."""
    records = [record for line in lines[1:] for record in line["rows"]]
    return [IndexRow(**{**record, "token_ids": tuple(record["token_ids"])}) for record in records]
