"""The picture of a learning curve: its panels, its scale and its best epoch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from thinkjepa.stages.picture_style import DPI
from thinkjepa.stages.train.fit import tracking as curves
from thinkjepa.stages.train.fit.state import EpochLosses, FitState
from thinkjepa.stages.train.fit.tracking import write_curve

LATENTS = [EpochLosses(1, 0.9, 0.8, 0.8), EpochLosses(2, 0.5, 0.4, 0.4), EpochLosses(3, 0.2, 0.6, 0.6)]
HANDS = [EpochLosses(1, 0.9, 0.8, 0.7, 0.1), EpochLosses(2, 0.5, 0.4, 0.3, 0.2)]


def drawn(
    folder: Path,
    curve: Sequence[EpochLosses],
    monkeypatch: pytest.MonkeyPatch,
    *,
    select_by: str = "loss",
) -> tuple[Figure, tuple[int, int]]:
    """The figure, and width and height of its file in pixels."""
    figures: list[Figure] = []
    new_figure = curves.new_figure
    monkeypatch.setattr(curves, "new_figure", lambda *size: figures.append(new_figure(*size)) or figures[-1])
    write_curve(folder, FitState(tuple(curve), select_by=select_by), persistence_loss=0.45)
    return figures[0], Image.open(io.BytesIO((folder / "curve.png").read_bytes())).size


def test_the_best_epoch_is_marked_in_every_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure, _ = drawn(tmp_path, HANDS, monkeypatch)
    marked = [line.get_xydata().tolist() for axes in figure.axes for line in axes.lines[-2:]]  # type: ignore[union-attr]
    assert [[2.0, 0.4]] in marked
    assert [[2.0, 0.3]] in marked
    assert [[2.0, 200.0]] in marked, "millimetres"
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "loss (weighted sum of errors)",
        "latent mean squared error",
        "mean distance of joints (mm)",
    ]


def test_the_marked_epoch_is_the_best_by_the_figure_that_chose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The joints are nearest after the first epoch, where loss and latents are not at their lowest."""
    figure, _ = drawn(tmp_path, HANDS, monkeypatch, select_by="joints")
    (star,) = (line for line in figure.axes[-1].lines if str(line.get_label()).startswith("best"))
    assert star.get_xydata().tolist() == [[1.0, 100.0]]  # type: ignore[union-attr]
    assert star.get_label() == "best epoch, 1 (lowest validation distance of joints)"


def test_latents_that_are_the_loss_need_no_panel_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure, _ = drawn(tmp_path, LATENTS, monkeypatch)
    (axes,) = figure.axes
    labels = [line.get_label() for line in axes.lines]
    assert labels == [
        "training",
        "validation",
        "best epoch, 2 (lowest validation loss)",
        "latent persistence (validation)",
    ]


def test_the_axis_ends_with_the_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure, _ = drawn(tmp_path, LATENTS, monkeypatch)
    first, last = figure.axes[0].get_xlim()
    assert 0.5 <= first < 1
    assert 3 < last <= 3.5


def test_a_single_epoch_has_one_tick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure, _ = drawn(tmp_path, LATENTS[:1], monkeypatch)
    axes = figure.axes[0]
    first, last = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if first <= tick <= last] == [1]


def test_a_logarithmic_axis_is_taken_where_values_differ_by_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, _ = drawn(tmp_path, [EpochLosses(1, 1.0, 1.0, 1.0), EpochLosses(2, 0.5, 0.5, 0.5)], monkeypatch)
    far, _ = drawn(tmp_path, [EpochLosses(1, 1.0, 1.0, 1.0), EpochLosses(2, 0.1, 0.2, 0.2)], monkeypatch)
    none, _ = drawn(tmp_path, [EpochLosses(1, 1.0, 1.0, 1.0), EpochLosses(2, 0.0, 0.2, 0.2)], monkeypatch)
    assert [figure.axes[0].get_yscale() for figure in (near, far, none)] == ["linear", "log", "linear"]


def test_nothing_sticks_out_of_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for curve in (LATENTS[:1], LATENTS, HANDS):
        figure, (width, height) = drawn(tmp_path, curve, monkeypatch)
        box = figure.get_tightbbox(figure.canvas.get_renderer())  # type: ignore[attr-defined]
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 * DPI <= width
        assert box.y1 * DPI <= height
