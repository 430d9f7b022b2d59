"""Trainings killed at random moments, each forked after all imports from a process that has trained nothing.

The fork matters: a process whose threads have run a backward pass cannot be forked for another one.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
import traceback
from pathlib import Path

from thinkjepa.stages.train.run import train
from thinkjepa.stages.train.settings import TrainSettings


def train_killed(cache: Path, folder: Path, settings: TrainSettings, num_kills: int) -> None:
    """Train `folder/whole` without an interruption, then `folder/cut` with so many; raise where one fails."""
    began = time.monotonic()
    assert _ended(_forked(cache, folder / "whole", settings)) == 0
    whole_s = time.monotonic() - began
    rng, kills = random.Random(0), 0
    while kills < num_kills:
        child = _forked(cache, folder / "cut", settings)
        time.sleep(rng.uniform(0.2, 1.2) * whole_s / (num_kills / 3))
        os.kill(child, signal.SIGKILL)
        ended = _ended(child)
        assert ended in (-signal.SIGKILL, 0)
        if ended == 0:  # it got through before: once more from the start
            shutil.rmtree(folder / "cut")
        kills += ended == -signal.SIGKILL
    assert _ended(_forked(cache, folder / "cut", settings)) == 0


def _forked(cache: Path, out: Path, settings: TrainSettings) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        train(cache, out, settings)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
