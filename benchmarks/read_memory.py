"""Whether reading a large cache takes more memory than reading a small one: a random epoch over each.

rss_growth    peak resident memory of the process, mapped files aside, large cache divided by small one
mapped_gb     mapped pages that the kernel kept for the large one: page cache, given back when asked for

The large cache is sparse: every clip is there, with its index row and the checksum of its zeros, in files of
its size with holes. So it takes as much address space, index and planning as a real one, and hardly a disk.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from measure import machine, report, rounded, work_folder
from paper_features import clip_id, observed_set

from thinkjepa.cache import FeatureCache, FeatureSet
from thinkjepa.cache.catalog import write_catalog
from thinkjepa.cache.index import JOIN
from thinkjepa.cache.layout import index_dir, shard_file
from thinkjepa.cache.shard import CRC_BYTES, INDEX_DTYPE, crc32c
from thinkjepa.cache.tables import INDEX_SCHEMA, write_arrow
from thinkjepa.cache.zarr_array import create_arrays, grow

BATCH = 8
LOOK_S = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--folder", type=Path, help="where to work (default: where temporary files go)")
    parser.add_argument("--small", type=float, default=2, help="GB of features in the small cache (2)")
    parser.add_argument("--large", type=float, default=200, help="GB of features in the large one (200)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        sys.stdout.write(json.dumps(read_all(options.measure)))
        return
    clip_bytes = sum(spec.clip_bytes for spec in observed_set().arrays.values())
    peaks = {}
    with work_folder(options.folder, needed_bytes=int(options.large * 1e9 / 1000)) as folder:
        for name in ("small", "large"):
            write_sparse(folder / name, num_clips=round(getattr(options, name) * 1e9 / clip_bytes))
            command = [sys.executable, __file__, "--measure", str(folder / name)]
            peaks[name] = json.loads(subprocess.check_output(command))
        place = machine(folder)
    figures = {
        "rss_growth": peaks["large"]["peak_mb"] / peaks["small"]["peak_mb"],
        **{f"{name}_{figure}": value for name, found in peaks.items() for figure, value in found.items()},
    }
    report({**rounded(figures), **place}, as_json=options.json)


def write_sparse(root: Path, *, num_clips: int) -> None:
    """A cache of clips of zeros, as files with holes."""
    feature_set = observed_set()
    (spec,) = feature_set.arrays.values()
    root.mkdir()
    write_catalog(root, {feature_set.name: feature_set})
    create_arrays(root, feature_set)
    crc = crc32c(np.zeros(spec.clip_bytes, np.uint8)).to_bytes(CRC_BYTES, "little")
    rows = feature_set.rows_per_shard
    for shard, start in enumerate(range(0, num_clips, rows)):
        path = shard_file(root, feature_set.name, spec.name, shard=shard, rank=1 + len(spec.shape))
        write_holes(path, min(rows, num_clips - start), rows=rows, clip_bytes=spec.clip_bytes, crc=crc)
    grow(root, feature_set.name, spec.name, -(-num_clips // rows) * rows)
    write_index(root, feature_set, num_clips)


def write_holes(path: Path, used: int, *, rows: int, clip_bytes: int, crc: bytes) -> None:
    index = np.full((rows, 2), 2**64 - 1, dtype=INDEX_DTYPE)
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        for slot in range(used):
            offset = slot * (clip_bytes + CRC_BYTES)
            index[slot] = (offset, clip_bytes + CRC_BYTES)
            file.seek(offset + clip_bytes)
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


def read_all(root: Path) -> dict[str, float]:
    """A random epoch in this process; its largest memory, looked at all the while."""
    cache = FeatureCache.open(root)
    (feature_set,) = cache.feature_sets.values()
    ids = cache.index(feature_set.name).clip_ids.to_pylist()
    random.Random(0).shuffle(ids)
    out = torch.empty((BATCH, *feature_set.arrays["observed"].shape), dtype=torch.float16)
    memory = Memory()
    for start in range(0, len(ids), BATCH):
        batch: Sequence[str] = ids[start : start + BATCH]
        cache.read(feature_set.name, "observed", batch, out=out[: len(batch)])
    return memory.stop()


class Memory:
    """Largest resident memory of this process, own and mapped, in MB and GB."""

    def __init__(self) -> None:
        self._own = self._mapped = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> dict[str, float]:
        self._done.set()
        self._thread.join()
        return {"peak_mb": self._own / 1e3, "mapped_gb": self._mapped / 1e6}

    def _watch(self) -> None:
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
            self._own = max(self._own, sizes["RssAnon"] + sizes["RssShmem"])
            self._mapped = max(self._mapped, sizes["RssFile"])
            if self._done.wait(LOOK_S):
                return


if __name__ == "__main__":
    main()
