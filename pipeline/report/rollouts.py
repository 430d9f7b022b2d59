"""Markdown reports of rollouts: a table for each metric, a row per method, a column per horizon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thinkjepa.pipeline.report.markdown import (
    LATENTS_LEFT_OUT,
    TOO_FEW_GROUPS,
    brackets_text,
)
from thinkjepa.pipeline.report.tables import markdown_table
from thinkjepa.pipeline.report.verdict import FEWEST_GROUPS, Figure, figure_text
from thinkjepa.stages.evaluate.baselines import METHODS
from thinkjepa.stages.evaluate.metrics import Metric, exhibited

Rolled = Mapping[str, Mapping[str, Any]]
"""Results of `evaluate_rollout` by the names of their runs."""


def rollout_markdown(rolled: Rolled) -> str:
    """The conditions of rollouts, and a table for each metric: a row per method, a column per horizon."""
    first = next(iter(rolled.values()))
    lines = [
        "# Rollout",
        "",
        f"- {first['num_clips']} {first['split']} clips of {first['num_videos']} videos; "
        f"{brackets_text(first['interval'])}",
        f"- a window is {first['window_steps']} latent steps from {first['observed_steps']}; behind it the "
        "predictions become the context. `vlm`, which has no context, keeps its last step",
        "- each horizon: the mean over all steps up to it (FDE: its last frame); seconds run from the last "
        "observed frame to the horizon's last frame",
        "- thinker states are those of the split, future camera poses are not used",
    ]
    if line := left_out_line(first):
        lines.append(f"- {line}")
    if first["num_groups"] < FEWEST_GROUPS:
        lines.append(TOO_FEW_GROUPS)
    if not _one_latent_space(rolled):
        lines.append(LATENTS_LEFT_OUT)
    for metric in rolled_metrics(rolled):
        lines += ["", f"## {metric.label()} {metric.arrow}", "", rollout_table(rolled, metric)]
    return "\n".join(lines) + "\n"


def left_out_line(rolled: Mapping[str, Any]) -> str:
    """Clips of the split that a rollout has no future of; empty where it has all."""
    if not (left_out := rolled["num_clips_left_out"]):
        return ""
    return (
        f"{left_out} of {rolled['num_clips'] + left_out} {rolled['split']} clips left out: the cache has not "
        "so many of their future windows, as where a video ends before the farthest horizon"
    )


def rollout_table(rolled: Rolled, metric: Metric, *, controls: bool = True) -> str:
    """A row per method, a column per horizon; without `controls` models and baselines only."""
    heads = [
        f"{item['steps']} steps, {item['last_frame_s']:.2f} s"
        for item in next(iter(rolled.values()))["horizons"]
    ]
    rows = [
        [label, *map(figure_text, figures)]
        for label, method, figures in rollout_rows(rolled, metric)
        if controls or method == "model" or metric.kind not in METHODS[method].of_run
    ]
    return markdown_table(["method", *heads], rows)


def rollout_rows(rolled: Rolled, metric: Metric) -> list[tuple[str, str, list[Figure]]]:
    """Label, method and the figure at each horizon: of every run's methods, and once of each baseline."""
    rows = []
    for number, (name, result) in enumerate(rolled.items()):
        for method, figures in result["horizons"][0][metric.kind].items():
            of_run = metric.kind in METHODS[method].of_run
            if metric.name in figures and (of_run or not number):
                own = METHODS[method].in_rollout.format(rolled_name(name, result))
                found = [item[metric.kind][method][metric.name] for item in result["horizons"]]
                rows.append((own if of_run else method.replace("_", " "), method, found))
    return rows


def rolled_metrics(rolled: Rolled) -> list[Metric]:
    """The metrics that a report on rollouts shows."""
    return [
        metric
        for metric in exhibited("rollout")
        if (metric.kind != "latent" or _one_latent_space(rolled)) and rollout_rows(rolled, metric)
    ]


def rolled_name(name: str, result: Mapping[str, Any]) -> str:
    """A run's name in a report on rollouts, with its variant."""
    variant = result["variant"]
    return name if variant in name else f"{name} ({variant})"


def _one_latent_space(rolled: Rolled) -> bool:
    spaces = [result["latent_space"] for result in rolled.values()]
    return all(space == spaces[0] for space in spaces)
