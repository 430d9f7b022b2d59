"""Reading a cache: sealed shards mapped into memory and copied once, into the batch.

Reading needs no lock: sealed shards never change, and the index names only sealed ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thinkjepa.cache.catalog import choose_set, find_set, read_catalog
from thinkjepa.cache.clips import ClipSelection, ClipTable
from thinkjepa.cache.errors import CacheError
from thinkjepa.cache.index import SetIndex
from thinkjepa.cache.labels import LabelTable
from thinkjepa.cache.layout import failures_file, shard_file
from thinkjepa.cache.records import ArraySpec, Failure, FeatureSet, Kind
from thinkjepa.cache.shard import Bytes, MappedShard, chunk_number
from thinkjepa.cache.tables import FAILURES_SCHEMA, read_table


class FeatureCache:
    """A cache opened for reading. Everything is read on first use, so that it travels to worker processes."""

    def __init__(self, path: Path, feature_sets: Mapping[str, FeatureSet]) -> None:
        self.path = path
        self.feature_sets = dict(feature_sets)
        self._shards: dict[tuple[str, str, int], MappedShard] = {}
        self._indexes: dict[str, SetIndex] = {}

    @classmethod
    def open(cls, path: Path) -> FeatureCache:
        """Raises CacheError where `path` is no cache or one of another schema."""
        return cls(path, read_catalog(path))

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "feature_sets": self.feature_sets, "_shards": {}, "_indexes": {}}

    @cached_property
    def clips(self) -> ClipTable:
        """Every planned clip, with features or without."""
        return ClipTable(self.path)

    @cached_property
    def failures(self) -> list[Failure]:
        """Videos and clips without features, of the last run that met each video."""
        path = failures_file(self.path)
        return read_table(path, Failure, FAILURES_SCHEMA) if path.exists() else []

    @cached_property
    def labels(self) -> LabelTable:
        """Hand labels of the videos that have them."""
        return LabelTable(self.path)

    def index(self, set_name: str) -> SetIndex:
        """Index rows of a feature set by clip_id."""
        if set_name not in self._indexes:
            self._indexes[set_name] = SetIndex(self.path, self._set(set_name).name)
        return self._indexes[set_name]

    def find_set(self, selector: str) -> FeatureSet:
        """The one set, of any kind, that a selector names."""
        return find_set(self.feature_sets, selector)

    def choose_set(self, kind: Kind, selectors: Sequence[str] = ()) -> FeatureSet:
        """The one set of `kind` named by a selector (name or its beginning), or the only one there is."""
        return choose_set(self.feature_sets, kind, tuple(selectors))

    def select(self, *set_names: str) -> ClipSelection:
        """Clips that have features in every named set, sorted by clip_id.

        A set's features belong to the clip rows whose frames were chosen by the set's own sampling, so
        sets of different frames never meet.
        """
        chosen = self.clips.all()
        for name in set_names:
            item = self._set(name)
            chosen = self.clips.sampled(item.kind, item.origin["sampling"]["fingerprint"], within=chosen)
            chosen = chosen.where(self.index(name).holds(chosen.clip_ids))
        return chosen.by_clip_id()

    def read(
        self, set_name: str, array: str, clip_ids: Sequence[str], *, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Features of clips in the given order, `(len(clip_ids), *array shape)` in the stored dtype.

        The ragged `tokens` and `token_kind` come at full capacity, zero behind each clip's token count
        (`index(set_name)[clip_id].token_count`). `out` receives the values where given. Raises
        CacheError for a clip that has no features, or whose stored bytes do not match their crc32c.
        """
        feature_set = self._set(set_name)
        spec = feature_set.arrays[array]
        shape = (len(clip_ids), *spec.shape)
        if out is None:
            out = torch.empty(shape, dtype=spec.torch_dtype)
        if tuple(out.shape) != shape or out.dtype != spec.torch_dtype or not out.is_contiguous():
            raise ValueError(
                f"out is {out.dtype} {tuple(out.shape)}, needed is {spec.dtype} {shape}, contiguous"
            )
        for place, clip_id in enumerate(clip_ids):
            self._read_clip(feature_set, spec, clip_id, out[place])
        return out

    def _read_clip(self, feature_set: FeatureSet, spec: ArraySpec, clip_id: str, out: torch.Tensor) -> None:
        shard, slot = self.shard_of(feature_set.name, spec.name, clip_id)
        grid = spec.chunk_grid
        for position in np.ndindex(*grid):
            try:
                raw = shard.chunk(chunk_number(grid, slot, position))
            except CacheError as error:
                raise CacheError(
                    f"clip {clip_id!r}, array {spec.name}: {error}; restore the shard"
                ) from error
            _place_chunk(raw, spec, position, out)

    def shard_of(self, set_name: str, array: str, clip_id: str) -> tuple[MappedShard, int]:
        """The mapped shard that holds a clip's array, and the clip's place in it. Raises CacheError."""
        feature_set = self._set(set_name)
        row = self.index(set_name).locate(clip_id)
        if row is None:
            raise CacheError(f"clip {clip_id!r} has no features in {set_name}: run thinkjepa-cache extract")
        number, slot = divmod(row, feature_set.rows_per_shard)
        return self._shard(feature_set, feature_set.arrays[array], number), slot

    def _shard(self, feature_set: FeatureSet, spec: ArraySpec, number: int) -> MappedShard:
        key = (feature_set.name, spec.name, number)
        if key not in self._shards:
            path = shard_file(self.path, feature_set.name, spec.name, shard=number, rank=1 + len(spec.shape))
            num_chunks = feature_set.rows_per_shard * math.prod(spec.chunk_grid)
            self._shards[key] = MappedShard(path, num_chunks=num_chunks)
        return self._shards[key]

    def _set(self, name: str) -> FeatureSet:
        if name not in self.feature_sets:
            known = ", ".join(sorted(self.feature_sets)) or "none"
            raise CacheError(f"{str(self.path)!r} holds no feature set {name!r}; it holds: {known}")
        return self.feature_sets[name]


def _place_chunk(raw: Bytes | None, spec: ArraySpec, position: tuple[int, ...], out: torch.Tensor) -> None:
    """Copy one inner chunk to its place in the clip's tensor; what was never written is zero."""
    starts = [place * size for place, size in zip(position, spec.chunks, strict=True)]
    stops = [min(s + size, end) for s, size, end in zip(starts, spec.chunks, spec.shape, strict=True)]
    target = out[tuple(slice(start, stop) for start, stop in zip(starts, stops, strict=True))]
    if raw is None:
        target.zero_()
        return
    bits = _as_bits(target)
    values = raw.view(bits.dtype).reshape(spec.chunks)
    bits[...] = values[tuple(slice(0, stop - start) for start, stop in zip(starts, stops, strict=True))]


def _as_bits(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """A writable numpy view of a CPU tensor; bfloat16, which numpy lacks, as uint16."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
