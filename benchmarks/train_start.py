"""Cost of the number of clips to a training: the time to its first step, and memory.

startup_s     from the call to the end of the first step, imports aside, on the large cache
rss_growth    peak memory of some steps, mapped files aside, large cache divided by small one

The caches are sparse (see sparse_cache) and hold clips of the paper's sizes. The model is small, so that its
steps take seconds: what a larger one takes would make the growth look less.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import Memory, machine, report, rounded, work_folder
from paper_features import SHARD_BYTES, encoder_set
from sparse_cache import write_sparse

from thinkjepa.cache import ArraySpec, FeatureSet, describe_set
from thinkjepa.stages.train.run import train
from thinkjepa.stages.train.settings import TrainSettings

LEVELS, WIDTH = 8, 2048
TRAINED_STEPS = 20
SETTINGS = TrainSettings(
    epochs=1,
    batch_size=16,
    depth=1,
    width=48,
    heads=2,
    fusion_width=32,
    latent_pool=2,
    device="cpu",
    tracker="none",
)


class EnoughError(Exception):
    """All steps that were to be measured are done."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--folder", type=Path, help="where to work (default: where temporary files go)")
    parser.add_argument("--small", type=int, default=1000, help="clips in the small cache (1,000)")
    parser.add_argument("--large", type=int, default=100_000, help="clips in the large one (100,000)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        sys.stdout.write(json.dumps(first_steps(options.measure)))
        return
    found = {}
    with work_folder(options.folder, needed_bytes=20 * 2**10 * options.large) as folder:
        for name in ("small", "large"):
            write_sparse(folder / name, feature_sets(), num_clips=getattr(options, name))
            os.sync()  # a cache is trained on long after it was written
            command = [sys.executable, __file__, "--measure", str(folder / name)]
            found[name] = json.loads(subprocess.check_output(command))
        place = machine(folder)
    figures = {
        "startup_s": found["large"]["startup_s"],
        "rss_growth": found["large"]["peak_mb"] / found["small"]["peak_mb"],
        **{f"{name}_{figure}": value for name, item in found.items() for figure, value in item.items()},
        "clips": options.large,
    }
    report({**rounded(figures), **place}, as_json=options.json)


def feature_sets() -> list[FeatureSet]:
    """Latents and pooled states at the paper's sizes, in shards of the default size."""
    pooled = (LEVELS, 2, WIDTH)
    thinker = describe_set(
        "thinker",
        origin={"layers": list(range(LEVELS)), "sampling": {"fingerprint": "t"}},
        source={"model": "zeros"},
        arrays=(ArraySpec("pooled", ("layer", "stream", "dim"), pooled, pooled, "float32"),),
        shard_bytes=SHARD_BYTES,
        typical_clip_bytes=4 * LEVELS * 2 * WIDTH,
    )
    return [encoder_set(), thinker]


def first_steps(cache: Path) -> dict[str, float]:
    """Figures of a fresh process."""
    done: list[float] = []

    def progress(*, epoch: int, step: int, total_steps: int, loss: float) -> None:
        done.append(time.perf_counter())
        if len(done) == TRAINED_STEPS:
            raise EnoughError

    with tempfile.TemporaryDirectory() as out:
        memory, began = Memory(), time.perf_counter()
        with contextlib.suppress(EnoughError):
            train(cache, Path(out) / "run", SETTINGS, progress=progress)
        return {**memory.stop(), "startup_s": done[0] - began}


if __name__ == "__main__":
    main()
