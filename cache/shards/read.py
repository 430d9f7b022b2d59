"""Gathering clips of one array from its shards into a tensor, in one copy.

The target of each inner chunk is planned once for all batches that read the same part. A clip then costs a
look-up in the shard's index and a memory copy for every chunk, without the interpreter's lock.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import zarr

from thinkjepa.cache.disk.files import Bytes, require_inside
from thinkjepa.cache.disk.layout import array_dir, shard_file
from thinkjepa.cache.records import ArraySpec, CacheError, FeatureSet
from thinkjepa.cache.shards.format import MappedShard
from thinkjepa.cache.shards.identity import ShardIdentity

Rows = npt.NDArray[np.int64]
"""Indices of clips on the clip axis."""

Slices = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """The part of each clip that is read: indices on the layer axis, first tokens and windows (None: all).

    `tokens` counts along whichever axis of the array is ragged.
    """

    layers: tuple[int, ...] | None = None
    tokens: int | None = None
    windows: int | None = None

    def indices(self, spec: ArraySpec) -> tuple[Sequence[int], ...]:
        """Indices on every axis of a clip, in order, as a range where they start at 0 without a gap."""
        chosen: Mapping[str, Sequence[int] | None] = {
            "layer": self.layers,
            spec.ragged: None if self.tokens is None else range(self.tokens),
            "window": None if self.windows is None else range(self.windows),
        }
        return tuple(
            range(size) if (indices := chosen.get(dim)) is None else indices
            for dim, size in zip(spec.dims, spec.shape, strict=True)
        )

    def shape(self, spec: ArraySpec) -> tuple[int, ...]:
        """Shape of the part of one clip."""
        return tuple(map(len, self.indices(spec)))


@dataclass(frozen=True, slots=True)
class Move:
    """One copy: bytes `source` of an inner chunk to bytes `target` of the clip."""

    chunk: int
    source: Slices
    target: Slices


class MappedArray:
    """The shards of one array, mapped when a clip of them is first read."""

    def __init__(self, root: Path, feature_set: FeatureSet, spec: ArraySpec) -> None:
        self._root, self._set, self.spec = root, feature_set, spec
        self._chunks_per_clip = math.prod(spec.chunk_grid)
        self._chunk_bytes_shape = (*spec.chunks[:-1], spec.chunks[-1] * spec.stored_dtype.itemsize)
        self._shards: dict[int, MappedShard] = {}

    def shard(self, number: int) -> MappedShard:
        """Raises CacheError where the shard is missing or damaged."""
        if number not in self._shards:
            num_chunks = self._set.rows_per_shard * self._chunks_per_clip
            path = self._path(number)
            shard = MappedShard(path, num_chunks=num_chunks, chunk_bytes=self.spec.chunk_bytes)
            shard.require(ShardIdentity.of(self._set, self.spec.name, number))
            self._shards[number] = shard
        return self._shards[number]

    def gather(self, clip_ids: Sequence[str], rows: Rows, part: Part, out: torch.Tensor) -> None:
        """Copy `part` of the clips in `rows` to `out`, `(clip, *part.shape(spec))` in the stored dtype.

        What was never written is zero. Raises CacheError with the name of a clip whose bytes do not match
        their crc32c.
        """
        raw: Bytes = out.view(torch.uint8).numpy()
        numbers, slots = np.divmod(rows, self._set.rows_per_shard)
        moves = planned_moves(self.spec, part)
        whole = len(moves) == 1 and self._chunks_per_clip == 1 and part.shape(self.spec) == self.spec.chunks
        for position, (number, slot) in enumerate(zip(numbers.tolist(), slots.tolist(), strict=True)):
            try:
                shard = self.shard(number)
                shard.require_clip(slot, clip_ids[position])
                if whole:
                    _copy(shard.chunk(slot), raw[position].reshape(-1))
                else:
                    self._move_all(shard, slot, moves, raw[position])
            except CacheError as error:
                raise CacheError(
                    f"clip {clip_ids[position]!r}, array {self.spec.name}: {error}; restore the shard"
                ) from error

    def _path(self, number: int) -> Path:
        """Raises CacheError where the shard is missing, or outside the cache."""
        path = shard_file(self._root, self._set.name, self.spec, number)
        require_inside(self._root, path)
        if not path.is_file():
            raise CacheError(
                f"shard {str(path)!r} is missing: run the command again if clips were removed meanwhile, "
                "else restore it, or extract into a new cache"
            )
        return path

    def _move_all(self, shard: MappedShard, slot: int, moves: Sequence[Move], target: Bytes) -> None:
        first = slot * self._chunks_per_clip
        for move in moves:
            chunk = shard.chunk(first + move.chunk)
            if chunk is not None:
                chunk = chunk.reshape(self._chunk_bytes_shape)[move.source]
            _copy(chunk, target[move.target])


def _copy(source: Bytes | None, target: Bytes) -> None:
    if source is None:
        target[...] = 0
    else:
        np.copyto(target, source)


@lru_cache(maxsize=16)
def planned_moves(spec: ArraySpec, part: Part) -> tuple[Move, ...]:
    """The copies that put `part` of a clip together: exactly one of them writes each byte."""
    runs = [
        list(_runs(indices, chunk)) for indices, chunk in zip(part.indices(spec), spec.chunks, strict=True)
    ]
    return tuple(
        Move(
            chunk=int(np.ravel_multi_index([run.chunk for run in chosen], spec.chunk_grid)),
            source=_in_bytes([run.source for run in chosen], spec),
            target=_in_bytes([run.target for run in chosen], spec),
        )
        for chosen in itertools.product(*runs)
    )


@dataclass(frozen=True, slots=True)
class _Run:
    """Neighboring indices of one axis that are in one chunk."""

    chunk: int
    source: slice
    target: slice


def _runs(indices: Sequence[int], chunk: int) -> Iterator[_Run]:
    start = 0
    while start < len(indices):
        number, first = divmod(indices[start], chunk)
        stop = start + 1
        if isinstance(indices, range):
            stop = min(start + chunk - first, len(indices))
        while stop < len(indices) and indices[stop] == indices[stop - 1] + 1 and indices[stop] % chunk:
            stop += 1
        yield _Run(number, slice(first, first + stop - start), slice(start, stop))
        start = stop


def _in_bytes(slices: Sequence[slice], spec: ArraySpec) -> Slices:
    size, last = spec.stored_dtype.itemsize, slices[-1]
    return (*slices[:-1], slice(last.start * size, last.stop * size))


class CompressedArray(MappedArray):
    """A compressed array, whose clips zarr-python reads."""

    def __init__(self, root: Path, feature_set: FeatureSet, spec: ArraySpec) -> None:
        super().__init__(root, feature_set, spec)
        self._opened: zarr.Array[Any] | None = None

    def gather(self, clip_ids: Sequence[str], rows: Rows, part: Part, out: torch.Tensor) -> None:
        """Decompress clip by clip. zarr reads a shard that is missing as zeros, so that is checked first."""
        target = (out.view(torch.uint16) if out.dtype == torch.bfloat16 else out).numpy()
        for clip_id, row, values in zip(clip_ids, rows.tolist(), target, strict=True):
            try:
                number, slot = divmod(row, self._set.rows_per_shard)
                self.shard(number).require_clip(slot, clip_id)
                values[...] = self._read(row, part)
            except CacheError as error:
                raise CacheError(f"clip {clip_id!r}, array {self.spec.name}: {error}") from error
            except (OSError, RuntimeError, ValueError) as error:
                raise CacheError(
                    f"clip {clip_id!r}, array {self.spec.name}: its stored bytes are damaged "
                    f"({' '.join(str(error).split())[:120]}); restore the shard"
                ) from error

    def _read(self, row: int, part: Part) -> npt.NDArray[Any]:
        if self._opened is None or self._opened.shape[0] <= row:
            self._opened = zarr.open_array(array_dir(self._root, self._set.name, self.spec.name), mode="r")
        axes: list[Any] = [
            slice(len(indices)) if isinstance(indices, range) else list(indices)
            for indices in part.indices(self.spec)
        ]
        return np.asarray(self._opened.oindex[(row, *axes)])
