"""A comparison as pictures: over the horizon, means with intervals, and differences with intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from thinkjepa.pipeline.cli.console import counted
from thinkjepa.pipeline.report.verdict import (
    evidence_of,
    is_main,
    outcome,
)
from thinkjepa.stages.evaluate.metrics import METRICS, Exhibit, Metric, exhibited
from thinkjepa.stages.picture_style import (
    BASELINES,
    BLACK,
    PANEL_IN,
    SECONDS_AHEAD,
    control_look,
    legend_below,
    new_figure,
    picture_style,
    png_bytes,
    variant_look,
)

LEGEND_IN = 0.9

ROW_IN, DOT_PANEL_IN, AXIS_IN = 0.26, 1.9, 1.0

CHARACTER_IN = 0.075

BAND_ALPHA = 0.12

DOT_SIZE = 5.0

END_MARGIN = 1.05
"""Of an axis that begins at 0, beyond its largest value."""

SMALL = 1e-3
"""Below it tick labels would need a power of ten of their own."""

NOT_KNOWN = {"mean": np.nan, "low": None, "high": None}
"""Where no clip has a score at a step."""

Comparison = Mapping[str, Any]

Record = Mapping[str, Any]

Look = Mapping[str, Any]


def horizon_picture(comparison: Comparison) -> bytes:
    """PNG: each method's means at every latent step, the models' with their intervals."""
    entries = [entry for entry in comparison["entries"] if is_main(entry)]
    metrics = [metric for metric in _names("horizon") if any(metric in entry["metrics"] for entry in entries)]
    seconds = [step["seconds"] for step in comparison["horizon"]]
    looks = entry_looks(comparison)
    with picture_style():
        figure = new_figure(PANEL_IN[0] * len(metrics), PANEL_IN[1] + LEGEND_IN)
        panels = figure.subplots(1, len(metrics), sharex=True, squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            for entry in entries:
                if metric in entry["metrics"]:
                    points = [step.get(metric, NOT_KNOWN) for step in entry["horizon"]]
                    band = entry["method"] == "model"
                    draw_curve(
                        axes, seconds, points, label=entry["name"], look=looks[entry["name"]], band=band
                    )
            name_curves(axes, METRICS[metric])
        figure.suptitle(f"bands: {_intervals(comparison)}", fontsize="small")
        legend_below(figure, panels)
        return png_bytes(figure)


def _names(exhibit: Exhibit) -> list[str]:
    return [metric.name for metric in exhibited(exhibit)]


def _intervals(comparison: Comparison) -> str:
    """What lines and bands around means are."""
    clips, videos = (counted(comparison[f"num_{name}s"], name) for name in ("clip", "video"))
    return f"95 % intervals, {clips} of {videos}"


def draw_curve(
    axes: Axes, seconds: Sequence[float], points: Sequence[Record], *, label: str, look: Look, band: bool
) -> None:
    """Means over the horizon, with their intervals as a band."""
    axes.plot(seconds, [point["mean"] for point in points], label=label, **look)
    if band:
        lows, highs = (np.array([point[end] for point in points], float) for end in ("low", "high"))
        axes.fill_between(seconds, lows, highs, color=look["color"], alpha=BAND_ALPHA, linewidth=0)


def name_curves(axes: Axes, metric: Metric) -> None:
    """Title, units, and axes that begin at 0 where 0 is the best, with room for the markers at their ends."""
    axes.set_title(f"{metric.heading()} {metric.arrow}")
    axes.set(xlabel=SECONDS_AHEAD, ylabel=metric.unit.axis)
    axes.set_xlim(0, END_MARGIN * axes.dataLim.x1)
    if not metric.better_when_larger:
        axes.set_ylim(0, END_MARGIN * axes.dataLim.y1)


def distance_picture(comparison: Comparison) -> bytes:
    """PNG: a row per method, a panel per metric, dots with intervals."""
    looks = entry_looks(comparison)
    rows = [
        (entry["name"], entry["metrics"], dict.fromkeys(_names("distances"), looks[entry["name"]]))
        for entry in comparison["entries"]
    ]
    return _dot_picture(comparison, rows, note="")


def difference_picture(comparison: Comparison) -> bytes:
    """PNG: a row per pair, a panel per metric, dots with intervals around a line at 0.

    Models against each other and against their own shuffled guidance; with one group, against all methods.
    A dot is filled where a verdict is given, hollow where there is no difference or too little evidence.
    """
    kinds = {entry["name"]: entry["method"] for entry in comparison["entries"]}
    shown = {"model", "shuffled_guidance"} if len(comparison["groups"]) > 1 else set(kinds.values())
    looks = entry_looks(comparison)
    rows = []
    for item in comparison["differences"]:
        if kinds[item["b"]] in shown:
            evidence = evidence_of(comparison, item)
            filled = {
                metric: {**looks[item["a"]], "markerfacecolor": looks[item["a"]]["color"]}
                if outcome(metric, figure, evidence) in ("better", "worse")
                else looks[item["a"]]
                for metric, figure in item["metrics"].items()
            }
            rows.append((f"{item['a']} − {item['b']}", item["metrics"], filled))  # noqa: RUF001
    return _dot_picture(comparison, rows, note="filled: a difference; hollow: none, or too little to tell")


def _dot_picture(
    comparison: Comparison, rows: Sequence[tuple[str, Record, Mapping[str, Look]]], *, note: str
) -> bytes:
    """Rows are a name, its figures by metric and their looks. With a note they are differences around 0."""
    metrics = [metric for metric in _names("distances") if any(metric in found for _, found, _ in rows)]
    label_in = CHARACTER_IN * max((len(name) for name, *_ in rows), default=0)
    last_frame_s = comparison["last_frame"]["seconds"]
    with picture_style():
        figure = new_figure(
            label_in + DOT_PANEL_IN * max(len(metrics), 1), AXIS_IN + ROW_IN * max(len(rows), 1)
        )
        panels = figure.subplots(1, max(len(metrics), 1), sharey=True, squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=False):
            if note:
                axes.axvline(0, color=BLACK, linewidth=0.8)
            for place, (_, found, looks) in enumerate(rows):
                if metric in found:
                    _draw_dot(axes, place, found[metric], looks[metric])
            axes.set_title(f"{METRICS[metric].heading(last_frame_s=last_frame_s)} {METRICS[metric].arrow}")
            axes.margins(x=0.08)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            unit = METRICS[metric].unit
            axes.set_xlabel(_in_powers(axes, unit.difference_axis) if note else unit.axis)
        panels[0].set_yticks(range(len(rows)), [name for name, *_ in rows])
        panels[0].set_ylim(len(rows) - 0.5, -0.5)
        words = [f"lines: {_intervals(comparison)}", *([note] if note else [])]
        figure.supxlabel("; ".join(words), fontsize="small")
        return png_bytes(figure)


def _in_powers(axes: Axes, label: str) -> str:
    """The label of an axis. Small values are given in a power of ten, which the label names."""
    largest = max(map(abs, axes.get_xlim()))
    if largest >= SMALL:
        return label
    exponent = math.floor(math.log10(largest))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 10.0**exponent:.3g}")
    unit = f"$10^{{{exponent}}}$"
    return label.replace("(", f"({unit} ") if "(" in label else f"{label} ({unit})"


def _draw_dot(axes: Axes, place: int, figure: Record, look: Look) -> None:
    if figure["low"] is not None:
        axes.plot([figure["low"], figure["high"]], [place, place], color=look["color"], linewidth=1.6)
    marker = {"marker": "o", "markerfacecolor": "white", **look, "linestyle": "none", "markersize": DOT_SIZE}
    if marker["markerfacecolor"] == "none":
        marker["markerfacecolor"] = "white"  # the interval's line ends at the marker
    axes.plot([figure["mean"]], [place], **marker)


def entry_looks(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """How each entry is drawn: models by their variant, controls as their model's, the rest as baselines."""
    variants = {group["name"]: group["variant"] for group in comparison["groups"]}
    places: Counter[str] = Counter()
    looks: dict[str, dict[str, Any]] = {}
    for entry in comparison["entries"]:
        variant = variants.get(entry["group"])
        if entry["method"] == "model":
            looks[entry["name"]] = variant_look(str(variant), place=places[str(variant)])
            places[str(variant)] += 1
        elif variant is not None:
            looks[entry["name"]] = control_look(variant)
        else:
            looks[entry["name"]] = dict(BASELINES[entry["method"]])
    return looks
