"""One array of a feature set through zarr-python: its metadata, and clips that cannot be mapped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from zarr.codecs import Crc32cCodec

from thinkjepa.cache.codecs import zarr_compressors
from thinkjepa.cache.disk import explained_os_errors
from thinkjepa.cache.errors import CacheError
from thinkjepa.cache.gather import Part, Rows
from thinkjepa.cache.layout import array_dir, shard_file, store_dir
from thinkjepa.cache.ledger import adopt, read_listed, replace_listed
from thinkjepa.cache.links import require_inside
from thinkjepa.cache.records import ArraySpec, FeatureSet

ZARR_DTYPES: Mapping[torch.dtype, str] = {
    torch.float16: "float16",
    torch.bfloat16: "uint16",
    torch.float32: "float32",
    torch.uint8: "uint8",
}
"""zarr-python 3.1 has no bfloat16: its bits are stored."""


def create_arrays(root: Path, feature_set: FeatureSet) -> None:
    """Write the zarr metadata of a feature set; what exists is kept."""
    with explained_os_errors("write", store_dir(root)):
        group = zarr.open_group(store_dir(root), mode="a", zarr_format=3)
        group = group.require_group(feature_set.name)
        for spec in feature_set.arrays.values():
            if spec.name not in group:
                _create_array(group, spec, feature_set.rows_per_shard)
    adopt(root)


def _create_array(group: zarr.Group, spec: ArraySpec, rows_per_shard: int) -> None:
    fp8 = {"stored": "float8_e4m3fn bits, times <array>_scale"} if spec.encoding == "fp8" else {}
    group.create_array(
        spec.name,
        shape=(0, *spec.shape),
        chunks=(1, *spec.chunks),
        shards=(rows_per_shard, *(n * size for n, size in zip(spec.chunk_grid, spec.chunks, strict=True))),
        dtype=ZARR_DTYPES[spec.stored_dtype],
        compressors=[*zarr_compressors(spec.codec, itemsize=spec.stored_dtype.itemsize), Crc32cCodec()],
        fill_value=0,
        dimension_names=("clip", *spec.dims),
        attributes={"encoding": spec.dtype, **fp8},
    )


def grow(root: Path, set_name: str, array: str, rows: int) -> None:
    """Let the clip axis of an array have at least so many rows."""
    path = array_dir(root, set_name, array) / "zarr.json"
    with explained_os_errors("write", path):
        metadata = json.loads(read_listed(path))
    if metadata["shape"][0] < rows:  # written here, as zarr would not announce it in the ledger
        metadata["shape"][0] = rows
        replace_listed(path, json.dumps(metadata, indent=2).encode())


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
