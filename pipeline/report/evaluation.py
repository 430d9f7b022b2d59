"""A comparison on one page of a terminal: a table, the verdicts, and where the rest is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from thinkjepa.cache.disk.files import replace_file
from thinkjepa.cache.disk.lock import WAIT, WriteLock
from thinkjepa.cache.records import file_digest
from thinkjepa.pipeline.report.markdown import comparison_markdown, count_of, markdown_table
from thinkjepa.pipeline.report.plots import difference_picture, distance_picture, horizon_picture
from thinkjepa.pipeline.report.verdict import (
    baseline_verdicts,
    figure_text,
    is_main,
    model_verdicts,
)
from thinkjepa.stages.evaluate.comparison import compare
from thinkjepa.stages.evaluate.evaluation import evaluate
from thinkjepa.stages.evaluate.groups import EvaluatedRun
from thinkjepa.stages.evaluate.metrics import DECIMALS, METRICS, Metric, exhibited
from thinkjepa.stages.evaluate.runs import TrainedRun, read_evaluations, runs_under
from thinkjepa.stages.evaluate.table import table_path
from thinkjepa.stages.json_files import write_json
from thinkjepa.stages.progress import Progress

MOST_MODELS = 10

Comparison = Mapping[str, Any]


def comparison_page(comparison: Comparison, files: Sequence[str]) -> str:
    """The page; `files` are lines that say where the rest is."""
    metrics = [
        metric.name
        for metric in exhibited("page")
        if any(metric.name in item["metrics"] for item in comparison["entries"])
    ]
    lines = [_measured(comparison), "", *_table(comparison, metrics), ""]
    for metric in METRICS.values():
        if metric.to_beat:
            lines += baseline_verdicts(comparison, metric.name)
    if metrics:
        models = [item for item in comparison["entries"] if item["method"] == "model"]
        lines += model_verdicts(comparison, metrics[0], of=_ranked(comparison, models)[0]["name"])
    return "\n".join([*lines, "", *files])


def run_files(run: Path, split: str) -> list[str]:
    """Where the evaluation of one run is."""
    name = run / f"eval-{split}"
    return [
        f"all tables: {name}.md; over the horizon: {name}.png",
        f"a row per clip: {name}.parquet; numbers: {name}.json",
    ]


def comparison_files(out: Path) -> list[str]:
    """Where a comparison is."""
    return [
        f"all tables: {out / 'comparison.md'}; numbers: {out / 'comparison.json'}",
        f"pictures in {out}: horizon.png, distances.png, differences.png",
    ]


def _measured(comparison: Comparison) -> str:
    clips = count_of(comparison["num_clips"], f"{comparison['split']} clip")
    level = 100 * comparison["interval"]["level"]
    order = (
        "Best on validation clips first. "
        if len(comparison["groups"]) > 1 and _by_validation(comparison)
        else ""
    )
    return (
        f"{clips} of {count_of(comparison['num_videos'], 'video')}. {order}"
        f"Brackets: {level:g} % intervals over videos."
    )


def _by_validation(comparison: Comparison) -> bool:
    return comparison["ranking"] is not None and comparison["ranking"]["clips"] == "validation"


def _table(comparison: Comparison, metrics: Sequence[str]) -> list[str]:
    """A row per model, in the order of the ranking, then the methods that need none."""
    entries = [entry for entry in comparison["entries"] if is_main(entry)]
    models = _ranked(comparison, [entry for entry in entries if entry["method"] == "model"])
    others = [entry for entry in entries if entry["method"] != "model"]
    left_out = len(models) - MOST_MODELS
    labels = [_head(METRICS[metric], comparison["last_frame"]["seconds"]) for metric in metrics]
    rows = [
        [entry["name"], str(entry["num_seeds"] or ""), *(_cell(entry, name, metrics[0]) for name in metrics)]
        for entry in [*models[:MOST_MODELS], *others]
    ]
    table = markdown_table(["method", "seeds", *labels], rows, left=1)
    return [table, *([f"{count_of(left_out, 'more setting')} in the file below"] if left_out > 0 else [])]


def _head(metric: Metric, last_frame_s: float) -> str:
    label = metric.heading() if metric.kind == "latent" else metric.label(last_frame_s=last_frame_s)
    return f"{label} {metric.arrow}"


def _ranked(comparison: Comparison, models: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    if comparison["ranking"] is None:
        return list(models)
    places = {row["name"]: place for place, row in enumerate(comparison["ranking"]["rows"])}
    return sorted(models, key=lambda entry: places[entry["name"]])


def _cell(entry: Mapping[str, Any], metric: str, first: str) -> str:
    figure = entry["metrics"].get(metric)
    if figure is None:
        return ""
    return figure_text(figure) if metric == first else f"{figure['mean']:.{DECIMALS}f}"


def evaluate_run(
    run_dir: Path,
    *,
    split: str,
    cache_dir: Path | None,
    device: str,
    progress: Progress,
    on_wait: Callable[[str], None] | None = None,
) -> tuple[dict[str, Any], str]:
    """Evaluate one run and write eval-<split>.json, .parquet, .md and .png into it.

    Returns the figures and a page for the terminal. `on_wait` as in `WriteLock`.
    """
    TrainedRun.open(run_dir)  # refused before anything is written there
    with WriteLock(run_dir, remedy=WAIT, on_wait=on_wait):
        result = evaluate(run_dir, split=split, cache_dir=cache_dir, device=device, progress=progress)
        comparison = compare(read_evaluations([run_dir], split))
        replace_file(run_dir / f"eval-{split}.md", comparison_markdown(comparison).encode())
        replace_file(run_dir / f"eval-{split}.png", horizon_picture(comparison))
    return result, comparison_page(comparison, run_files(run_dir, split))


def evaluation_digests(run_dir: Path, *, split: str) -> dict[str, str]:
    """sha256 of the files that a comparison stands on, by name: small, and changed when they are."""
    files = (run_dir / f"eval-{split}.json", table_path(run_dir, split))
    return {path.name: file_digest(path) for path in files}


def write_comparison(
    out: Path, runs: Sequence[EvaluatedRun], *, sort_by: str | None = None
) -> tuple[Mapping[str, Any], str]:
    """Compare runs and write comparison.json, comparison.md and three pictures into `out`.

    Returns the comparison and a page for the terminal.
    """
    comparison = compare(runs, sort_by=sort_by)
    with WriteLock(out, remedy=WAIT):
        write_json(out / "comparison.json", comparison)
        replace_file(out / "comparison.md", comparison_markdown(comparison).encode())
        replace_file(out / "horizon.png", horizon_picture(comparison))
        replace_file(out / "distances.png", distance_picture(comparison))
        replace_file(out / "differences.png", difference_picture(comparison))
    return comparison, comparison_page(comparison, comparison_files(out))


def describe_runs(runs: Path, *, report: Path) -> str:
    """A page on every evaluated run under a folder; `report` is the folder of their comparison."""
    comparison = compare(read_evaluations(runs_under(runs), "test"))
    return comparison_page(comparison, comparison_files(report))
