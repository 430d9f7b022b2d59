"""The learning curve as a table and as a picture."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from thinkjepa.cache.disk import replace_file
from thinkjepa.stages.train.fit_state import EpochLosses


def write_curve(run_dir: Path, curve: Sequence[EpochLosses], *, persistence_loss: float) -> None:
    """Write `curve.csv` (a column for each of EpochLosses) and `curve.png`.

    `persistence_loss` is latent persistence's error, drawn beside the validation latent error.
    """
    replace_file(run_dir / "curve.csv", _table(curve).encode())
    replace_file(run_dir / "curve.png", _picture(curve, persistence_loss))


def _table(curve: Sequence[EpochLosses]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(asdict(curve[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(point) for point in curve)
    return text.getvalue()


def _picture(curve: Sequence[EpochLosses], persistence_loss: float) -> bytes:
    distances_m = [point.validation_distance_m for point in curve]
    panels = 1 if None in distances_m else 2
    figure = Figure(figsize=(6, 3.5 * panels), layout="constrained")
    FigureCanvasAgg(figure)
    losses, *others = figure.subplots(panels, sharex=True, squeeze=False).flat
    epochs = [point.epoch for point in curve]
    losses.plot(epochs, [point.train_loss for point in curve], label="loss, training")
    losses.plot(epochs, [point.validation_loss for point in curve], label="loss, validation")
    losses.axhline(persistence_loss, color="gray", linestyle=":", label="latent persistence, validation")
    losses.set(ylabel="weighted mean squared errors" if others else "latent mean squared error", yscale="log")
    losses.legend()
    for axes in others:
        axes.plot(epochs, distances_m, color="C1")
        axes.set(ylabel="joints' mean distance (m), validation", yscale="log")
    (losses, *others)[-1].set_xlabel("epoch")
    losses.xaxis.set_major_locator(MaxNLocator(integer=True))
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()
