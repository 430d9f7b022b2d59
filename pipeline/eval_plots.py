"""A comparison as pictures: over the horizon, means with intervals, and differences with intervals."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from thinkjepa.pipeline.eval_labels import METRIC_LABELS, better_arrow, is_main
from thinkjepa.stages.evaluate.summary import BETTER_WHEN_LARGER

DPI = 120
PANEL_IN = (3.3, 3.2)
ROW_IN = 0.26
CHARACTER_IN = 0.075

MODEL_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, told apart by the colour-blind."""
MARKERS = "osD^vP"
BASELINE_GREY = "#666666"
BASELINE_LINES = ((0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (8, 3)), (0, (3, 1, 1, 1, 1, 1)))

HORIZON_METRICS = ("ade_m", "l2", "cosine")
DISTANCE_METRICS = ("ade_m", "fde_m", "acc_5cm", "keypoint_m", "l2", "cosine")

NOT_KNOWN = {"mean": np.nan, "low": None, "high": None}
"""Where no clip has a score at a step."""

Comparison = Mapping[str, Any]
Record = Mapping[str, Any]


def horizon_picture(comparison: Comparison) -> bytes:
    """PNG: each method's means at every latent step, the models' with their intervals."""
    entries = [entry for entry in comparison["entries"] if is_main(entry)]
    metrics = [metric for metric in HORIZON_METRICS if _any_has(entries, metric)]
    with matplotlib.style.context("default", after_reset=True):
        figure = Figure(figsize=(PANEL_IN[0] * len(metrics), PANEL_IN[1] + 0.9), layout="constrained")
        panels = figure.subplots(1, len(metrics), squeeze=False)[0]
        seconds = [step["seconds"] for step in comparison["horizon"]]
        styles = _styles(comparison["entries"])
        for axes, metric in zip(panels, metrics, strict=True):
            _draw_curves(axes, entries, metric, seconds, styles)
        handles = {
            str(label): handle
            for axes in panels
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower center",
            ncols=3,
            frameon=False,
            fontsize=8,
        )
        return _png(figure)


def distance_picture(comparison: Comparison) -> bytes:
    """PNG: a row per method, a panel per metric, dots with intervals."""
    rows = [(entry["name"], entry["metrics"]) for entry in comparison["entries"]]
    return _dot_picture(rows, styles=_styles(comparison["entries"]), zero_line=False)


def difference_picture(comparison: Comparison) -> bytes:
    """PNG: a row per pair, a panel per metric, dots with intervals around a line at 0.

    Models against each other and against their own shuffled guidance; with one group, against all methods.
    """
    kinds = {entry["name"]: entry["method"] for entry in comparison["entries"]}
    shown = {"model", "shuffled_guidance"} if len(comparison["groups"]) > 1 else set(kinds.values())
    chosen = [item for item in comparison["differences"] if kinds[item["b"]] in shown]
    names = {item["a"]: entry for item in chosen for entry in [_styles(comparison["entries"])[item["a"]]]}
    rows = [(f"{item['a']} − {item['b']}", item["metrics"]) for item in chosen]  # noqa: RUF001
    styles = {row[0]: names[item["a"]] for row, item in zip(rows, chosen, strict=True)}
    return _dot_picture(rows, styles=styles, zero_line=True)


def _draw_curves(
    axes: Axes, entries: Sequence[Record], metric: str, seconds: Sequence[float], styles: Mapping[str, Any]
) -> None:
    for entry in entries:
        if metric not in entry["metrics"]:
            continue
        points = [step.get(metric, NOT_KNOWN) for step in entry["horizon"]]
        style = styles[entry["name"]]
        axes.plot(seconds, [point["mean"] for point in points], label=entry["name"], markersize=3, **style)
        if entry["method"] == "model":
            lows, highs = (np.array([point[end] for point in points], float) for end in ("low", "high"))
            axes.fill_between(seconds, lows, highs, color=style["color"], alpha=0.15, linewidth=0)
    axes.set(xlabel="seconds after the last observed frame", xlim=(0, None))
    axes.set_title(_metric_title(metric), fontsize=9)
    if metric not in BETTER_WHEN_LARGER:
        axes.set_ylim(bottom=0)
    _tidy(axes)


def _dot_picture(rows: Sequence[tuple[str, Record]], *, styles: Mapping[str, Any], zero_line: bool) -> bytes:
    metrics = [metric for metric in DISTANCE_METRICS if any(metric in found for _, found in rows)]
    label_in = CHARACTER_IN * max((len(name) for name, _ in rows), default=0)
    size = (label_in + 1.9 * max(len(metrics), 1), 0.9 + ROW_IN * max(len(rows), 1))
    with matplotlib.style.context("default", after_reset=True):
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, max(len(metrics), 1), sharey=True, squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=False):
            if zero_line:
                axes.axvline(0, color="black", linewidth=0.8)
            for place, (name, found) in enumerate(rows):
                if metric in found:
                    _draw_dot(axes, place, found[metric], styles[name])
            axes.set_title(_metric_title(metric), fontsize=9)
            axes.margins(x=0.08)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            _tidy(axes)
        panels[0].set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
        panels[0].set_ylim(len(rows) - 0.5, -0.5)
        return _png(figure)


def _draw_dot(axes: Axes, place: int, figure: Record, style: Mapping[str, Any]) -> None:
    colour, marker = style["color"], style.get("marker", "o")
    if figure["low"] is not None:
        axes.plot([figure["low"], figure["high"]], [place, place], color=colour, linewidth=1.6)
    axes.plot([figure["mean"]], [place], marker=marker, color=colour, markersize=4, linestyle="none")


def _styles(entries: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """A colour and marker for each model, shared with what its weights give otherwise; greys for the rest."""
    colours: dict[str, tuple[str, str]] = {}
    styles: dict[str, dict[str, Any]] = {}
    num_grey = 0
    for entry in entries:
        if entry["method"] == "model":
            place = len(colours) % len(MODEL_COLOURS)
            colours[entry["name"]] = (MODEL_COLOURS[place], MARKERS[place])
            styles[entry["name"]] = {"color": MODEL_COLOURS[place], "marker": MARKERS[place]}
        elif entry["group"] in colours:
            styles[entry["name"]] = {
                "color": colours[entry["group"]][0],
                "linestyle": (0, (1, 1.5)),
                "marker": "x",
            }
        else:
            lines = BASELINE_LINES[num_grey % len(BASELINE_LINES)]
            styles[entry["name"]] = {"color": BASELINE_GREY, "linestyle": lines}
            num_grey += 1
    return styles


def _any_has(entries: Sequence[Record], metric: str) -> bool:
    return any(metric in entry["metrics"] for entry in entries)


def _metric_title(metric: str) -> str:
    prefix = "latent " if metric in ("l1", "l2", "smooth_l1", "cosine") else ""
    return f"{prefix}{METRIC_LABELS[metric]} {better_arrow(metric)}"


def _tidy(axes: Axes) -> None:
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_fontsize(8)


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    return content.getvalue()
