"""The zarr metadata of feature sets: `zarr.json` of the store, of each set and of each array.

zarr makes its content in memory. It is written here, whole, synced and listed in the ledger.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import zarr
from zarr.codecs import Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from thinkjepa.cache.disk.checksums import read_listed, replace_listed
from thinkjepa.cache.disk.files import explained_os_errors
from thinkjepa.cache.disk.json_text import parse_json
from thinkjepa.cache.disk.layout import array_dir, index_dir, store_dir
from thinkjepa.cache.records import ArraySpec, CacheError, FeatureSet
from thinkjepa.cache.shards.encoding import zarr_compressors
from thinkjepa.cache.tables.parquet import next_number

NAME = "zarr.json"

ZARR_DTYPES: Mapping[torch.dtype, str] = {
    torch.float16: "float16",
    torch.bfloat16: "uint16",
    torch.float32: "float32",
    torch.uint8: "uint8",
}
"""zarr-python 3.1 has no bfloat16: its bits are stored."""


def create_arrays(root: Path, feature_set: FeatureSet) -> None:
    """Write the zarr metadata of a feature set where it is missing or empty. What exists is kept.

    Metadata that was lost covers all visible rows again.
    """
    store = store_dir(root)
    folders = [store, store / feature_set.name]
    folders += [array_dir(root, feature_set.name, array) for array in feature_set.arrays]
    missing = [folder / NAME for folder in folders if not _has_content(folder / NAME)]
    if not missing:
        return
    with explained_os_errors("write", store):  # zarr opens an event loop
        content = _content(feature_set)
    for path in missing:
        replace_listed(path, content[path.relative_to(store).as_posix()])
    rows = next_number(index_dir(root, feature_set.name)) * feature_set.rows_per_shard
    for array in feature_set.arrays if rows else ():
        grow(root, feature_set.name, array, rows)


def restore_metadata(root: Path, feature_sets: Mapping[str, FeatureSet]) -> None:
    """Write again what a power cut has taken of the metadata of sets that have arrays."""
    for name, item in feature_sets.items():
        if (store_dir(root) / name).is_dir():
            create_arrays(root, item)


def grow(root: Path, set_name: str, array: str, rows: int) -> None:
    """Extend the clip axis of an array to at least `rows`."""
    path = array_dir(root, set_name, array) / NAME
    try:
        with explained_os_errors("write", path):
            metadata = parse_json(read_listed(path))
        found = int(metadata["shape"][0])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise CacheError(f"{str(path)!r} is damaged ({error}): restore it from a copy") from error
    if found < rows:  # written here, as zarr would not announce it in the ledger
        metadata["shape"][0] = rows
        replace_listed(path, json.dumps(metadata, indent=2).encode())


def _has_content(path: Path) -> bool:
    with explained_os_errors("read", path):
        return path.exists() and path.stat().st_size > 0


def _content(feature_set: FeatureSet) -> dict[str, bytes]:
    """The metadata files of a set without rows, by their path in the store."""
    files: dict[str, Buffer] = {}
    group = zarr.open_group(MemoryStore(files), mode="a", zarr_format=3).require_group(feature_set.name)
    for spec in feature_set.arrays.values():
        _create_array(group, spec, feature_set.rows_per_shard)
    return {name: buffer.to_bytes() for name, buffer in files.items()}


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
