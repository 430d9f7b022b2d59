"""Speedup of two extracting workers over one, with one thread each: models of seconds a clip.

`limit_2` is what the machine itself gives: two processes against one, at the same matrix products, each in
its own memory. Two cores that share caches, a memory bus or one physical core stay below 2.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from heavy_models import write_heavy_models
from measure import machine, median_ratio, report, rounded, work_folder

from thinkjepa.cache import Failure
from thinkjepa.pipeline.sample.videos import write_videos
from thinkjepa.stages.data.plan import ClipSettings
from thinkjepa.stages.extract.run import extract
from thinkjepa.stages.extract.settings import ExecutionSettings, ModelSettings
from thinkjepa.stages.progress import NoProgress

CLIPS = ClipSettings(thinker_frames=16, observed_frames=16, future_frames=16, dense_fps=30.0, stride_s=1.0)
CLIPS_A_VIDEO = 5
WARM_UP = 0.25
"""Share of the clips that is over before the rate is measured: workers start and load their models in it."""

PRODUCTS = """
import sys, time, torch
torch.set_num_threads(1)
a = torch.randn(768, 768)
x = torch.randn(512, 768)
sys.stdout.write("ready\\n"); sys.stdout.flush(); sys.stdin.readline()
began = time.perf_counter()
for _ in range(2000):
    x @ a
print(time.perf_counter() - began)
"""


class Times(NoProgress):
    """Times at which clips were done."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.done: list[float] = []

    def advance(self, count: int) -> None:
        self.done += [time.perf_counter() - self.began] * count

    def failed(self, failure: Failure) -> None:
        raise SystemExit(f"{failure.clip_id}: {failure.reason}")

    @property
    def steady_s(self) -> float:
        """Seconds a clip behind the warm-up, to the very last one."""
        first = int(len(self.done) * WARM_UP)
        return (self.done[-1] - self.done[first]) / (len(self.done) - 1 - first)


def extracted(folder: Path, *, workers: int) -> Times:
    models = ModelSettings(thinker=str(folder / "thinker"), encoder=str(folder / "encoder"))
    execution = ExecutionSettings(workers=workers, threads=1, shard_mb=50)
    times = Times()
    cache_dir = folder / f"cache-{workers}"
    extract(folder / "videos", cache_dir, clips=CLIPS, models=models, execution=execution, progress=times)
    shutil.rmtree(cache_dir)
    return times


def products_s(processes: int) -> float:
    """Seconds for the same products in each of some processes at once."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen([sys.executable, "-c", PRODUCTS], **pipes) for _ in range(processes)]
    for process in running:
        assert process.stdout is not None
        process.stdout.readline()
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return max(float(process.communicate()[0]) for process in running)


def measure(folder: Path, *, repetitions: int) -> dict[str, Sequence[float]]:
    figures: dict[str, list[float]] = {"one": [], "two": [], "whole_1": [], "whole_2": [], "limit": []}
    for _ in range(repetitions):
        one, two = extracted(folder, workers=1), extracted(folder, workers=2)
        figures["one"].append(one.steady_s)
        figures["two"].append(two.steady_s)
        figures["whole_1"].append(one.done[-1])
        figures["whole_2"].append(two.done[-1])
        figures["limit"].append(2 * products_s(1) / products_s(2))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--folder", type=Path, help="where to work (default: where temporary files go)")
    parser.add_argument("--clips", type=int, default=20, help="clips a run")
    parser.add_argument("--repetitions", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    videos = max(1, arguments.clips // CLIPS_A_VIDEO)
    with work_folder(arguments.folder, needed_bytes=2 * 10**9) as folder:
        write_heavy_models(folder)
        write_videos(folder / "videos", num_videos=videos, size=(320, 240))
        seconds = measure(folder, repetitions=arguments.repetitions)
        place = machine(folder)
    figures = {
        "speedup_2": median_ratio(seconds["one"], seconds["two"]),
        "speedup_2_whole": median_ratio(seconds["whole_1"], seconds["whole_2"]),
        "limit_2": median(seconds["limit"]),
        "clips_per_s_1": 1 / median(seconds["one"]),
        "clips_per_s_2": 1 / median(seconds["two"]),
        "clips": videos * CLIPS_A_VIDEO,
        "repetitions": arguments.repetitions,
    }
    report({**rounded(figures), **place}, as_json=arguments.json)


if __name__ == "__main__":
    main()
