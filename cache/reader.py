"""What a batch is read into, and what comes out: tensors of several arrays, and how long each clip is.

Reading a cache: sealed shards mapped into memory and copied once, into the batch.

Reading needs no lock: sealed shards never change, and the index names only sealed ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from thinkjepa.cache.disk.layout import failures_file
from thinkjepa.cache.records import SCALE, ArraySpec, CacheError, Failure, FeatureSet, Kind
from thinkjepa.cache.shards.encoding import restored
from thinkjepa.cache.shards.format import MappedShard
from thinkjepa.cache.shards.read import MappedArray, Part, Rows, ZarrArray
from thinkjepa.cache.tables.catalog import choose_set, find_set, read_catalog
from thinkjepa.cache.tables.clips import ClipSelection, ClipTable
from thinkjepa.cache.tables.index import SetIndex
from thinkjepa.cache.tables.labels import LabelTable
from thinkjepa.cache.tables.parquet import FAILURES_SCHEMA, read_table

ArrayKey = tuple[str, str]
"""Name of a feature set and of one of its arrays."""


@dataclass(frozen=True, slots=True)
class FeatureBatch:
    """Features of the same clips, in the same order, from one or several sets."""

    arrays: Mapping[ArrayKey, torch.Tensor]
    """`(clip, *array shape)`; the layer axis as asked for, the token axis as long as the longest clip."""
    lengths: Mapping[str, torch.Tensor]
    """Tokens of each clip by set, int64 `(clip,)`; for sets of which a ragged array was asked for."""

    @property
    def nbytes(self) -> int:
        return sum(values.nbytes for values in self.arrays.values())


class BatchBuffers:
    """Memory that batch after batch is read into; pinned where a GPU will fetch it from there.

    A batch is a view of it: the next batch that is read into the same buffers overwrites the last one.
    """

    def __init__(self, *, pinned: bool | None = None) -> None:
        """`pinned`: None for pinned where CUDA is there."""
        self._pinned = torch.cuda.is_available() if pinned is None else pinned
        self._storages: dict[ArrayKey, torch.Tensor] = {}

    def tensor(self, key: ArrayKey, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor in the memory kept for `key`, which grows to the largest batch."""
        needed_bytes = math.prod(shape) * dtype.itemsize
        storage = self._storages.get(key)
        if storage is None or storage.numel() < needed_bytes:
            storage = torch.empty(needed_bytes, dtype=torch.uint8, pin_memory=self._pinned)
            self._storages[key] = storage
        return storage[:needed_bytes].view(dtype).view(shape)


class FeatureCache:
    """A cache opened for reading. Everything is read on first use, so that it travels to worker processes."""

    def __init__(self, path: Path, feature_sets: Mapping[str, FeatureSet]) -> None:
        self.path = path
        self.feature_sets = dict(feature_sets)
        self._arrays: dict[ArrayKey, MappedArray] = {}
        self._compressed: dict[ArrayKey, ZarrArray] = {}
        self._indexes: dict[str, SetIndex] = {}

    @classmethod
    def open(cls, path: str | Path) -> FeatureCache:
        """Raises CacheError where `path` is no cache or one of another schema."""
        return cls(Path(path), read_catalog(Path(path)))

    def __getstate__(self) -> dict[str, Any]:
        kept = {"path": self.path, "feature_sets": self.feature_sets}
        return {**kept, "_arrays": {}, "_compressed": {}, "_indexes": {}}

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
        self,
        set_name: str,
        array: str,
        clip_ids: Sequence[str],
        *,
        windows: int | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Features of clips in the given order, `(len(clip_ids), *array shape)` in the set's dtype.

        Of an array with a window axis the first `windows` are read, where that is given. The ragged `tokens`
        and `token_kind` come at full capacity, zero behind each clip's token count
        (`index(set_name)[clip_id].token_count`). `out` receives the values where given. Raises
        CacheError for a clip that has no features, or whose stored bytes do not match their crc32c.
        """
        spec = self._spec(set_name, array)
        part = Part(windows=windows if "window" in spec.dims else None)
        shape = (len(clip_ids), *part.shape(spec))
        if out is None:
            out = torch.empty(shape, dtype=spec.torch_dtype)
        if tuple(out.shape) != shape or out.dtype != spec.torch_dtype or not out.is_contiguous():
            raise ValueError(
                f"out is {out.dtype} {tuple(out.shape)}, needed is {spec.dtype} {shape}, contiguous"
            )
        self._gather(set_name, spec, clip_ids, self._rows(set_name, clip_ids), part, out)
        return out

    def read_many(
        self,
        clip_ids: Sequence[str],
        arrays: Sequence[ArrayKey],
        *,
        layers: Sequence[int] | None = None,
        windows: int | None = None,
        out: BatchBuffers | None = None,
    ) -> FeatureBatch:
        """Several arrays, of one set or several, of the same clips: one copy from the map into the batch.

        `layers` are layer ids as in `FeatureSet.layers`: of arrays with a layer axis only these are read,
        in that order; of arrays with a window axis the first `windows`. Ragged arrays are as long as the
        longest clip of the batch, zero behind each one's end. With `out` the batch lies in its memory until
        the next one is read into it. Raises CacheError as `read` does, and for a layer or an array that a
        set does not hold.
        """
        buffers = out or BatchBuffers(pinned=False)
        rows = {name: self._rows(name, clip_ids) for name in dict.fromkeys(name for name, _ in arrays)}
        lengths: dict[str, torch.Tensor] = {}
        values: dict[ArrayKey, torch.Tensor] = {}
        for set_name, array in arrays:
            spec = self._spec(set_name, array)
            if "token" in spec.dims and set_name not in lengths:
                lengths[set_name] = torch.from_numpy(self.index(set_name).count_tokens(clip_ids))
            part = Part(
                layers=None if layers is None else self._layer_places(set_name, layers, spec),
                tokens=int(lengths[set_name].max()) if "token" in spec.dims and len(clip_ids) else None,
                windows=windows if "window" in spec.dims else None,
            )
            key = (set_name, array)
            values[key] = buffers.tensor(key, (len(clip_ids), *part.shape(spec)), spec.torch_dtype)
            self._gather(set_name, spec, clip_ids, rows[set_name], part, values[key])
        return FeatureBatch(values, lengths)

    def dask(self, set_name: str, array: str) -> Any:
        """An array as a `dask.array`, `(clip, *array shape)`, clips in the order of the set's index.

        A chunk is a clip; bfloat16 comes as float32; ragged arrays come at full capacity.
        """
        from thinkjepa.cache.lazy import dask_array  # dask takes a second to import

        return dask_array(self, self._set(set_name).name, array)

    def xarray(self) -> Any:
        """All feature sets as an `xarray.DataTree`, a group each, lazy. Needs the extra `xarray`."""
        from thinkjepa.cache.lazy import data_tree

        return data_tree(self)

    def shard_of(self, set_name: str, array: str, clip_id: str) -> tuple[MappedShard, int]:
        """The mapped shard that holds a clip's array, and the clip's place in it. Raises CacheError."""
        row = int(self._rows(set_name, [clip_id])[0])
        number, slot = divmod(row, self._set(set_name).rows_per_shard)
        return self._mapped(set_name, self._spec(set_name, array)).shard(number), slot

    def _rows(self, set_name: str, clip_ids: Sequence[str]) -> Rows:
        rows = self.index(set_name).locate_all(clip_ids)
        if (rows < 0).any():
            clip_id = clip_ids[int((rows < 0).argmax())]
            raise CacheError(f"clip {clip_id!r} has no features in {set_name}: run thinkjepa-cache extract")
        return rows

    def _layer_places(self, set_name: str, layers: Sequence[int], spec: ArraySpec) -> tuple[int, ...] | None:
        if "layer" not in spec.dims:
            return None
        held = self._set(set_name).layers
        if missing := [layer for layer in layers if layer not in held]:
            raise CacheError(f"{set_name} holds no layer {missing[0]}; it holds {held}")
        return tuple(held.index(layer) for layer in layers)

    def _gather(
        self,
        set_name: str,
        spec: ArraySpec,
        clip_ids: Sequence[str],
        rows: Rows,
        part: Part,
        out: torch.Tensor,
    ) -> None:
        """The values of clips: as they are stored, or restored from float8 and scales."""
        source = self._zarr(set_name, spec) if spec.codec != "none" else self._mapped(set_name, spec)
        if spec.encoding == "plain":
            source.gather(clip_ids, rows, part, out)
            return
        scales = self._spec(set_name, spec.name + SCALE)
        for place in range(len(clip_ids)):
            one, row = clip_ids[place : place + 1], rows[place : place + 1]
            codes = torch.empty((1, *part.shape(spec)), dtype=spec.stored_dtype)
            scale = torch.empty((1, *part.shape(scales)), dtype=scales.stored_dtype)
            source.gather(one, row, part, codes)
            self._gather(set_name, scales, one, row, part, scale)
            out[place] = restored(codes[0], scale[0], spec.torch_dtype)

    def _zarr(self, set_name: str, spec: ArraySpec) -> ZarrArray:
        key = (set_name, spec.name)
        if key not in self._compressed:
            self._compressed[key] = ZarrArray(self.path, self._set(set_name), spec)
        return self._compressed[key]

    def _mapped(self, set_name: str, spec: ArraySpec) -> MappedArray:
        key = (set_name, spec.name)
        if key not in self._arrays:
            self._arrays[key] = MappedArray(self.path, self._set(set_name), spec)
        return self._arrays[key]

    def _spec(self, set_name: str, array: str) -> ArraySpec:
        arrays = self._set(set_name).arrays
        if array not in arrays:
            raise CacheError(f"{set_name} holds no array {array!r}; it holds: {', '.join(arrays)}")
        return arrays[array]

    def _set(self, name: str) -> FeatureSet:
        if name not in self.feature_sets:
            known = ", ".join(sorted(self.feature_sets)) or "none"
            raise CacheError(f"{str(self.path)!r} holds no feature set {name!r}; it holds: {known}")
        return self.feature_sets[name]
