"""The report of a comparison as one HTML page that needs nothing else, no network and no script.

The answer first, then errors over the horizon, learning curves, settings that differ, and clips. Tables,
verdicts and pictures are those of the comparison.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from thinkjepa.cache.disk.files import replace_file
from thinkjepa.cache.disk.lock import WAIT, WriteLock
from thinkjepa.pipeline.cli.console import counted, human_bytes
from thinkjepa.pipeline.report.markdown import (
    DETAILS,
    VERDICT_METRICS,
    Comparison,
    answer_lines,
    brackets_text,
    conditions,
    data_warnings,
    detail_lines,
    detail_table,
    difference_notes,
    difference_table,
    entry_table,
    horizon_table,
    ranking_section,
    stratum_table,
)
from thinkjepa.pipeline.report.page.clips import Shown, ShownClip, collect_clips, shown_runs
from thinkjepa.pipeline.report.page.markup import dark_colors, html_table, inline_svg, template
from thinkjepa.pipeline.report.page.media import Budget, clip_media
from thinkjepa.pipeline.report.plots import (
    curve_picture,
    difference_picture,
    horizon_picture,
    rollout_picture,
)
from thinkjepa.pipeline.report.rollouts import Rolled, rolled_metrics, rollout_table
from thinkjepa.pipeline.report.verdict import is_main, model_verdicts
from thinkjepa.stages.data.framing import set_framing
from thinkjepa.stages.evaluate.compared.groups import EvaluatedRun
from thinkjepa.stages.json_files import read_json
from thinkjepa.stages.picture_style import svg_bytes
from thinkjepa.stages.progress import Progress

PAGE = "index.html"

MEGABYTE = 1_000_000

GLOSSARY = (
    "ADE: mean distance of predicted joints from the true ones over the whole future; FDE: at its last "
    "frame. L2 and cosine compare predicted latents with the encoded future. Arrows point to the better side."
)


@dataclass(frozen=True, slots=True)
class PageSettings:
    """Contents of a page besides the comparison, and their sources."""

    clips: tuple[str, ...] = ()
    """Clips that are asked for; empty: the best, the median and the worst of the best run."""
    videos: Path | None = None
    limit_mb: float = 20.0
    """Megabytes that videos and frames may take."""
    cache_dir: Path | None = None
    device: str = "auto"


def write_page(
    folder: Path,
    comparison: Comparison,
    evaluated: Sequence[EvaluatedRun],
    run_dirs: Sequence[Path],
    *,
    settings: PageSettings,
    rollouts: Path | None,
    progress: Progress,
) -> Path:
    """Write `index.html` into a folder, and return its path.

    `run_dirs` are the folders of the `evaluated` runs that the comparison is of. `rollouts` is the folder of
    their rollouts' comparison, None where there is none.
    """
    runs = shown_runs(comparison, evaluated, run_dirs)
    progress.note("collecting clips for the report ...")
    shown = collect_clips(
        comparison,
        runs,
        named=settings.clips,
        videos=settings.videos,
        cache_dir=settings.cache_dir,
        device=settings.device,
    )
    budget = Budget(int(settings.limit_mb * MEGABYTE))
    framing = set_framing(runs[0].run.features(settings.cache_dir).encoder.source)
    clips = []
    progress.begin("report", total=len(shown.clips), unit="clips")
    for item in shown.clips:
        media = clip_media(shown, item, videos=settings.videos, framing=framing, budget=budget)
        clips.append({"item": item, "media": media, "scores": _score_table(shown, item)})
        progress.advance(1)
    curves = {run.name: read_curve(path) for run, path in zip(evaluated, run_dirs, strict=True)}
    rolled = _rolled(rollouts, evaluated)
    figures = _figures(comparison, curves, rolled)
    page = template(_source("page.html")).render(
        {
            **_comparison_parts(comparison),
            "figures": figures,
            "rollout": _rollout_table(rolled) if rolled else "",
            "style": Markup(_source("page.css")),
            "dark": dark_colors(map(str, figures.values())),
            "shown": shown,
            "clips": clips,
            "no_slots": _no_slots(comparison, shown),
            "left_out": budget.left_out,
            "limit": human_bytes(budget.limit_bytes),
            "runs": [str(path) for path in run_dirs],
        }
    )
    with WriteLock(folder, remedy=WAIT):
        replace_file(folder / PAGE, page.encode())
    return folder / PAGE


def _source(name: str) -> str:
    """A file of the page's template, which comes with the package."""
    return files("thinkjepa.pipeline.report.page").joinpath(name).read_text(encoding="utf-8")


def _comparison_parts(comparison: Comparison) -> dict[str, Any]:
    """Words and tables of the comparison."""
    answer, metrics = answer_lines(comparison), list(VERDICT_METRICS.values())
    first = [
        entry for entry in comparison["entries"] if is_main(entry) or entry["method"] == "shuffled_guidance"
    ]
    pairs = [line for name in metrics for line in model_verdicts(comparison, name)]
    clips = counted(comparison["num_clips"], f"{comparison['split']} clip")
    return {
        "title": f"{counted(len(comparison['groups']), 'setting')} on {clips}",
        "answer": answer,
        "warnings": data_warnings(comparison),
        "glossary": GLOSSARY,
        "brackets": brackets_text(comparison["interval"]),
        "methods": entry_table({**comparison, "entries": first}, write=html_table),
        "all_methods": entry_table(comparison, write=html_table),
        "horizon": horizon_table(comparison, write=html_table),
        "ranking": ranking_section(comparison, write=html_table)[1:],
        "pairs": [line for line in pairs if line not in answer],
        "differences": difference_table(comparison, write=html_table),
        "difference_notes": difference_notes(comparison).split("\n\n"),
        "strata": [stratum_table(comparison, kind, write=html_table) for kind in ("history", "task")],
        "details": [
            (title, detail_table(comparison, kind, write=html_table), detail_lines(comparison, kind))
            for kind, title in DETAILS.items()
        ],
        "conditions": [line.removeprefix("- ").strip("*") for line in conditions(comparison).split("\n")],
    }


def _figures(
    comparison: Comparison, curves: Mapping[str, Sequence[Mapping[str, Any]]], rolled: Rolled | None
) -> dict[str, Markup]:
    """The figures of the page by name."""
    names = ", ".join(group["name"] for group in comparison["groups"])
    drawn = {
        "horizon": (
            horizon_picture(comparison, encode=svg_bytes),
            "Error over the horizon",
            f"Lines of {names} and of methods without training over the seconds after the last observed "
            "frame. The table below has their values.",
        ),
        "curves": (
            curve_picture(comparison, curves, encode=svg_bytes),
            "Learning curves",
            f"Figures of the validation clips after each epoch, a line for each run of {names}; stars mark "
            f"the lowest. {_lowest_text(curves)}",
        ),
    }
    if comparison["differences"]:
        drawn["differences"] = (
            difference_picture(comparison, encode=svg_bytes),
            "Differences",
            "Differences of pairs with their intervals, around a line at zero. The table below has them.",
        )
    if rolled:
        drawn["rollout"] = (
            rollout_picture(rolled, encode=svg_bytes),
            "Error over rollouts",
            "Errors up to each horizon, predictions having become context. The table below has their values.",
        )
    return {
        name: inline_svg(content, key=name, title=title, description=description)
        for name, (content, title, description) in drawn.items()
    }


def _lowest_text(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The epoch of the lowest validation loss of each run, in words."""
    lowest = {
        name: min(rows, key=lambda row: row["validation_loss"]) for name, rows in curves.items() if rows
    }
    return "; ".join(
        f"{name}: lowest loss after epoch {row['epoch']:.0f} of {curves[name][-1]['epoch']:.0f}"
        for name, row in lowest.items()
    )


def read_curve(run_dir: Path) -> list[dict[str, float | None]]:
    """The rows of a run's `curve.csv`, None where a value is missing; empty where there is no such file."""
    path = run_dir / "curve.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as lines:
        return [
            {name: float(value) if value else None for name, value in row.items()}
            for row in csv.DictReader(lines)
        ]


def _rolled(folder: Path | None, evaluated: Sequence[EvaluatedRun]) -> Rolled | None:
    """The comparison of rollouts that `--rollout` left in a folder, where it is of these runs' weights."""
    path = folder / f"rollout-{evaluated[0].table.record['split']}.json" if folder else None
    if path is None or not path.is_file():
        return None
    found = read_json(path)
    weights = {name: run.get("checkpoint_sha256") for name, run in found.get("runs", {}).items()}
    if weights != {run.name: run.table.record["checkpoint_sha256"] for run in evaluated}:
        return None
    rolled: Rolled = found["compared"]
    return rolled


def _rollout_table(rolled: Rolled) -> str:
    return rollout_table(rolled, rolled_metrics(rolled)[0], write=html_table)


def _score_table(shown: Shown, item: ShownClip) -> str:
    """The clip's scores by method."""
    metric = shown.metric
    rows = [[name, "" if value is None else metric.unit.number(value)] for name, value in item.scores.items()]
    return html_table(["method", f"{metric.label()} {metric.arrow}"], rows)


def _no_slots(comparison: Comparison, shown: Shown) -> str:
    """The reason why no attention is shown; empty where there is some."""
    if shown.reader is not None or not shown.clips:
        return ""
    kinds = {run.run.shape.guidance.kind for run in shown.runs if run.run.shape.thinker is not None}
    if not kinds:
        return "No run reads a thinker: there is nothing to show of where it looks."
    return (
        f"No run reads slots: guidance {', '.join(sorted(kinds))} reads means over the frames, which have no "
        "place. --guidance cross and spatial read slots."
    )
