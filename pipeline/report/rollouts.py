"""Markdown reports of rollouts: tables by metric, a row per method or pair, a column per horizon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thinkjepa.pipeline.cli.console import counted
from thinkjepa.pipeline.report.markdown import (
    DETAILS,
    LATENTS_LEFT_OUT,
    TOO_FEW_GROUPS,
    VERDICT_METRICS,
    Comparison,
    brackets_text,
    data_warnings,
    detail_lines,
    detail_table,
)
from thinkjepa.pipeline.report.tables import TableWriter, markdown_table
from thinkjepa.pipeline.report.verdict import (
    FEWEST_GROUPS,
    Figure,
    evidence_of,
    figure_text,
    is_main,
    outcome,
)
from thinkjepa.stages.evaluate.metrics import METRICS, Metric, MetricKind, exhibited

Rolled = Mapping[str, Any]
"""The result of `compare_rollouts`."""

SLOPE_HEAD = "slope, per s"


def rollout_markdown(rolled: Rolled) -> str:
    """The conditions, a table for each metric, differences of those that verdicts are about, and details."""
    lines = [
        "# Rollout",
        "",
        f"- {rolled['num_clips']} {rolled['split']} clips of {counted(rolled['num_videos'], 'video')} in "
        f"{counted(rolled['num_groups'], 'group')} (by {rolled['grouping']})",
        f"- {brackets_text(rolled['interval'])}",
        f"- a window is {rolled['window_steps']} latent steps from {rolled['observed_steps']}; behind it the "
        "predictions become the context. `vlm` and `poses`, which have no context, keep their last step",
        "- each horizon: the mean over all steps up to it (FDE: its last frame); seconds run from the last "
        "observed frame to the horizon's last frame",
        "- slope: of the line of least squares through a clip's errors at single steps, over all steps",
        "- thinker states are those of the split, future camera poses are not used",
        *(f"- {warning}" for warning in data_warnings(rolled)),
    ]
    lines += [
        f"- {group['name']}: {counted(len(group['seeds']), 'seed')} ({', '.join(map(str, group['seeds']))})"
        for group in rolled["groups"]
    ]
    if line := left_out_line(rolled):
        lines.append(f"- {line}")
    if rolled["num_groups"] < FEWEST_GROUPS:
        lines.append(TOO_FEW_GROUPS)
    if not rolled["latents_compared"]:
        lines.append(LATENTS_LEFT_OUT)
    for metric in rolled_metrics(rolled):
        lines += ["", f"## {metric.label()} {metric.arrow}", "", rollout_table(rolled, metric)]
    for name in VERDICT_METRICS.values():
        if table := difference_table(rolled, METRICS[name]):
            lines += ["", f"## By how much: {METRICS[name].label()} {METRICS[name].arrow}", "", table]
    for kind, title in DETAILS.items():
        lines += _detail_section(rolled, kind, title)
    return "\n".join(lines) + "\n"


def _detail_section(rolled: Rolled, kind: MetricKind, title: str) -> list[str]:
    """The tables of details of a kind up to each horizon, under one title; empty without any."""
    lines: list[str] = []
    for index, head in enumerate(_horizon_heads(rolled)):
        if table := detail_table(_up_to_horizon(rolled, index), kind):
            lines += ["", f"Up to {head}:", "", table]
    if not lines:
        return []
    return ["", f"## {title}", *lines, *(f"\n- {line}" for line in detail_lines(rolled, kind))]


def _up_to_horizon(rolled: Rolled, index: int) -> Comparison:
    """The figures of one horizon, as a comparison of one window has them."""
    entries = [
        {**entry, "metrics": entry["horizons"][index], "over_clips": entry["over_clips"][index]}
        for entry in rolled["entries"]
    ]
    return {"entries": entries, "last_frame": {"seconds": rolled["horizons"][index]["last_frame_s"]}}


def left_out_line(rolled: Rolled) -> str:
    """Clips of the split that a rollout has no future of; empty where it has all."""
    if not (left_out := rolled["num_clips_left_out"]):
        return ""
    return (
        f"{left_out} of {rolled['num_clips'] + left_out} {rolled['split']} clips left out: the cache has not "
        "so many of their future windows, as where a video ends before the farthest horizon"
    )


def rollout_table(
    rolled: Rolled, metric: Metric, *, controls: bool = True, write: TableWriter = markdown_table
) -> str:
    """A row per method, a column per horizon; without `controls` models and baselines only."""

    def number(figure: Figure) -> str:
        return figure_text(figure, metric.unit.number)

    rows = [
        [entry["name"], entry["num_seeds"] or "", *_cells(entry, metric, number)]
        for entry in rollout_entries(rolled, metric)
        if controls or is_main(entry)
    ]
    return write(["method", "seeds", *_heads(rolled, rows, skipped=2)], rows)


def difference_table(rolled: Rolled, metric: Metric) -> str:
    """A row per pair, with a star where a difference is more than chance; empty without pairs."""
    rows = []
    for item in rolled["differences"]:
        evidence = evidence_of(rolled, item)

        def text(figure: Figure, evidence: Any = evidence) -> str:
            starred = outcome(metric.name, figure, evidence) in ("better", "worse")
            return figure_text(figure, metric.unit.signed) + (" *" if starred else "")

        if any(metric.name in figures for figures in item["horizons"]):
            rows.append([item["a"], item["b"], *_cells(item, metric, text)])
    return markdown_table(["a", "b", *_heads(rolled, rows, skipped=2)], rows, left=2)


def _cells(item: Mapping[str, Any], metric: Metric, text: Any) -> list[str]:
    """Figures at each horizon, and of the slope of a metric that has one."""
    found = [figures.get(metric.name) for figures in item["horizons"]]
    if metric.by_step:
        found.append(item["per_s"].get(metric.name))
    return ["" if figure is None else text(figure) for figure in found]


def _heads(rolled: Rolled, rows: Sequence[Sequence[Any]], *, skipped: int) -> list[str]:
    """Heads of the cells of `rows`, but for the first ones."""
    heads = _horizon_heads(rolled)
    with_slope = bool(rows) and len(rows[0]) - skipped > len(heads)
    return [*heads, SLOPE_HEAD] if with_slope else heads


def _horizon_heads(rolled: Rolled) -> list[str]:
    return [f"{item['steps']} steps, {item['last_frame_s']:.2f} s" for item in rolled["horizons"]]


def rollout_entries(rolled: Rolled, metric: Metric) -> list[Mapping[str, Any]]:
    """The entries that have figures of this metric at all horizons."""
    return [
        entry for entry in rolled["entries"] if all(metric.name in figures for figures in entry["horizons"])
    ]


def rolled_metrics(rolled: Rolled) -> list[Metric]:
    """The metrics that a report on rollouts shows."""
    return [metric for metric in exhibited("rollout") if rollout_entries(rolled, metric)]
