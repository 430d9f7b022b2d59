"""Pictures of comparisons and rollouts: curves over the horizon, and dots with intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from thinkjepa.pipeline.cli.console import counted
from thinkjepa.pipeline.report.markdown import (
    Comparison,
)
from thinkjepa.pipeline.report.rollouts import (
    Rolled,
    rolled_metrics,
    rollout_entries,
)
from thinkjepa.pipeline.report.tables import available
from thinkjepa.pipeline.report.verdict import (
    evidence_of,
    is_main,
    outcome,
)
from thinkjepa.stages.evaluate.metrics import VALIDATION_METRICS, Metric, exhibited
from thinkjepa.stages.picture_style import (
    BASELINES,
    BEST,
    BLACK,
    PANEL_IN,
    SECONDS_AHEAD,
    control_look,
    legend_below,
    new_figure,
    picture_style,
    png_bytes,
    scale_axis,
    variant_look,
)

LEGEND_IN = 0.9

ROW_IN, DOT_PANEL_IN, AXIS_IN = 0.26, 1.9, 1.0

CHARACTER_IN = 0.075

BAND_ALPHA = 0.12

DOT_SIZE = 5.0

END_MARGIN = 1.05
"""Length of an axis that begins at 0, over its largest value."""

SMALL = 1e-3
"""Below it tick labels would need a power of ten of their own."""

CURVES = ("validation_distance_m", "validation_latent_error", "validation_loss")
"""Columns of `curve.csv` that are drawn, where a run has them."""

NOT_KNOWN = {"mean": np.nan, "low": None, "high": None}
"""The figure of a step at which no clip has a score."""

Record = Mapping[str, Any]

Look = Mapping[str, Any]

Encode = Callable[[Figure], bytes]
"""The file format of a picture: `png_bytes` or `svg_bytes`."""


def horizon_picture(comparison: Comparison, *, encode: Encode = png_bytes) -> bytes:
    """Each method's means at every latent step, the models' with their intervals."""
    entries = [entry for entry in comparison["entries"] if is_main(entry)]
    metrics = available(exhibited("horizon"), [entry["metrics"] for entry in entries])
    seconds = [step["seconds"] for step in comparison["horizon"]]
    looks = entry_looks(comparison)
    with picture_style():
        figure = new_figure(PANEL_IN[0] * len(metrics), PANEL_IN[1] + LEGEND_IN)
        panels = figure.subplots(1, len(metrics), sharex=True, squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            for entry in entries:
                if metric.name in entry["metrics"]:
                    steps = [step.get(metric.name, NOT_KNOWN) for step in entry["horizon"]]
                    points = [_shown(figure, metric) for figure in steps]
                    band = entry["method"] == "model"
                    _draw_curve(
                        axes, seconds, points, label=entry["name"], look=looks[entry["name"]], band=band
                    )
            _name_curves(axes, metric)
        figure.suptitle(_means_caption("means", comparison, panels), fontsize="small")
        legend_below(figure, panels)
        return encode(figure)


def rollout_picture(rolled: Rolled, *, encode: Encode = png_bytes) -> bytes:
    """Each metric over the horizons of rollouts, models with their intervals; controls are left out."""
    seconds = [item["last_frame_s"] for item in rolled["horizons"]]
    metrics, looks = rolled_metrics(rolled), entry_looks(rolled)
    with picture_style():
        figure = new_figure(PANEL_IN[0] * len(metrics), PANEL_IN[1] + LEGEND_IN)
        panels = figure.subplots(1, len(metrics), sharex=True, squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            for entry in filter(is_main, rollout_entries(rolled, metric)):
                found = [_shown(figures[metric.name], metric) for figures in entry["horizons"]]
                name, band = entry["name"], entry["method"] == "model"
                _draw_curve(axes, seconds, found, label=name, look=looks[name], band=band)
            _name_curves(axes, metric)
        figure.suptitle(_means_caption("means over clips", rolled, panels), fontsize="small")
        legend_below(figure, panels)
        return encode(figure)


def curve_picture(
    comparison: Comparison, curves: Mapping[str, Sequence[Record]], *, encode: Encode = png_bytes
) -> bytes:
    """Validation figures of each run by epoch, a panel for each figure; seeds have one look.

    `curves` are the rows of each run's `curve.csv` by the run's name. A star marks the lowest value.
    """
    shown = [
        name for name in CURVES if any(row.get(name) is not None for rows in curves.values() for row in rows)
    ]
    looks = entry_looks(comparison)
    with picture_style():
        figure = new_figure(PANEL_IN[0] * max(len(shown), 1.4), PANEL_IN[1] + LEGEND_IN)
        panels = figure.subplots(1, max(len(shown), 1), squeeze=False)[0]
        for axes, name in zip(panels, shown, strict=False):
            unit, drawn = VALIDATION_METRICS[name].unit, []
            for group in comparison["groups"]:
                look = {**looks[group["name"]], "markersize": 0}
                for rows in (curves.get(run, ()) for run in group["runs"]):
                    points = [
                        (row["epoch"], unit.scale * row[name]) for row in rows if row.get(name) is not None
                    ]
                    if points:
                        axes.plot(*zip(*points, strict=True), label=group["name"], **look)
                        lowest = min(points, key=lambda point: point[1])
                        axes.plot(*lowest, clip_on=False, **{**BEST, "color": look["color"]})
                        drawn += [value for _, value in points]
            axes.set(xlabel="epoch", title=VALIDATION_METRICS[name].label, ylabel=unit.axis)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            scale_axis(axes, drawn)
        legend_below(figure, panels)
        return encode(figure)


def _means_caption(means: str, comparison: Record, panels: Iterable[Axes]) -> str:
    """The caption of lines and of the bands around them; bands only where intervals are known."""
    bands = "; bands: 95 % intervals" if any(axes.collections for axes in panels) else ""
    return f"lines: {means}{bands}, {_clips(comparison)}"


def _intervals(comparison: Record) -> str:
    return f"95 % intervals, {_clips(comparison)}"


def _clips(comparison: Record) -> str:
    clips, videos = (counted(comparison[f"num_{name}s"], name) for name in ("clip", "video"))
    return f"{clips} of {videos}"


def _shown(figure: Record, metric: Metric) -> dict[str, float | None]:
    """A figure in the unit of its axis."""
    return {
        end: None if figure[end] is None else metric.unit.scale * figure[end]
        for end in ("mean", "low", "high")
    }


def _draw_curve(
    axes: Axes, seconds: Sequence[float], points: Sequence[Record], *, label: str, look: Look, band: bool
) -> None:
    """Means over the horizon, with their intervals as a band."""
    axes.plot(seconds, [point["mean"] for point in points], label=label, **look)
    lows, highs = (np.array([point[end] for point in points], float) for end in ("low", "high"))
    if band and np.isfinite(lows).any():
        axes.fill_between(seconds, lows, highs, color=look["color"], alpha=BAND_ALPHA, linewidth=0)


def _name_curves(axes: Axes, metric: Metric) -> None:
    """Title, units, and axes that begin at 0 where 0 is the best, with room for the markers at their ends."""
    axes.set_title(f"{metric.heading()} {metric.arrow}")
    axes.set(xlabel=SECONDS_AHEAD, ylabel=metric.unit.axis)
    axes.set_xlim(0, END_MARGIN * axes.dataLim.x1)
    if not metric.better_when_larger:
        axes.set_ylim(0, END_MARGIN * axes.dataLim.y1)


def distance_picture(comparison: Comparison, *, encode: Encode = png_bytes) -> bytes:
    """A row per method, a panel per metric, dots with intervals."""
    looks = entry_looks(comparison)
    rows = [
        (entry["name"], entry["metrics"], dict.fromkeys(entry["metrics"], looks[entry["name"]]))
        for entry in comparison["entries"]
    ]
    return _dot_picture(comparison, rows, note="", encode=encode)


def difference_picture(comparison: Comparison, *, encode: Encode = png_bytes) -> bytes:
    """A row per pair, a panel per metric, dots with intervals around a line at 0.

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
    note = "filled: a difference; hollow: none, or too little to tell"
    return _dot_picture(comparison, rows, note=note, encode=encode)


def _dot_picture(
    comparison: Comparison,
    rows: Sequence[tuple[str, Record, Mapping[str, Look]]],
    *,
    note: str,
    encode: Encode,
) -> bytes:
    """Rows are a name, its figures by metric and their looks. With a note they are differences around 0."""
    metrics = available(exhibited("distances"), [found for _, found, _ in rows])
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
            for position, (_, found, looks) in enumerate(rows):
                if metric.name in found:
                    _draw_dot(axes, position, _shown(found[metric.name], metric), looks[metric.name])
            axes.set_title(f"{metric.heading(last_frame_s=last_frame_s)} {metric.arrow}")
            axes.margins(x=0.08)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            label = _in_powers(axes, metric.unit.difference_axis) if note else metric.unit.axis
            axes.set_xlabel(label)
        panels[0].set_yticks(range(len(rows)), [name for name, *_ in rows])
        panels[0].set_ylim(len(rows) - 0.5, -0.5)
        words = [f"lines: {_intervals(comparison)}", *([note] if note else [])]
        figure.supxlabel("; ".join(words), fontsize="small")
        return encode(figure)


def _in_powers(axes: Axes, label: str) -> str:
    """The label of an axis. Small values are given in a power of ten, which the label names."""
    largest = max(map(abs, axes.get_xlim()))
    if largest >= SMALL:
        return label
    exponent = math.floor(math.log10(largest))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 10.0**exponent:.3g}")
    unit = f"$10^{{{exponent}}}$"
    return label.replace("(", f"({unit} ") if "(" in label else f"{label} ({unit})"


def _draw_dot(axes: Axes, position: int, figure: Record, look: Look) -> None:
    if figure["low"] is not None:
        axes.plot([figure["low"], figure["high"]], [position, position], color=look["color"], linewidth=1.6)
    marker = {"marker": "o", "markerfacecolor": "white", **look, "linestyle": "none", "markersize": DOT_SIZE}
    if marker["markerfacecolor"] == "none":
        marker["markerfacecolor"] = "white"  # the interval's line ends at the marker
    axes.plot([figure["mean"]], [position], **marker)


def entry_looks(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """The look of each entry: a model has its variant's, a control its model's, the rest are baselines."""
    variants = {group["name"]: group["variant"] for group in comparison["groups"]}
    counts: Counter[str] = Counter()
    looks: dict[str, dict[str, Any]] = {}
    for entry in comparison["entries"]:
        variant = variants.get(entry["group"])
        if entry["method"] == "model":
            looks[entry["name"]] = variant_look(str(variant), nth=counts[str(variant)])
            counts[str(variant)] += 1
        elif variant is not None:
            looks[entry["name"]] = control_look(variant)
        else:
            looks[entry["name"]] = dict(BASELINES[entry["method"]])
    return looks
