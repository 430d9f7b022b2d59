"""What the number of clips costs a training: the time to its first step, and memory.

startup_s     from the call to the end of the first step, imports aside, on the large cache
rss_growth    peak memory of some steps, mapped files aside, large cache divided by small one

The caches are sparse (see sparse_cache), the model is small: what is measured does not depend on either.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import Memory, machine, report, rounded, work_folder
from paper_features import DTYPE
from sparse_cache import write_sparse

from thinkjepa.cache import ArraySpec, FeatureSet, describe_set
from thinkjepa.stages.train import SplitRule, TrainSettings, train

STEPS, PATCHES, DIM = 4, 16, 64
LEVELS, WIDTH = 8, 2048
TRAINED_STEPS = 40
SETTINGS = TrainSettings(
    epochs=1, batch_size=16, depth=2, width=48, heads=2, fusion_width=32, device="cpu", tracker="none"
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
    """Latents of 4 + 4 small steps, and the paper's pooled states."""
    latents = (STEPS, PATCHES, DIM)
    pooled = (LEVELS, 2, WIDTH)
    encoder = describe_set(
        "encoder",
        origin={"grid": [4, 4], "tubelet": 2, "sampling": {"fingerprint": "d"}},
        source={"model": "zeros"},
        arrays=(
            ArraySpec("observed", ("time", "patch", "dim"), latents, latents, DTYPE),
            ArraySpec("future", ("window", "time", "patch", "dim"), (1, *latents), (1, *latents), DTYPE),
        ),
        shard_bytes=10**6,
        typical_clip_bytes=2 * 2 * STEPS * PATCHES * DIM,
    )
    thinker = describe_set(
        "thinker",
        origin={"layers": list(range(LEVELS)), "sampling": {"fingerprint": "t"}},
        source={"model": "zeros"},
        arrays=(ArraySpec("pooled", ("layer", "stream", "dim"), pooled, pooled, "float32"),),
        shard_bytes=10**7,
        typical_clip_bytes=4 * LEVELS * 2 * WIDTH,
    )
    return [encoder, thinker]


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
            train(
                cache,
                Path(out) / "run",
                SETTINGS,
                thinker_set=None,
                encoder_set=None,
                split=SplitRule(),
                progress=progress,
            )
        return {**memory.stop(), "startup_s": done[0] - began}


if __name__ == "__main__":
    main()
