"""Paths inside a cache folder, and the version of that arrangement."""

from __future__ import annotations

from pathlib import Path

from thinkjepa.cache.records import ArraySpec

SCHEMA = "thinkjepa.cache.v1"


def cache_json(root: Path) -> Path:
    """Schema version and feature sets."""
    return root / "cache.json"


def lock_file(root: Path, name: str = "") -> Path:
    """Held by the process that decides what is written into a folder, or into one file of it by name."""
    return root / (f".{name}.lock" if name else ".lock")


def holder_file(root: Path, name: str = "") -> Path:
    """Who holds the lock, for people, and the token by which its writers know that it still does."""
    return root / (f".{name}.holder.json" if name else ".holder.json")


def extraction_file(root: Path) -> Path:
    """Sets and settings of the last extraction."""
    return root / "extraction.json"


def clips_dir(root: Path) -> Path:
    """Numbered parquet files of clips; of two rows with the same key the later file holds."""
    return root / "clips"


def labels_dir(root: Path) -> Path:
    """Numbered Arrow files of hand labels; of two rows of a video the later file's holds."""
    return root / "labels"


def failures_file(root: Path) -> Path:
    """Videos and clips without features, with stage and reason."""
    return root / "failures.parquet"


def index_dir(root: Path, set_name: str) -> Path:
    """One parquet file per sealed shard of a feature set: a row in it makes a clip visible."""
    return root / set_name / "index"


def index_file(root: Path, set_name: str, shard: int) -> Path:
    return index_dir(root, set_name) / f"{shard:06d}.parquet"


def assigned_file(root: Path, set_name: str) -> Path:
    """Which clips go to which shards of a run that is not finished."""
    return root / set_name / "assigned.jsonl"


def journal_dir(root: Path, set_name: str) -> Path:
    """A journal for every shard that is being written."""
    return root / set_name / "journal"


def journal_file(root: Path, set_name: str, shard: int) -> Path:
    """Batches committed to one open shard; gone when the shard is sealed."""
    return journal_dir(root, set_name) / f"{shard:06d}.jsonl"


def store_dir(root: Path) -> Path:
    """The zarr v3 group of all feature sets."""
    return root / "features.zarr"


def array_dir(root: Path, set_name: str, array: str) -> Path:
    return store_dir(root) / set_name / array


def shard_file(root: Path, set_name: str, array: ArraySpec, shard: int) -> Path:
    """A shard spans all axes but the clip axis, so its zarr key is `c/<shard>/0/0...`, a 0 for each."""
    return array_dir(root, set_name, array.name).joinpath("c", str(shard), *["0"] * len(array.shape))
