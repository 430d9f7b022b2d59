"""Rollouts for people: a table over the horizons and a picture, of one run or of several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thinkjepa.cache.disk.files import replace_file
from thinkjepa.cache.disk.lock import WAIT, WriteLock
from thinkjepa.pipeline.report.markdown import markdown_table
from thinkjepa.pipeline.report.plots import LEGEND_IN, draw_curve, name_curves
from thinkjepa.pipeline.report.verdict import FEWEST_VIDEOS, figure_text
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.baselines import METHODS
from thinkjepa.stages.evaluate.metrics import METRICS, exhibited
from thinkjepa.stages.evaluate.rollout import evaluate_rollout
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.json_files import write_json
from thinkjepa.stages.picture_style import (
    BASELINES,
    PANEL_IN,
    legend_below,
    new_figure,
    picture_style,
    png_bytes,
    variant_look,
)
from thinkjepa.stages.progress import Progress

Row = tuple[str, Sequence[Mapping[str, float | None]]]
"""A method's name, and its figure at each horizon."""

Rolled = Mapping[str, Mapping[str, Any]]
"""Results of `evaluate_rollout` by the names of their runs."""


def roll_out_runs(
    run_dirs: Sequence[Path],
    *,
    horizons: Sequence[int],
    split: str,
    cache_dir: Path | None,
    device: str,
    out: Path | None,
    progress: Progress,
) -> tuple[dict[str, Any], str]:
    """Roll runs out and write rollout-<split>.json, .md and .png into each, or of all of them to `out`.

    Returns the figures and a page for the terminal.
    """
    rolled: dict[str, Mapping[str, Any]] = {}
    for path in run_dirs:
        name = path.name if path.name not in rolled else str(path)
        TrainedRun.open(path)  # refused before anything is written there
        with WriteLock(path, remedy=WAIT):
            rolled[name] = evaluate_rollout(
                path, horizons=horizons, split=split, cache_dir=cache_dir, device=device, progress=progress
            )
            _write(path, split, {name: rolled[name]})
    if out is not None:
        with WriteLock(out, remedy=WAIT):
            write_json(out / f"rollout-{split}.json", {"runs": rolled})
            _write(out, split, rolled)
    elif len(rolled) > 1:
        raise StageError(f"{len(rolled)} runs to roll out: name a folder for their table with --out")
    result = dict(next(iter(rolled.values()))) if len(rolled) == 1 else {"runs": rolled}
    return result, rollout_page(rolled, out or run_dirs[0], split)


def parse_horizons(text: str) -> list[int]:
    """`4,8,16,32` as numbers. Raises StageError."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise StageError(f"--rollout {text!r}: give horizons in latent steps, such as 4,8,16,32") from error


def rollout_page(rolled: Rolled, folder: Path, split: str) -> str:
    """What a terminal shows: the first metric's table, and where the others are."""
    first = next(iter(rolled.values()))
    metric, rows = _tables(rolled)[0]
    shown = [(label, found) for label, found in rows if label in _looks(rolled)]
    name = folder / f"rollout-{split}"
    return "\n".join(
        [
            f"{first['num_clips']} {first['split']} clips of {first['num_videos']} videos. "
            f"{METRICS[metric].label()} {METRICS[metric].arrow} up to each horizon, with the seconds from "
            "the last observed frame to its end.",
            "",
            _table(first["horizons"], shown),
            "",
            f"all tables: {name}.md; picture: {name}.png; numbers: {name}.json",
        ]
    )


def rollout_markdown(rolled: Rolled) -> str:
    """What was measured, and a table for each metric: a row per method, a column per horizon."""
    first = next(iter(rolled.values()))
    lines = [
        "# Rollout",
        "",
        f"- {first['num_clips']} {first['split']} clips of {first['num_videos']} videos; brackets: "
        f"{100 * first['interval']['level']:g} % intervals, {first['interval']['method']}",
        f"- a window is {first['window_steps']} latent steps from {first['observed_steps']}; behind it the "
        "predictions become the context. `vlm`, which has no context, keeps its last step",
        "- each horizon: the mean over all steps up to it (FDE: its last frame); seconds run from the last "
        "observed frame to the horizon's last frame",
        "- thinker states are those of the split, future camera poses are not used",
    ]
    if first["num_videos"] < FEWEST_VIDEOS:
        lines.append(
            f"- **fewer than {FEWEST_VIDEOS} videos: intervals are too narrow, nothing follows from them**"
        )
    if not _one_latent_space(rolled):
        lines.append("- latent distances left out: the runs' latents are not in one space")
    for metric, rows in _tables(rolled):
        lines += ["", f"## {METRICS[metric].label()} {METRICS[metric].arrow}", ""]
        lines.append(_table(first["horizons"], rows))
    return "\n".join(lines) + "\n"


def _table(horizons: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> str:
    heads = [f"{item['steps']} steps, {item['last_frame_s']:.2f} s" for item in horizons]
    return markdown_table(["method", *heads], [[label, *map(figure_text, found)] for label, found in rows])


def _tables(rolled: Rolled) -> list[tuple[str, list[Row]]]:
    """The metrics that there are, each with its rows."""
    shown = [item for item in exhibited("rollout") if item.kind != "latent" or _one_latent_space(rolled)]
    tables = [(metric.name, _rows(rolled, metric.kind, metric.name)) for metric in shown]
    return [(metric, rows) for metric, rows in tables if rows]


def _one_latent_space(rolled: Rolled) -> bool:
    spaces = [result["latent_space"] for result in rolled.values()]
    return all(space == spaces[0] for space in spaces)


def _rows(rolled: Rolled, kind: str, metric: str) -> list[Row]:
    """A row per model, and one per baseline, which is the same for all runs: of the first."""
    rows: list[Row] = []
    for number, (name, result) in enumerate(rolled.items()):
        for method, figures in result["horizons"][0][kind].items():
            of_no_run = kind not in METHODS[method].of_run
            if metric not in figures or (number and of_no_run):
                continue
            label = (
                method.replace("_", " ")
                if of_no_run
                else METHODS[method].in_rollout.format(_label(name, result))
            )
            rows.append((label, [item[kind][method][metric] for item in result["horizons"]]))
    return rows


def _label(name: str, result: Mapping[str, Any]) -> str:
    variant = result["variant"]
    return name if variant in name else f"{name} ({variant})"


def rollout_picture(rolled: Rolled) -> bytes:
    """PNG: each metric over the horizons, models with their intervals."""
    seconds = [item["last_frame_s"] for item in next(iter(rolled.values()))["horizons"]]
    tables, looks = _tables(rolled), _looks(rolled)
    with picture_style():
        figure = new_figure(PANEL_IN[0] * len(tables), PANEL_IN[1] + LEGEND_IN)
        panels = figure.subplots(1, len(tables), sharex=True, squeeze=False)[0]
        for axes, (metric, rows) in zip(panels, tables, strict=True):
            for label, found in rows:
                if label in looks:
                    band = "marker" in looks[label]  # baselines have none
                    draw_curve(axes, seconds, found, label=label, look=looks[label], band=band)
            name_curves(axes, METRICS[metric])
        legend_below(figure, panels)
        return png_bytes(figure)


def _looks(rolled: Rolled) -> dict[str, dict[str, Any]]:
    """How each line is drawn, the same in all panels; forecasts with another clip's thinker are not."""
    looks = {name.replace("_", " "): dict(look) for name, look in BASELINES.items()}
    places: Counter[str] = Counter()
    for name, result in rolled.items():
        variant = result["variant"]
        looks[_label(name, result)] = variant_look(variant, place=places[variant])
        places[variant] += 1
    return looks


def _write(folder: Path, split: str, rolled: Rolled) -> None:
    replace_file(folder / f"rollout-{split}.md", rollout_markdown(rolled).encode())
    replace_file(folder / f"rollout-{split}.png", rollout_picture(rolled))
