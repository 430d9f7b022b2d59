"""Opening a cache of a million clips: seconds, memory above the imports, and the time to find one clip.

open_s      cache.json, the index of one set, and the lookup by id
open_mb     resident memory that this takes, above what importing the cache package takes
lookup_ms   one clip by id, median over random ids
select_s    all clips that have features, paired with their rows, as training asks for them
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from thinkjepa.cache import ArraySpec, FeatureCache, describe_set
from thinkjepa.cache.disk.layout import clips_dir, index_dir
from thinkjepa.cache.tables.catalog import write_catalog
from thinkjepa.cache.tables.index import JOIN, join_index_files
from thinkjepa.cache.tables.parquet import CLIPS_SCHEMA, INDEX_SCHEMA, write_arrow

ROWS_PER_SHARD = 15
"""What 512 MB shards hold at the paper's sizes."""

CLIPS_PER_RUN = 50_000
LOOKUPS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=int, default=1_000_000, help="clips in the index (default 1,000,000)")
    parser.add_argument("--folder", type=Path, help="where to write the cache (default: a temporary folder)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        sys.stdout.write(json.dumps(measure(options.measure)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write_index(Path(folder), num_clips=options.clips)
        command = [sys.executable, __file__, "--measure", folder]
        runs = [json.loads(subprocess.check_output(command)) for _ in range(3)]
    figures = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    figures["clips"] = options.clips
    if options.json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    else:
        sys.stdout.write("\n".join(f"{name:<10} {value:.4g}" for name, value in figures.items()) + "\n")


def write_index(root: Path, *, num_clips: int) -> None:
    """A cache with an index and clip rows, and no features: files as extraction leaves them."""
    spec = ArraySpec("observed", ("time",), (1,), (1,), "float16")
    origin = {"sampling": {"fingerprint": "d"}}
    item = describe_set(
        "encoder", origin=origin, source={}, arrays=(spec,), shard_bytes=ROWS_PER_SHARD, typical_clip_bytes=1
    )
    write_catalog(root, {item.name: item})
    ids = [f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}@{number % 997}" for number in range(num_clips)]
    for run, rows in enumerate(_parts(ids, CLIPS_PER_RUN)):
        write_arrow(clips_dir(root) / f"{run:06d}.parquet", _clip_table(rows))
    shard, per_file = 0, ROWS_PER_SHARD * JOIN
    while shard * ROWS_PER_SHARD < num_clips:
        start = shard * ROWS_PER_SHARD
        last = shard + JOIN - 1
        table = _index_table(ids[start : start + per_file], start)
        write_arrow(index_dir(root, item.name) / f"{shard:06d}-{last:06d}.parquet", table)
        shard += JOIN
    join_index_files(index_dir(root, item.name))


def measure(root: Path) -> dict[str, Any]:
    """Figures of a fresh process."""
    gc.collect()
    process = psutil.Process()
    before = process.memory_info().rss
    started = time.perf_counter()
    cache = FeatureCache.open(root)
    name = next(iter(cache.feature_sets))
    index = cache.index(name)
    open_s = time.perf_counter() - started
    open_mb = (process.memory_info().rss - before) / 1e6
    ids = random.Random(0).sample(index.clip_ids.to_pylist(), LOOKUPS)
    times_s = []
    for clip_id in ids:
        started = time.perf_counter()
        assert index.locate(clip_id) is not None
        times_s.append(time.perf_counter() - started)
    started = time.perf_counter()
    cache.select(name)
    select_s = time.perf_counter() - started
    return {
        "open_s": open_s,
        "open_mb": open_mb,
        "lookup_ms": 1000 * statistics.median(times_s),
        "select_s": select_s,
    }


def _parts(items: list[str], size: int) -> Iterator[list[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _index_table(ids: list[str], start: int) -> pa.Table:
    rows = np.arange(start, start + len(ids))
    columns: dict[str, Any] = {
        "clip_id": ids,
        "status": ["ok"] * len(ids),
        "row": rows,
        "shard": rows // ROWS_PER_SHARD,
        "token_count": np.full(len(ids), 1181),
        "prompt_token_count": np.full(len(ids), 1166),
        "token_ids": [[1, 2, 3, 4]] * len(ids),
        "generated_text": ["a hand reaches for a cup"] * len(ids),
        "checksum": [clip_id[:8] for clip_id in ids],
        "stage": [""] * len(ids),
        "reason": [""] * len(ids),
    }
    return pa.table(columns, schema=INDEX_SCHEMA)


def _clip_table(ids: list[str]) -> pa.Table:
    frames, times_s = list(range(32)), [n / 30 for n in range(32)]
    columns: dict[str, Any] = {
        "clip_id": ids,
        "video": [f"task/{clip_id[:4]}.mp4" for clip_id in ids],
        "video_digest": [clip_id[:16] * 4 for clip_id in ids],
        "thinker_sampling": ["t"] * len(ids),
        "dense_sampling": ["d"] * len(ids),
        "split_frame": [int(clip_id.split("@")[1]) for clip_id in ids],
        "split_time_s": [1.0] * len(ids),
        "thinker_frames": [frames[:16]] * len(ids),
        "thinker_times_s": [times_s[:16]] * len(ids),
        "observed_frames": [frames] * len(ids),
        "observed_times_s": [times_s] * len(ids),
        "future_frames": [[frames]] * len(ids),
        "future_times_s": [[times_s]] * len(ids),
    }
    return pa.table(columns, schema=CLIPS_SCHEMA)


if __name__ == "__main__":
    main()
