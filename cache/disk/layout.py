"""Paths inside a cache folder, and the version of that arrangement."""

from __future__ import annotations

from pathlib import Path

from thinkjepa.cache.records import ArraySpec

SCHEMA = "thinkjepa.cache.v2"

READABLE = (SCHEMA, "thinkjepa.cache.v1")
"""Schemas that are read. Version 1 knows no ragged axes but `token`, and two streams."""


def cache_json(root: Path) -> Path:
    """Schema version and feature sets."""
    return root / "cache.json"


def lock_file(root: Path, name: str = "") -> Path:
    """Lock of a folder, or of the one file in it that `name` is."""
    return root / (f".{name}.lock" if name else ".lock")


def holder_file(root: Path, name: str = "") -> Path:
    """Record of the process that has the lock, with the token that its writers check."""
    return root / (f".{name}.holder.json" if name else ".holder.json")


def extraction_file(root: Path) -> Path:
    """Sets and settings of the last extraction."""
    return root / "extraction.json"


def removal_file(root: Path) -> Path:
    """Plan of a removal that is not finished."""
    return root / "removal.jsonl"


def clips_dir(root: Path) -> Path:
    """Numbered parquet files of clips. Of two rows with the same key the later file's counts."""
    return root / "clips"


def labels_dir(root: Path) -> Path:
    """Numbered Arrow files of hand labels. Of two rows of a video the later file's counts."""
    return root / "labels"


def failures_file(root: Path) -> Path:
    """Videos and clips without features, with stage and reason."""
    return root / "failures.parquet"


def index_dir(root: Path, set_name: str) -> Path:
    """One parquet file per sealed shard of a feature set: a row in it makes a clip visible."""
    return root / set_name / "index"


def index_file(root: Path, set_name: str, shard: int) -> Path:
    """Index rows of one sealed shard."""
    return index_dir(root, set_name) / f"{shard:06d}.parquet"


def assigned_file(root: Path, set_name: str) -> Path:
    """Assignment of clips to shards, of a run that is not finished."""
    return root / set_name / "assigned.jsonl"


def journal_dir(root: Path, set_name: str) -> Path:
    """A journal for every shard that is being written."""
    return root / set_name / "journal"


def journal_file(root: Path, set_name: str, shard: int) -> Path:
    """Batches committed to one open shard, removed when the shard is sealed."""
    return journal_dir(root, set_name) / f"{shard:06d}.jsonl"


def store_dir(root: Path) -> Path:
    """The zarr v3 group of all feature sets."""
    return root / "features.zarr"


def array_dir(root: Path, set_name: str, array: str) -> Path:
    """The zarr array of one array of a feature set."""
    return store_dir(root) / set_name / array


def shard_file(root: Path, set_name: str, array: ArraySpec, shard: int) -> Path:
    """A shard of an array. It spans all axes of a clip, so its zarr key is `c/<shard>/0/0...`."""
    return array_dir(root, set_name, array.name).joinpath("c", str(shard), *["0"] * len(array.shape))
