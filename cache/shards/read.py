"""One array of a feature set: clips gathered from its mapped shards into a batch tensor, in one copy.

Where each inner chunk goes is planned once for all batches that read the same part; a clip then costs a
look into the shard's index and a memory copy for every chunk, without the interpreter's lock.
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

Rows = npt.NDArray[np.int64]
"""Places of clips on the clip axis."""

Slices = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """What of each clip is read: places on the layer axis, tokens and windows from the first; None: all."""

    layers: tuple[int, ...] | None = None
    tokens: int | None = None
    windows: int | None = None

    def indices(self, spec: ArraySpec) -> tuple[Sequence[int], ...]:
        """Places read on every axis of a clip, in order."""
        chosen: Mapping[str, Sequence[int] | None] = {
            "layer": self.layers,
            "token": None if self.tokens is None else range(self.tokens),
            "window": None if self.windows is None else range(self.windows),
        }
        return tuple(
            range(size) if (places := chosen.get(dim)) is None else places
            for dim, size in zip(spec.dims, spec.shape, strict=True)
        )

    def shape(self, spec: ArraySpec) -> tuple[int, ...]:
        return tuple(map(len, self.indices(spec)))


@dataclass(frozen=True, slots=True)
class Move:
    """One copy: bytes `source` of an inner chunk to bytes `target` of the clip."""

    chunk: int
    source: Slices
    target: Slices


class MappedArray:
    """The shards of one array, mapped when a clip of them is first asked for."""

    def __init__(self, root: Path, feature_set: FeatureSet, spec: ArraySpec) -> None:
        self._root, self._set, self.spec = root, feature_set, spec
        self._chunks_per_clip = math.prod(spec.chunk_grid)
        self._chunk_bytes_shape = byte_shape(spec.chunks, spec)
        self._shards: dict[int, MappedShard] = {}

    def shard(self, number: int) -> MappedShard:
        """Raises CacheError where the shard is missing or damaged."""
        if number not in self._shards:
            rank = 1 + len(self.spec.shape)
            path = shard_file(self._root, self._set.name, self.spec.name, shard=number, rank=rank)
            require_inside(self._root, path)
            num_chunks = self._set.rows_per_shard * self._chunks_per_clip
            self._shards[number] = MappedShard(path, num_chunks=num_chunks, chunk_bytes=self.spec.chunk_bytes)
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
        for place, (number, slot) in enumerate(zip(numbers.tolist(), slots.tolist(), strict=True)):
            try:
                shard = self.shard(number)
                if whole:
                    _copy(shard.chunk(slot), raw[place].reshape(-1))
                else:
                    self._move_all(shard, slot, moves, raw[place])
            except CacheError as error:
                raise CacheError(
                    f"clip {clip_ids[place]!r}, array {self.spec.name}: {error}; restore the shard"
                ) from error

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


def byte_shape(shape: Sequence[int], spec: ArraySpec) -> tuple[int, ...]:
    """A shape with its last axis counted in bytes."""
    return (*shape[:-1], shape[-1] * spec.stored_dtype.itemsize)


@lru_cache(maxsize=16)
def planned_moves(spec: ArraySpec, part: Part) -> tuple[Move, ...]:
    """The copies that put `part` of a clip together: every byte of it is written by exactly one of them."""
    return tuple(_moves(spec, part))


def _moves(spec: ArraySpec, part: Part) -> Iterator[Move]:
    runs = [list(_runs(places, chunk)) for places, chunk in zip(part.indices(spec), spec.chunks, strict=True)]
    for chosen in itertools.product(*runs):
        position = tuple(run.chunk for run in chosen)
        yield Move(
            chunk=int(np.ravel_multi_index(position, spec.chunk_grid)),
            source=_in_bytes([run.source for run in chosen], spec),
            target=_in_bytes([run.target for run in chosen], spec),
        )


@dataclass(frozen=True, slots=True)
class _Run:
    """Neighbouring places of one axis that lie in one chunk."""

    chunk: int
    source: slice
    target: slice


def _runs(places: Sequence[int], chunk: int) -> Iterator[_Run]:
    start = 0
    while start < len(places):
        number, first = divmod(places[start], chunk)
        stop = start + 1
        if isinstance(places, range):
            stop = min(start + chunk - first, len(places))
        while stop < len(places) and places[stop] == places[stop - 1] + 1 and places[stop] % chunk:
            stop += 1
        yield _Run(number, slice(first, first + stop - start), slice(start, stop))
        start = stop


def _in_bytes(slices: Sequence[slice], spec: ArraySpec) -> Slices:
    size, last = spec.stored_dtype.itemsize, slices[-1]
    return (*slices[:-1], slice(last.start * size, last.stop * size))


class ZarrArray:
    """Clips of a compressed array, by zarr-python; the same results and errors as `MappedArray`."""

    def __init__(self, root: Path, feature_set: FeatureSet, spec: ArraySpec) -> None:
        self._root, self._set, self.spec = root, feature_set, spec
        self._opened: zarr.Array[Any] | None = None
        self._found: set[int] = set()

    def gather(self, clip_ids: Sequence[str], rows: Rows, part: Part, out: torch.Tensor) -> None:
        """As `MappedArray.gather`."""
        target = (out.view(torch.uint16) if out.dtype == torch.bfloat16 else out).numpy()
        for clip_id, row, values in zip(clip_ids, rows.tolist(), target, strict=True):
            try:
                self._require_shard(row // self._set.rows_per_shard)
                values[...] = self._read(row, part)
            except CacheError as error:
                raise CacheError(f"clip {clip_id!r}, array {self.spec.name}: {error}") from error
            except (OSError, RuntimeError, ValueError) as error:
                raise CacheError(
                    f"clip {clip_id!r}, array {self.spec.name}: its stored bytes are damaged "
                    f"({' '.join(str(error).split())[:120]}); restore the shard"
                ) from error

    def _read(self, row: int, part: Part) -> np.ndarray[Any, np.dtype[Any]]:
        if self._opened is None or self._opened.shape[0] <= row:
            self._opened = zarr.open_array(array_dir(self._root, self._set.name, self.spec.name), mode="r")
        select: Mapping[str, Any] = {
            "layer": slice(None) if part.layers is None else list(part.layers),
            "token": slice(part.tokens),
            "window": slice(part.windows),
        }
        axes = [select.get(dim, slice(None)) for dim in self.spec.dims]
        return np.asarray(self._opened.oindex[(row, *axes)])

    def _require_shard(self, number: int) -> None:
        """zarr reads a shard that is not there as zeros."""
        if number in self._found:
            return
        rank = 1 + len(self.spec.shape)
        path = shard_file(self._root, self._set.name, self.spec.name, shard=number, rank=rank)
        if not path.is_file():
            raise CacheError(f"shard {str(path)!r} is missing: restore it, or extract into a new cache")
        require_inside(self._root, path)
        self._found.add(number)
