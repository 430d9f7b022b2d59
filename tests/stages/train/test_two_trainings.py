"""Two trainings into one folder: the second is refused, or waits and finds the run finished."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from commands import BIN, forking_commands

from thinkjepa.cache.disk.lock import WriteLock
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.run import train
from thinkjepa.stages.train.settings import TrainSettings

BuildCache = Callable[..., Path]
ENDLESS = 10_000
FLAGS = "--depth 1 --width 12 --heads 2 --fusion-width 8 --batch-size 4 --device cpu --tracker none"
TINY = TrainSettings(
    depth=1, width=12, heads=2, fusion_width=8, batch_size=4, device="cpu", tracker="none", epochs=2
)
LAUNCH = "-m torch.distributed.run --standalone --nproc-per-node 2 --no-python"
TORCHRUN = (sys.executable, *LAUNCH.split())
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def command(program: Path, cache: Path, out: Path, epochs: int) -> list[str]:
    folders = ("--cache-dir", str(cache), "--out", str(out))
    return [str(program), *folders, "--epochs", str(epochs), *FLAGS.split()]


@contextmanager
def being_trained(cache: Path, out: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An endless training by the installed command, under way."""
    line = command(BIN / "thinkjepa-train", cache, out, ENDLESS)
    with subprocess.Popen(
        line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        try:
            while not (out / "resume.safetensors").exists():
                assert process.poll() is None, process.stderr and process.stderr.read()
                time.sleep(0.05)
            yield process
        finally:
            process.kill()


def run(cache: Path, out: Path, settings: TrainSettings = TINY, **options: object) -> dict[str, object]:
    return train(cache, out, settings, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("launch", [(), TORCHRUN], ids=["one process", "torchrun"])
def test_the_second_training_is_refused_and_the_first_goes_on(
    latent_cache: BuildCache, tmp_path: Path, launch: tuple[str, ...]
) -> None:
    cache, out = latent_cache(), tmp_path / "run"
    with being_trained(cache, out) as first:
        second = subprocess.run(
            [*launch, *command(forking_commands() / "thinkjepa-train", cache, out, 2)],
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
            env=ENVIRONMENT,
        )
        assert first.poll() is None
    assert second.returncode != 0
    refusals = [line for line in second.stderr.splitlines() if line.startswith("error: ")]
    assert f"'{out}' is being written by process {first.pid} of " in refusals[0] + refusals[-1]
    if not launch:
        assert second.returncode == 2
        assert refusals[0].endswith("wait for it to end, or choose another --out")
    anew = run(cache, tmp_path / "run", owns_out_dir=True)
    assert anew["epochs"] == 2, "the killed process holds nothing any more"


def test_whoever_waits_finds_the_run_finished(latent_cache: BuildCache, tmp_path: Path) -> None:
    cache, out = latent_cache(), tmp_path / "run"
    with pytest.raises(StageError, match="is being written by process"), WriteLock(out, remedy=""):
        run(cache, out)
    assert not (out / "run.json").exists()

    lock, notes = WriteLock(out, remedy=""), list[str]()
    lock.__enter__()

    def finish_first(note: str) -> None:
        notes.append(note)
        lock.__exit__(None, None, None)
        run(cache, out)

    waited = run(cache, out, on_wait=finish_first)
    assert len(notes) == 1
    assert waited == json.loads((out / "metrics.json").read_text())
    with pytest.raises(StageError, match="holds a finished run that differs"):
        run(cache, out, replace(TINY, seed=1))
