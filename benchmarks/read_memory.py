"""Memory of reading a large cache against a small one: a random epoch over each.

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
from collections.abc import Sequence
from pathlib import Path

import torch
from measure import Memory, machine, report, rounded, work_folder
from paper_features import observed_set
from sparse_cache import write_sparse

from thinkjepa.cache import FeatureCache

BATCH = 8


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
            num_clips = round(getattr(options, name) * 1e9 / clip_bytes)
            write_sparse(folder / name, [observed_set()], num_clips=num_clips)
            command = [sys.executable, __file__, "--measure", str(folder / name)]
            peaks[name] = json.loads(subprocess.check_output(command))
        place = machine(folder)
    figures = {
        "rss_growth": peaks["large"]["peak_mb"] / peaks["small"]["peak_mb"],
        **{f"{name}_{figure}": value for name, found in peaks.items() for figure, value in found.items()},
    }
    report({**rounded(figures), **place}, as_json=options.json)


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


if __name__ == "__main__":
    main()
