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
    """Write `curve.csv` (epoch, train_loss, validation_loss) and `curve.png` with persistence as a line."""
    replace_file(run_dir / "curve.csv", _table(curve).encode())
    replace_file(run_dir / "curve.png", _picture(curve, persistence_loss))


def _table(curve: Sequence[EpochLosses]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(asdict(curve[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(point) for point in curve)
    return text.getvalue()


def _picture(curve: Sequence[EpochLosses], persistence_loss: float) -> bytes:
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    epochs = [point.epoch for point in curve]
    axes.plot(epochs, [point.train_loss for point in curve], label="training")
    axes.plot(epochs, [point.validation_loss for point in curve], label="validation")
    axes.axhline(persistence_loss, color="gray", linestyle=":", label="latent persistence, validation")
    axes.set(xlabel="epoch", ylabel="latent mean squared error", yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()
