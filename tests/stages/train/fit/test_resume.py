"""A run that was stopped anywhere ends as one that was not."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import killed_training
import pytest
import torch
from commands import BIN, run_command

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.events import Report, RunStarts, TrainEvent, report_nothing
from thinkjepa.stages.train.run import train
from thinkjepa.stages.train.settings import TrainSettings

BuildCache = Callable[..., Path]

TINY = TrainSettings(
    epochs=3,
    batch_size=4,
    depth=1,
    width=12,
    heads=2,
    fusion_width=8,
    device="cpu",
    schedule="cosine",
    drop_guidance=0.3,
    save_every_s=0.0,
)


class StopError(Exception):
    """Stands for a killed process."""


def run(
    cache: Path,
    out: Path,
    *,
    progress: Callable[..., None] = lambda **_: None,
    report: Report = report_nothing,
    owns_out_dir: bool = False,
    **changed: Any,
) -> None:
    train(cache, out, replace(TINY, **changed), progress=progress, report=report, owns_out_dir=owns_out_dir)


def files_of(run_dir: Path) -> dict[str, bytes]:
    """All files of a run but the tracker's, which say when they were written."""
    files = [path for path in run_dir.rglob("*") if path.is_file() and "tensorboard" not in path.parts]
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in files}


def test_stopped_after_any_step_a_run_goes_on_from_there_to_the_same_files(
    latent_cache: BuildCache, tmp_path: Path
) -> None:
    cache = latent_cache()
    run(cache, tmp_path / "whole")
    done: list[tuple[int, int]] = []

    def stop_now_and_then(*, epoch: int, step: int, total_steps: int, loss: float) -> None:
        done.append((epoch, step))
        if len(done) % 2 == 0:
            raise StopError

    for _ in range(40):
        try:
            run(cache, tmp_path / "cut", progress=stop_now_and_then)
        except StopError:
            continue
        break
    per_epoch = max(step for _, step in done)
    assert len(set(done)) == 3 * per_epoch
    assert len(done) > len(set(done))  # the step in hand when it stopped is done again, and no other
    assert len(done) <= 2 * len(set(done))
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


@pytest.mark.parametrize(("num_kills", "epochs"), [(4, 6), pytest.param(20, 30, marks=pytest.mark.soak)])
def test_killed_at_random_moments_the_curve_is_that_of_an_uninterrupted_run(
    latent_cache: BuildCache, tmp_path: Path, num_kills: int, epochs: int
) -> None:
    """SIGKILL to real processes; most of them in the second epoch and later."""
    killed = multiprocessing.get_context("spawn").Process(
        target=killed_training.train_killed,
        args=(latent_cache(), tmp_path, replace(TINY, epochs=epochs), num_kills),
    )
    killed.start()
    killed.join()
    assert killed.exitcode == 0
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_command_goes_on_to_the_same_files(
    latent_cache: BuildCache, tmp_path: Path, how: signal.Signals
) -> None:
    cache = latent_cache()
    flags = "--depth 1 --width 12 --heads 2 --fusion-width 8 --batch-size 4 --device cpu --save-every-s 0"
    command = ["thinkjepa-train", "--cache-dir", str(cache), *flags.split(), "--epochs", "40"]
    out = tmp_path / "runs"
    assert run_command(*command, "--out", out / "whole").returncode == 0
    process = subprocess.Popen(
        [BIN / command[0], *command[1:], "--out", out / "cut"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (out / "cut" / "resume.safetensors").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(random.Random(0).uniform(0, 0.5))
    os.kill(process.pid, how)
    assert process.wait(60) == (-signal.SIGKILL if how == signal.SIGKILL else 128 + signal.SIGTERM)
    assert not (out / "cut" / "run.json").exists()
    assert run_command(*command, "--out", out / "cut").returncode == 0
    assert files_of(out / "cut") == files_of(out / "whole")
    again = run_command(*command, "--out", out / "cut")
    first = again.stdout.splitlines()[0]
    assert first.startswith(f"{out / 'cut'}: already finished, nothing was trained: best epoch ")
    places = [first.index(f" {side}") for side in ("train,", "validation,", "test)")]
    assert places == sorted(places)


def test_a_run_goes_on_with_the_threads_that_it_began_with(latent_cache: BuildCache, tmp_path: Path) -> None:
    """The default here is one thread, as `one_thread` has it; the run was begun with two."""
    cache = latent_cache()
    run(cache, tmp_path / "whole", threads=2)

    def stop(*, epoch: int, step: int, total_steps: int, loss: float) -> None:
        if epoch == 2:
            raise StopError

    with pytest.raises(StopError):
        run(cache, tmp_path / "cut", threads=2, progress=stop)
    run(cache, tmp_path / "cut")
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["threads"] == 2
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")
    run(cache, tmp_path / "cut")  # is found finished
    assert torch.get_num_threads() == 1


def test_a_run_says_where_it_continues_and_what_it_replaces(latent_cache: BuildCache, tmp_path: Path) -> None:
    cache = latent_cache()

    def stop(*, step: int, **_: int) -> None:
        if step == 2:  # the first one is saved
            raise StopError

    def said(**settings: Any) -> tuple[int, list[str]]:
        events: list[TrainEvent] = []
        with pytest.raises(StopError):
            run(cache, tmp_path / "run", progress=stop, report=events.append, **settings)
        (start,) = [event for event in events if isinstance(event, RunStarts)]
        return start.steps_done, [event for event in events if isinstance(event, str)]

    assert said() == (0, [])
    assert said() == (1, [])
    with pytest.raises(StageError, match=r"differs in settings.seed \(0, now 1\): repeat its settings"):
        run(cache, tmp_path / "run", seed=1)
    steps_done, notes = said(seed=1, owns_out_dir=True)
    assert steps_done == 0
    assert notes == [
        f"'{tmp_path / 'run'}' has an unfinished run of other settings or features: it begins anew; "
        "it differs in settings.seed (0, now 1)"
    ]


@pytest.mark.parametrize("file", ["notes.txt", "orbit/0.mp4"])
def test_a_folder_of_other_files_is_no_place_for_a_run(
    latent_cache: BuildCache, tmp_path: Path, file: str
) -> None:
    path = tmp_path / "out" / file
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(StageError, match=f"holds other files and no run, e.g. '{file}'"):
        run(latent_cache(), tmp_path / "out")
    assert [item for item in (tmp_path / "out").rglob("*") if item.is_file()] == [path]
