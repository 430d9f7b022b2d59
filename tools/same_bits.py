"""Compares what this working tree computes with what another commit computes, bit for bit.

    tools/same_bits COMMIT

Checks COMMIT out beside the working tree, runs the same commands with both on this machine, and compares
what they write: the cache that extraction makes of the sample (both presets, batch sizes 1 and 4), every
loss of 30 steps of each variant and guidance kind and the weights behind them, an evaluation, a comparison,
a rollout, and the predicted joints of one video. Both run in the environment of the Python that runs this,
on the videos and models that the working tree's sample makes. Exit status 1 where anything differs.

A record of earlier results would not do: another processor computes other bits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import zarr
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[1]

CLIPS = "--observed-frames 8 --future-frames 8 --thinker-frames 8 --dense-fps 10 --stride-s 2"
MODELS = "--thinker models/thinker --encoder models/encoder --device cpu"
SHAPE = "--depth 2 --width 48 --heads 2 --learning-rate 0.001 --device cpu --seed 0"
STEPS = "--epochs 15 --batch-size 8 --group-by video --validation-fraction 0.2 --test-fraction 0.2"
KINDS = {
    "film": "--variant thinkjepa --guidance film",
    "adaln": "--variant thinkjepa --guidance adaln",
    "cross": "--variant thinkjepa --guidance cross",
    "mixture": "--variant thinkjepa --levels mixture",
    "anchored": "--variant thinkjepa --anchor last_pose",
    "jepa": "--variant jepa",
    "vlm": "--variant vlm",
    "poses": "--variant poses",
}
NUM_VIDEOS = 12

PASSING_KEYS = {"seconds", "clips_per_second"}
"""Keys of JSON that tell of time, not of results."""


@dataclass(frozen=True, slots=True)
class Checkout:
    """A checkout whose commands run in a folder, with the libraries of this process."""

    root: Path
    work: Path

    def run(self, command: str, *arguments: str) -> str:
        """Standard output of one of the checkout's commands. Exits where it fails."""
        scripts = tomllib.loads((self.root / "pyproject.toml").read_text())["project"]["scripts"]
        module, function = scripts[command].split(":")
        line = [
            sys.executable,
            "-c",
            f"import sys; from {module} import {function} as run; sys.argv[0] = {command!r}; run()",
            *arguments,
        ]
        package = self.work / ".package"
        environment = {
            **os.environ,
            "PYTHONPATH": str(package),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "MPLBACKEND": "Agg",
        }
        done = subprocess.run(
            line, cwd=self.work, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(
                f"{self.root}: {command} {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}"
            )
        return done.stdout

    def link_package(self) -> None:
        """Make `thinkjepa` of this checkout importable, before the installed one."""
        package = self.work / ".package" / "thinkjepa"
        package.mkdir(parents=True)
        for name in ("cache", "stages", "pipeline"):
            (package / name).symlink_to(self.root / name)
        if (self.root / "package" / "__init__.py").is_file():
            (package / "__init__.py").symlink_to(self.root / "package" / "__init__.py")

    def imported_from(self) -> Path:
        """The folder that the commands' code comes from."""
        code = "import thinkjepa.cache as c; print(c.__file__)"
        environment = {**os.environ, "PYTHONPATH": str(self.work / ".package")}
        out = subprocess.run(
            [sys.executable, "-c", code],
            cwd=self.work,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return Path(out.stdout.strip()).resolve().parents[1]


def compute(checkout: Checkout) -> None:
    """Run everything that is compared, in `checkout.work`."""
    for preset in ("dual", "release"):
        for batch_size in ("1", "4"):
            extract(checkout, f"cache-{preset}-{batch_size}", "--preset", preset, "--batch-size", batch_size)
    extract(checkout, "cache-windows", "--future-windows", "2")
    for name, flags in KINDS.items():
        train(checkout, "cache-dual-1", f"runs/{name}", *flags.split())
    for name in ("film", "jepa", "poses"):
        checkout.run("thinkjepa-eval", "--run", f"runs/{name}", "--json", "--device", "cpu")
    for name in ("film", "jepa"):
        train(
            checkout,
            "cache-windows",
            f"rolled/{name}",
            "--variant",
            "jepa" if name == "jepa" else "thinkjepa",
        )
    checkout.run("thinkjepa-eval", "--runs", "runs", "--out", "comparison", "--device", "cpu")
    checkout.run(
        "thinkjepa-eval", "--runs", "rolled", "--rollout", "4,8", "--out", "rollout", "--device", "cpu"
    )
    video = sorted((checkout.work / "videos").rglob("*.mp4"))[0].relative_to(checkout.work)
    files = ("--video", str(video), "-o", "prediction.mp4", "--device", "cpu")
    checkout.run("thinkjepa-predict", "--run", "runs/film", *files)


def extract(checkout: Checkout, cache: str, *flags: str) -> None:
    fixed = f"{MODELS} {CLIPS}".split()
    checkout.run("thinkjepa-cache", "extract", "--videos", "videos", "--cache-dir", cache, *fixed, *flags)


def train(checkout: Checkout, cache: str, run: str, *flags: str) -> None:
    checkout.run(
        "thinkjepa-train", "--cache-dir", cache, "--out", run, *STEPS.split(), *SHAPE.split(), *flags
    )


def results(work: Path) -> Iterator[tuple[str, Any]]:
    """Every compared value by name: digests of arrays and weights, tables, losses, JSON."""
    for cache in sorted(work.glob("cache-*")):
        yield from cache_results(cache)
    for run in sorted([*work.glob("runs/*"), *work.glob("rolled/*")]):
        name = f"{run.parent.name}/{run.name}"
        events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
        yield f"{name} losses", [event.value for event in events.Scalars("train/loss")]
        yield f"{name} curve", (run / "curve.csv").read_text()
        yield f"{name} weights", sorted(digest(path) for path in run.glob("checkpoints/*"))
    for path in sorted([*work.glob("r*/*/eval-test.json"), *work.glob("r*/*/rollout-test.json")]):
        yield str(path.relative_to(work)), stable(json.loads(path.read_text()))
    for name in ("comparison/comparison.json", "prediction.json"):
        yield name, stable(json.loads((work / name).read_text()))
    for path in sorted((work / "rollout").glob("*.json")):
        yield f"rollout/{path.name}", stable(json.loads(path.read_text()))


def cache_results(cache: Path) -> Iterator[tuple[str, Any]]:
    """Digests of the arrays of a cache by set and name, and its tables."""
    store = zarr.open_group(cache / "features.zarr", mode="r")
    for set_name, group in sorted(store.groups()):
        for array_name, array in sorted(group.arrays()):
            content = np.ascontiguousarray(
                array[:, :, : most_tokens(group)] if array_name == "tokens" else array[:]
            )
            yield (
                f"{cache.name} {set_name}/{array_name}",
                (str(content.dtype), content.shape, hashlib.sha256(content.tobytes()).hexdigest()),
            )
    for path in sorted([*cache.glob("clips/*.parquet"), *cache.glob("*/index/*.parquet")]):
        yield f"{cache.name} {path.relative_to(cache)}", pq.read_table(path).to_pylist()


def most_tokens(group: zarr.Group) -> int:
    """The tokens of the longest clip of a thinker set: the axis is a capacity, mostly empty."""
    return int(np.count_nonzero(group["token_kind"][:], axis=1).max())


def stable(value: Any) -> Any:
    """JSON without the keys that tell of time."""
    if isinstance(value, Mapping):
        return {key: stable(item) for key, item in value.items() if key not in PASSING_KEYS}
    return [stable(item) for item in value] if isinstance(value, list) else value


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def difference(before: Any, after: Any, path: str = "") -> str:
    """The first path at which two values differ."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in [*before, *(key for key in after if key not in before)]:
            if key not in before or key not in after:
                return f"{path}.{key} is only in {'the commit' if key in before else 'the working tree'}"
            if found := difference(before[key], after[key], f"{path}.{key}"):
                return found
        return ""
    if isinstance(before, Sequence) and isinstance(after, Sequence) and not isinstance(before, str):
        if len(before) != len(after):
            return f"{path} has {len(before)} and {len(after)} items"
        pairs = enumerate(zip(before, after, strict=True))
        return next((found for index, pair in pairs if (found := difference(*pair, f"{path}[{index}]"))), "")
    same = before == after or (before != before and after != after)  # NaN
    return "" if same else f"{path} was {str(before)[:80]}, is {str(after)[:80]}"


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """One line for each result that differs or that only one side has."""
    lines = []
    for name in sorted(before.keys() | after.keys()):
        if name not in before or name not in after:
            lines.append(f"{name}: only {'the commit' if name in before else 'the working tree'} has it")
        elif found := difference(before[name], after[name]):
            lines.append(f"{name}: {found.lstrip('.')}")
    return lines


def prepare(current: Checkout, shared: Path) -> None:
    """Sample models and the first videos of the sample, with their labels, into `shared`."""
    models, episodes = shared / "models", shared / "all"
    current.run("thinkjepa-sample", "models", str(models), "--seed", "0")
    current.run("thinkjepa-sample", "expand", str(episodes))
    for video in sorted(episodes.rglob("*.mp4"), key=lambda path: (path.stem, path.parent.name))[:NUM_VIDEOS]:
        target = shared / "videos" / video.relative_to(episodes)
        target.parent.mkdir(parents=True, exist_ok=True)
        for source in video.parent.glob(f"{video.stem}.*"):
            shutil.copy(source, target.with_suffix(source.suffix))


def make_checkout(root: Path, work: Path) -> Checkout:
    checkout = Checkout(root, work)
    work.mkdir()
    checkout.link_package()
    if (found := checkout.imported_from()) != root.resolve():
        sys.exit(f"the commands of {root} would run the code of {found}")
    return checkout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", metavar="COMMIT", help="the commit to compare with, as git names it")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="keep what both wrote in this new folder")
    arguments = parser.parse_args()
    git = ["git", "-C", str(ROOT)]
    with tempfile.TemporaryDirectory(prefix="same_bits_") as temporary:
        base = arguments.keep.absolute() if arguments.keep else Path(temporary)
        base.mkdir(exist_ok=True)
        old_root = Path(temporary) / "checkout"
        subprocess.run(
            [*git, "worktree", "add", "--quiet", "--detach", str(old_root), f"{arguments.commit}^{{commit}}"],
            check=True,
        )
        try:
            after, before = make_checkout(ROOT, base / "after"), make_checkout(old_root, base / "before")
            prepare(after, base)
            for checkout in (before, after):
                for name in ("models", "videos"):
                    (checkout.work / name).symlink_to(base / name)
                compute(checkout)
            found, expected = dict(results(after.work)), dict(results(before.work))
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(old_root)], check=True)
        lines = compare(expected, found)
    print("\n".join(lines) if lines else f"{len(found)} results, all the same bits")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
