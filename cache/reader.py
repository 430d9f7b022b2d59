"""Reading a cache: clips' features are copied once, from mapped shards into a tensor.

Reading needs no lock: sealed shards never change, the index names only sealed ones, and the tables are kept
open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from thinkjepa.cache.disk.kept import keep_file
from thinkjepa.cache.disk.layout import clips_dir, failures_file, index_dir
from thinkjepa.cache.records import SCALE, ArraySpec, CacheError, Failure, FeatureSet, Kind
from thinkjepa.cache.shards.encoding import restored
from thinkjepa.cache.shards.format import MappedShard
from thinkjepa.cache.shards.read import CompressedArray, MappedArray, Part, Rows
from thinkjepa.cache.tables.catalog import choose_set, find_set, read_catalog
from thinkjepa.cache.tables.clips import ClipSelection, ClipTable
from thinkjepa.cache.tables.index import SetIndex
from thinkjepa.cache.tables.labels import LabelTable
from thinkjepa.cache.tables.parquet import FAILURES_SCHEMA, keep_files, read_kept

ArrayKey = tuple[str, str]
"""Name of a feature set and of one of its arrays."""


class BatchBuffers:
    """Memory that is used again for every batch, pinned where a GPU copies from it.

    A batch is a view of it: the next batch that is read into the same buffers overwrites the last one.
    """

    def __init__(self, *, pinned: bool | None = None) -> None:
        """`pinned`: None pins the memory where CUDA is available."""
        self._pinned = torch.cuda.is_available() if pinned is None else pinned
        self._storages: dict[ArrayKey, torch.Tensor] = {}

    def tensor(self, key: ArrayKey, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialized tensor in the memory kept for `key`, which grows to the largest batch."""
        needed_bytes = math.prod(shape) * dtype.itemsize
        storage = self._storages.get(key)
        if storage is None or storage.numel() < needed_bytes:
            storage = torch.empty(needed_bytes, dtype=torch.uint8, pin_memory=self._pinned)
            self._storages[key] = storage
        return storage[:needed_bytes].view(dtype).view(shape)


class FeatureCache:
    """A cache opened for reading: it shows the clips and rows of its opening, whatever is written meanwhile.

    Everything is read on first use. A pickle holds no open files: it opens the cache anew.
    """

    def __init__(self, path: Path, feature_sets: Mapping[str, FeatureSet]) -> None:
        self.path = path
        self.feature_sets = dict(feature_sets)
        self._open()

    def _open(self) -> None:
        self._arrays: dict[ArrayKey, MappedArray] = {}
        self._indexes: dict[str, SetIndex] = {}
        folders = [clips_dir(self.path), *(index_dir(self.path, name) for name in self.feature_sets)]
        self._kept = {folder: keep_files(folder) for folder in folders}
        self._kept_failures = keep_file(failures_file(self.path))

    @classmethod
    def open(cls, path: str | Path) -> FeatureCache:
        """Open a cache. Raises CacheError where `path` is none, or one of another schema."""
        return cls(Path(path), read_catalog(Path(path)))

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "feature_sets": self.feature_sets}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    @cached_property
    def clips(self) -> ClipTable:
        """Every planned clip, with or without features."""
        return ClipTable(self.path, kept=self._kept[clips_dir(self.path)])

    @cached_property
    def failures(self) -> list[Failure]:
        """Videos and clips without features, of the last run that met each video."""
        file = self._kept_failures
        return [] if file is None else read_kept(file, Failure, FAILURES_SCHEMA)

    @cached_property
    def labels(self) -> LabelTable:
        """Hand labels of the videos that have them."""
        return LabelTable(self.path)

    def index(self, set_name: str) -> SetIndex:
        """Index rows of a feature set by clip_id."""
        if set_name not in self._indexes:
            kept = self._kept[index_dir(self.path, self._set(set_name).name)]
            self._indexes[set_name] = SetIndex(self.path, set_name, kept=kept)
        return self._indexes[set_name]

    def find_set(self, selector: str) -> FeatureSet:
        """The one set, of any kind, that a selector names."""
        return find_set(self.feature_sets, selector)

    def choose_set(self, kind: Kind, selectors: Sequence[str] = ()) -> FeatureSet:
        """The one set of `kind` named by a selector (name or its beginning), or the only filled one."""
        filled = [item.name for item in self.filled_sets(kind)]
        return choose_set(self.feature_sets, kind, tuple(selectors), filled=filled)

    def filled_sets(self, kind: Kind) -> list[FeatureSet]:
        """Sets of a kind with features of any clip: an extraction that failed may leave one without."""
        return [item for item in self.feature_sets.values() if item.kind == kind and self.is_filled(item)]

    def is_filled(self, feature_set: FeatureSet) -> bool:
        """True if the set has features of any clip."""
        return len(self.index(feature_set.name).clip_ids) > 0

    def select(self, *set_names: str) -> ClipSelection:
        """Clips that have features in every named set, sorted by clip_id.

        A set's features belong to the clip rows whose frames were chosen by the set's own sampling, so
        features of different frames are never paired.
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
        layers: Sequence[int] | None = None,
        tokens: int | None = None,
        windows: int | None = None,
        out: torch.Tensor | BatchBuffers | None = None,
    ) -> torch.Tensor:
        """Features of clips in the given order, `(clip, *array shape)` in the set's dtype.

        Of an array with a layer axis only `layers` are read, in that order: ids as in `FeatureSet.layers`. Of
        one with a ragged axis (tokens, slots or text) the first `tokens` entries are read, and of one with a
        window axis the first `windows`. None reads all. Ragged arrays are zero after each clip's own length
        (`index(set_name).count_tokens(clip_ids, axis=...)`). `out` receives the values: a tensor, or buffers
        whose memory is used until the next batch is read into them. Raises CacheError for a clip without
        features, for an array or layer that the set lacks, and where stored bytes do not match their crc32c.
        """
        spec = self._spec(set_name, array)
        rows = self._rows(set_name, clip_ids)
        part = Part(
            layers=None if layers is None else self._layer_positions(set_name, layers, spec),
            tokens=tokens if spec.ragged else None,
            windows=windows if "window" in spec.dims else None,
        )
        shape = (len(clip_ids), *part.shape(spec))
        if isinstance(out, BatchBuffers):
            out = out.tensor((set_name, array), shape, spec.torch_dtype)
        elif out is None:
            out = torch.empty(shape, dtype=spec.torch_dtype)
        elif tuple(out.shape) != shape or out.dtype != spec.torch_dtype or not out.is_contiguous():
            raise ValueError(
                f"out is {out.dtype} {tuple(out.shape)}, needed is {spec.dtype} {shape}, contiguous"
            )
        self._gather(set_name, spec, clip_ids, rows, part, out)
        return out

    def dask(self, set_name: str, array: str) -> Any:
        """An array as a `dask.array`, `(clip, *array shape)`, clips in the order of the set's index.

        A chunk is a clip. Values of bfloat16 come as float32. Ragged arrays come at full capacity.
        """
        return _as_dask(LazyArray(self, self._set(set_name), array))

    def xarray(self) -> Any:
        """All feature sets as an `xarray.DataTree`, a group each, lazy, clips named by their ids.

        Raises CacheError where xarray is not installed.
        """
        try:
            import xarray
        except ImportError as error:
            raise CacheError("xarray is not installed: pip install 'thinkjepa[xarray]'") from error
        groups = {}
        for name, item in self.feature_sets.items():
            arrays = {array: LazyArray(self, item, array) for array in item.arrays}
            variables = {array: (lazy.dims, _as_dask(lazy)) for array, lazy in arrays.items()}
            ids = self.index(name).clip_ids.to_pylist()
            groups[name] = xarray.Dataset(variables, coords={"clip": ids}, attrs={"kind": item.kind})
        return xarray.DataTree.from_dict(groups)

    def shard_of(self, set_name: str, array: str, clip_id: str) -> tuple[MappedShard, int]:
        """The mapped shard of a clip's array, and the clip's position in it. Raises CacheError."""
        row = int(self._rows(set_name, [clip_id])[0])
        number, slot = divmod(row, self._set(set_name).rows_per_shard)
        shard = self._array(set_name, self._spec(set_name, array)).shard(number)
        shard.require_clip(slot, clip_id)
        return shard, slot

    def _rows(self, set_name: str, clip_ids: Sequence[str]) -> Rows:
        rows = self.index(set_name).locate_all(clip_ids)
        if (rows < 0).any():
            clip_id = clip_ids[int((rows < 0).argmax())]
            raise CacheError(f"clip {clip_id!r} has no features in {set_name}: run thinkjepa-cache extract")
        return rows

    def _layer_positions(
        self, set_name: str, layers: Sequence[int], spec: ArraySpec
    ) -> tuple[int, ...] | None:
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
        """Read values as they are stored, or restore them from float8 and scales."""
        source = self._array(set_name, spec)
        if spec.encoding == "plain":
            source.gather(clip_ids, rows, part, out)
            return
        scales = self._spec(set_name, spec.name + SCALE)
        for position in range(len(clip_ids)):
            one, row = clip_ids[position : position + 1], rows[position : position + 1]
            codes = torch.empty((1, *part.shape(spec)), dtype=spec.stored_dtype)
            scale = torch.empty((1, *part.shape(scales)), dtype=scales.stored_dtype)
            source.gather(one, row, part, codes)
            self._gather(set_name, scales, one, row, part, scale)
            out[position] = restored(codes[0], scale[0], spec.torch_dtype)

    def _array(self, set_name: str, spec: ArraySpec) -> MappedArray:
        key = (set_name, spec.name)
        if key not in self._arrays:
            kind = MappedArray if spec.codec == "none" else CompressedArray
            self._arrays[key] = kind(self.path, self._set(set_name), spec)
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


class LazyArray:
    """One array of a feature set with numpy's interface, clips in the order of the set's index.

    bfloat16, which numpy lacks, comes as float32. It pickles as the cache does.
    """

    def __init__(self, cache: FeatureCache, feature_set: FeatureSet, array: str) -> None:
        spec = feature_set.arrays[array]
        self._cache, self._set_name, self._array = cache, feature_set.name, array
        self._clip_ids: list[str] = cache.index(feature_set.name).clip_ids.to_pylist()
        self.dims = ("clip", *spec.dims)
        self.shape = (len(self._clip_ids), *spec.shape)
        self.ndim = len(self.shape)
        self.dtype: np.dtype[Any] = _as_numpy(torch.empty(0, dtype=spec.torch_dtype)).dtype

    def __getitem__(self, key: tuple[slice, ...]) -> npt.NDArray[Any]:
        """The part chosen by slices. Clips are read whole. Raises CacheError for damaged bytes."""
        values = _as_numpy(self._cache.read(self._set_name, self._array, self._clip_ids[key[0]]))
        return values[(slice(None), *key[1:])]


def _as_numpy(values: torch.Tensor) -> npt.NDArray[Any]:
    numbers: npt.NDArray[Any] = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return numbers


def _as_dask(lazy: LazyArray) -> Any:
    """A dask array with a chunk for each clip."""
    import dask.array  # takes a second

    return dask.array.from_array(lazy, chunks=(1, *lazy.shape[1:]), asarray=False, fancy=False)
