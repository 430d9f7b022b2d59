"""Curves while a run is trained, by the tracker that accelerate knows under the chosen name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.fit_state import EpochLosses
from thinkjepa.stages.train.settings import TrainSettings

TENSORBOARD, NONE = "tensorboard", "none"

PROJECT = "thinkjepa"
"""What trackers with an account file runs under; TensorBoard writes to RUN/tensorboard."""


def chosen_tracker(name: str) -> str | None:
    """The name for accelerate, None for no tracker. Raises StageError for an unknown or a missing one."""
    if name == NONE:
        return None
    known = [kind.value for kind in LoggerType if kind != LoggerType.ALL]
    if name not in known:
        raise StageError(f"--tracker {name!r}: give none or one of {', '.join(known)}")
    if name not in [str(kind.value) for kind in get_available_trackers()]:
        raise StageError(f"--tracker {name!r} is not installed: pip install {name}, or give --tracker none")
    return name


@contextmanager
def tracked(accelerator: Accelerator, settings: TrainSettings, out: Path) -> Iterator[None]:
    """While this lasts, what is logged goes to the tracker. Raises StageError where it cannot be started."""
    if settings.tracker == NONE:
        yield
        return
    is_board = settings.tracker == TENSORBOARD
    try:
        accelerator.init_trackers(
            TENSORBOARD if is_board else PROJECT,
            config=None if is_board else {**asdict(settings), "out": str(out)},
        )
    except Exception as error:  # each library has errors of its own: no network, no account, ...
        reason = " ".join(str(error).split())[:300]
        raise StageError(
            f"--tracker {settings.tracker!r} cannot be started ({type(error).__name__}: {reason}): set it "
            "up, or give --tracker none"
        ) from error
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.trackers = []


def log_step(accelerator: Accelerator, optimizer: torch.optim.Optimizer, *, step: int, loss: float) -> None:
    """A training step, counted from 1 over the whole run: its loss, and the learning rate of each part."""
    if accelerator.trackers:
        rates = {f"learning_rate/{group['part']}": float(group["lr"]) for group in optimizer.param_groups}
        accelerator.log({"train/loss": loss, **rates}, step=step)


def log_epoch(accelerator: Accelerator, *, step: int, losses: EpochLosses) -> None:
    """What an epoch came to, at its last step."""
    values = {name: value for name, value in asdict(losses).items() if value is not None}
    if accelerator.trackers:
        accelerator.log({f"epoch/{name}": float(value) for name, value in values.items()}, step=step)
