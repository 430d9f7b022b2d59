"""Caches of zeros in files with holes: clips, index rows and checksums as of a real one, hardly a disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from paper_features import clip_id

from thinkjepa.cache import ArraySpec, FeatureSet
from thinkjepa.cache.disk.files import crc32c
from thinkjepa.cache.disk.layout import clips_dir, index_dir, shard_file
from thinkjepa.cache.shards.format import CRC_BYTES, INDEX_DTYPE
from thinkjepa.cache.shards.metadata import create_arrays, grow
from thinkjepa.cache.tables.catalog import write_catalog
from thinkjepa.cache.tables.index import JOIN
from thinkjepa.cache.tables.parquet import CLIPS_SCHEMA, INDEX_SCHEMA, write_arrow

CLIPS_A_VIDEO = 10
ROWS_A_FILE = 50_000
FPS = 30.0


def write_sparse(root: Path, feature_sets: Sequence[FeatureSet], *, num_clips: int) -> None:
    """Uncompressed sets of `num_clips` clips, of ten a video, without ragged arrays."""
    root.mkdir()
    write_catalog(root, {item.name: item for item in feature_sets})
    write_clips(root, feature_sets, num_clips)
    for item in feature_sets:
        create_arrays(root, item)
        for spec in item.arrays.values():
            write_array(root, item, spec, num_clips)
        write_index(root, item, num_clips)


def write_array(root: Path, feature_set: FeatureSet, spec: ArraySpec, num_clips: int) -> None:
    """All shards of one array."""
    chunks_per_clip = int(np.prod(spec.chunk_grid))
    crc = crc32c(np.zeros(spec.chunk_bytes, np.uint8)).to_bytes(CRC_BYTES, "little")
    rows = feature_set.rows_per_shard
    for shard, start in enumerate(range(0, num_clips, rows)):
        path = shard_file(root, feature_set.name, spec, shard)
        used = min(rows, num_clips - start) * chunks_per_clip
        write_holes(path, used, num_chunks=rows * chunks_per_clip, chunk_bytes=spec.chunk_bytes, crc=crc)
    grow(root, feature_set.name, spec.name, -(-num_clips // rows) * rows)


def write_holes(path: Path, used: int, *, num_chunks: int, chunk_bytes: int, crc: bytes) -> None:
    """A shard whose first chunks are zeros that are nowhere on the disk."""
    index = np.full((num_chunks, 2), 2**64 - 1, dtype=INDEX_DTYPE)
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        for number in range(used):
            offset = number * (chunk_bytes + CRC_BYTES)
            index[number] = (offset, chunk_bytes + CRC_BYTES)
            file.seek(offset + chunk_bytes)
            file.write(crc)
        raw = index.view(np.uint8).reshape(-1)
        file.write(raw.tobytes() + crc32c(raw).to_bytes(CRC_BYTES, "little"))


def write_index(root: Path, feature_set: FeatureSet, num_clips: int) -> None:
    """Index files as an extraction leaves them, joined."""
    per_file = feature_set.rows_per_shard * JOIN
    for start in range(0, num_clips, per_file):
        places = np.arange(start, min(start + per_file, num_clips))
        table = pa.table(
            {
                "clip_id": [clip_id(int(place)) for place in places],
                "status": ["ok"] * len(places),
                "row": places,
                "shard": places // feature_set.rows_per_shard,
                **{name: np.zeros(len(places), np.int32) for name in ("token_count", "prompt_token_count")},
                "token_ids": [[]] * len(places),
                **{name: [""] * len(places) for name in ("generated_text", "checksum", "stage", "reason")},
            },
            schema=INDEX_SCHEMA,
        )
        first = start // feature_set.rows_per_shard
        write_arrow(index_dir(root, feature_set.name) / f"{first:06d}-{first + JOIN - 1:06d}.parquet", table)


def write_clips(root: Path, feature_sets: Sequence[FeatureSet], num_clips: int) -> None:
    """A row a clip, with frames of the default settings."""
    samplings = {item.kind: item.origin["sampling"]["fingerprint"] for item in feature_sets}
    frames, times_s = list(range(32)), [number / FPS for number in range(32)]
    for number, start in enumerate(range(0, num_clips, ROWS_A_FILE)):
        places = range(start, min(start + ROWS_A_FILE, num_clips))
        videos = [place // CLIPS_A_VIDEO for place in places]
        table = pa.table(
            {
                "clip_id": [clip_id(place) for place in places],
                "video": [f"task{video % 100}/{video}.mp4" for video in videos],
                "video_digest": [f"{video:064x}" for video in videos],
                "thinker_sampling": [samplings.get("thinker", "")] * len(places),
                "dense_sampling": [samplings.get("encoder", "")] * len(places),
                "split_frame": [32] * len(places),
                "split_time_s": [32 / FPS] * len(places),
                "thinker_frames": [frames[:16]] * len(places),
                "thinker_times_s": [times_s[:16]] * len(places),
                "observed_frames": [frames] * len(places),
                "observed_times_s": [times_s] * len(places),
                "future_frames": [[frames]] * len(places),
                "future_times_s": [[times_s]] * len(places),
            },
            schema=CLIPS_SCHEMA,
        )
        write_arrow(clips_dir(root) / f"{number:06d}.parquet", table)
