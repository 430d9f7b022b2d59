"""Curves while a run is trained, by the tracker that accelerate knows under the chosen name."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from thinkjepa.cache.disk.files import replace_file
from thinkjepa.stages.display import MILLIMETERS
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.picture_style import (
    BASELINES,
    BEST,
    PANEL_IN,
    TRAINING,
    VALIDATION,
    legend_below,
    new_figure,
    picture_style,
    png_bytes,
    scale_axis,
)
from thinkjepa.stages.train.fit.state import EpochLosses, FitState
from thinkjepa.stages.train.settings import TrainSettings

TENSORBOARD, NONE = "tensorboard", "none"

PROJECT = "thinkjepa"
"""Name of the project for trackers with an account. TensorBoard writes to RUN/tensorboard."""


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
    """Log the losses of an epoch, at its last step."""
    values = {name: value for name, value in asdict(losses).items() if value is not None}
    if accelerator.trackers:
        accelerator.log({f"epoch/{name}": float(value) for name, value in values.items()}, step=step)


LEGEND_IN = 0.4

LOWEST = {
    "joints": "validation distance of joints",
    "latents": "validation latent error",
    "loss": "validation loss",
}
"""The figure of the best epoch, in words, for each value of `--select-by`."""

DOTS_UP_TO = 30
"""Epochs up to which each is a dot, too: a line through one of them alone would be invisible."""


def write_curve(run_dir: Path, state: FitState, *, persistence_loss: float | None) -> None:
    """Write `curve.csv` (a column for each of EpochLosses) and `curve.png`, the best epoch marked.

    `persistence_loss` is latent persistence's error, drawn with the validation latent error. None in a run
    without latents.
    """
    replace_file(run_dir / "curve.csv", _table(state.curve).encode())
    replace_file(run_dir / "curve.png", _picture(state, persistence_loss))


def _table(curve: Sequence[EpochLosses]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(asdict(curve[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(point) for point in curve)
    return text.getvalue()


def _picture(state: FitState, persistence_loss: float | None) -> bytes:
    """A panel of the loss, of the latents' error where that is not the loss, and of the joints' distance."""
    curve = state.curve
    training = [point.train_loss for point in curve]
    losses = [point.validation_loss for point in curve]
    latents = [error for point in curve if (error := point.validation_latent_error) is not None]
    joints_mm = [MILLIMETERS.scale * (point.validation_distance_m or 0.0) for point in curve]
    apart = bool(latents) and not all(map(math.isclose, losses, latents))
    with_joints = curve[0].validation_distance_m is not None
    panels = 1 + apart + with_joints
    with picture_style():
        figure = new_figure(PANEL_IN[0] * max(panels, 1.4), PANEL_IN[1] + LEGEND_IN)
        loss, *others = figure.subplots(1, panels, squeeze=False).flat
        _draw(loss, state, losses, more=(training,))
        is_latents = bool(latents) and not apart
        loss.set_ylabel("latent mean squared error (loss)" if is_latents else "loss (weighted sum of errors)")
        if apart:
            _draw(others[0], state, latents, more=())
            others[0].set_ylabel("latent mean squared error")
        if with_joints:
            _draw(others[-1], state, joints_mm, more=())
            others[-1].set_ylabel("mean distance of joints (mm)")
        if persistence_loss is not None:
            with_persistence = others[0] if apart else loss
            with_persistence.axhline(
                persistence_loss, label="latent persistence (validation)", **BASELINES["latent_persistence"]
            )
            scale_axis(with_persistence, [*latents, persistence_loss, *([] if apart else training)])
        legend_below(figure, [loss, *others], columns=2)
        return png_bytes(figure)


def _draw(
    axes: Axes, state: FitState, validation: Sequence[float], *, more: Sequence[Sequence[float]]
) -> None:
    """Validation values by epoch with the best epoch marked, and the values in training that `more` has."""
    curve, best = state.curve, state.best
    epochs = [point.epoch for point in curve]
    dots: dict[str, Any] = {"marker": "o", "markersize": 2.5} if len(curve) <= DOTS_UP_TO else {}
    for values in more:
        axes.plot(epochs, values, label="training", **{**TRAINING, **dots})
    axes.plot(epochs, validation, label="validation", **{**VALIDATION, **dots})
    label = f"best epoch, {best.epoch} (lowest {LOWEST[state.select_by]})"
    axes.plot(best.epoch, validation[epochs.index(best.epoch)], label=label, clip_on=False, **BEST)
    axes.set_xlabel("epoch")
    margin = min(0.5, 0.05 * (epochs[-1] - epochs[0])) or 0.5
    axes.set_xlim(epochs[0] - margin, epochs[-1] + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    scale_axis(axes, [*validation, *(value for values in more for value in values)])
