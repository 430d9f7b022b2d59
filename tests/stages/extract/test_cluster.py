"""Extraction by several processes: whoever of them is killed, the cache is that of one process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from thinkjepa.cache import FeatureCache

pytestmark = pytest.mark.timeout(500)

STRIDE = ("--stride-s", "0.4", "--shard-mb", "1")
"""Many clips of two videos, a few to a unit."""

POISON = """
import os, pathlib, signal
from thinkjepa.cache import OpenShard
from thinkjepa.stages.extract.work import units as filling

def poisoned(inputs, *arguments):
    if any(clip.clip_id == "{clip_id}" for clip, _ in inputs["thinker"].prepared):
        os.kill(os.getpid(), signal.SIGKILL)
    return run_batch(inputs, *arguments)

def sealed(shard):
    died = pathlib.Path("{folder}/died")
    if shard.number == 1 and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    seal(shard)

if not hasattr(filling, "poisoned"):  # dask may load this twice
    run_batch, seal = filling.run_batch, OpenShard.seal
    filling.run_batch, OpenShard.seal, filling.poisoned = poisoned, sealed, True
"""
"""A module that workers load first: over one clip they die, as they would of a fault in a driver, and once
before they seal a shard in the middle of a task, all of whose clips are committed."""

Digest = Callable[[Path], dict[str, str]]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(2):
        make_video(folder / f"{number}.mp4", num_frames=180 + number, fps=30)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, videos: Path, run_extract: Callable[..., Any]) -> Path:
    """The cache that one process makes."""
    cache_dir = tmp_path_factory.mktemp("alone") / "cache"
    done = run_extract(videos, cache_dir, *STRIDE)
    assert done.status == 0, done.stderr
    cache = FeatureCache.open(cache_dir)
    assert len(list((cache_dir / "features.zarr").glob("thinker-*/pooled/c/*"))) >= 4, "several units"
    assert all(len(cache.index(name).clip_ids) > 12 for name in cache.feature_sets)
    return cache_dir


def wait_for(condition: Callable[[], object], *, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def num_visible(cache_dir: Path) -> int:
    return len(list(cache_dir.glob("*/index/*.parquet")))


@contextmanager
def started(command: Sequence[object], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended, with what it started, at the end of the block."""
    with subprocess.Popen([str(part) for part in command], text=True, **options) as process:
        children: list[psutil.Process] = []
        try:
            yield process
            children = psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            pass
        finally:
            for child in children:
                child.kill()
            process.kill()


def workers_of(pid: int) -> list[psutil.Process]:
    """The processes of this machine's workers, begun by the client's nannies; not what they begin."""
    return [child for child in psutil.Process(pid).children() if "spawn_main" in " ".join(child.cmdline())]


def same_features(one: Path, other: Path, tree_digest: Digest) -> bool:
    """Equal files, but for cache.json and its checksum, which say how many threads a run had."""
    ignored = {"cache.json", "checksums.jsonl"}
    first, second = (
        {name: digest for name, digest in tree_digest(root).items() if name not in ignored}
        for root in (one, other)
    )
    return first == second


def test_a_killed_worker_and_a_killed_client_leave_the_cache_of_one_process(
    tmp_path: Path,
    videos: Path,
    alone: Path,
    run_extract: Callable[..., Any],
    extract_arguments: Callable[..., Sequence[object]],
    tree_digest: Digest,
) -> None:
    cache_dir = tmp_path / "cache"
    command = [Path(sys.executable).parent / "thinkjepa-cache", *extract_arguments(videos, cache_dir)]
    log = tmp_path / "log"
    with log.open("w") as output, started([*command, *STRIDE, "--workers", 2], stderr=output) as client:
        wait_for(lambda: list(cache_dir.glob("*/journal/*.jsonl")))
        before = workers_of(client.pid)
        assert len(before) == 2
        before[0].send_signal(signal.SIGKILL)
        reached = num_visible(cache_dir)
        wait_for(lambda: num_visible(cache_dir) > reached or client.poll() is not None)
        wait_for(lambda: len(workers_of(client.pid)) == 2 or client.poll() is not None)
        assert client.poll() is None, log.read_text()
        workers = workers_of(client.pid)
        client.send_signal(signal.SIGKILL)
        psutil.wait_procs(workers, timeout=20)
        assert not [worker for worker in workers if worker.is_running() and worker.status() != "zombie"]
    resumed = run_extract(videos, cache_dir, *STRIDE)
    assert resumed.status == 0, resumed.stderr
    assert same_features(cache_dir, alone, tree_digest)


def test_a_clip_that_kills_workers_is_recorded_and_a_killed_nanny_is_survived(
    tmp_path: Path, videos: Path, alone: Path, run_extract: Callable[..., Any]
) -> None:
    whole = FeatureCache.open(alone)
    clips = whole.select(*whole.feature_sets)
    poison = tmp_path / "poison.py"
    poison.write_text(POISON.format(clip_id=clips[3].clip_id, folder=tmp_path))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    dask = Path(sys.executable).parent / "dask"
    at_once = {**os.environ, "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    cache_dir = tmp_path / "cache"
    with ExitStack() as stack:
        log = stack.enter_context((tmp_path / "dask.log").open("w"))
        logged = {"stdout": log, "stderr": log, "cwd": tmp_path, "env": at_once}
        place = ("--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--no-dashboard")
        stack.enter_context(started([dask, "scheduler", *place], **logged))
        options = ("--nthreads", 1, "--host", "127.0.0.1", "--no-dashboard", "--preload", poison)
        worker = (dask, "worker", address, *options)
        first = stack.enter_context(started(worker, **logged))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        scheduler = ("--scheduler", address, "--clip-retries", 1)
        run = pool.submit(run_extract, videos, cache_dir, *STRIDE, *scheduler, timeout_s=390)
        wait_for(lambda: list(cache_dir.glob("*/journal/*.jsonl")) or run.done())
        stack.enter_context(started(worker, **logged))  # later, so that tasks are of several units
        wait_for(lambda: ((tmp_path / "died").exists() and num_visible(cache_dir) >= 4) or run.done())
        os.kill(first.pid, signal.SIGKILL)
        outcome = run.result(timeout=400)
    assert outcome.status == 3, outcome.stderr
    assert outcome.json["failed_clips"] == 1, outcome.json["failures"]
    failure = outcome.json["failures"][0]
    assert (failure["clip_id"], failure["stage"]) == (clips[3].clip_id, "worker")
    assert "signal 9" in failure["reason"] or "was lost" in failure["reason"]
    assert "KilledWorker" not in outcome.stderr
    cache = FeatureCache.open(cache_dir)
    for name, item in whole.feature_sets.items():
        ids = [clip_id for clip_id in whole.index(name).clip_ids.to_pylist() if clip_id != clips[3].clip_id]
        assert sorted(cache.index(name).clip_ids.to_pylist()) == sorted(ids)
        assert cache.index(name).values_of(ids, "checksum") == whole.index(name).values_of(ids, "checksum"), (
            item
        )
