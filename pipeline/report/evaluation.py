"""Evaluations, comparisons and rollouts: run, written to files, and shown on one page of a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from thinkjepa.cache.disk.files import replace_file
from thinkjepa.cache.disk.lock import WAIT, WriteLock
from thinkjepa.cache.records import file_digest
from thinkjepa.pipeline.cli.console import counted
from thinkjepa.pipeline.report.markdown import (
    Comparison,
    answer_lines,
    comparison_markdown,
    data_warnings,
    ranked_models,
)
from thinkjepa.pipeline.report.plots import (
    difference_picture,
    distance_picture,
    horizon_picture,
    rollout_picture,
)
from thinkjepa.pipeline.report.rollouts import (
    Rolled,
    left_out_line,
    rolled_metrics,
    rollout_markdown,
    rollout_table,
)
from thinkjepa.pipeline.report.tables import available, markdown_table
from thinkjepa.pipeline.report.verdict import figure_text, is_main
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.compared.comparison import compare
from thinkjepa.stages.evaluate.compared.groups import EvaluatedRun
from thinkjepa.stages.evaluate.compared.rollouts import compare_rollouts
from thinkjepa.stages.evaluate.evaluation import evaluate
from thinkjepa.stages.evaluate.metrics import Metric, exhibited
from thinkjepa.stages.evaluate.rollout import RolledOut, roll_out
from thinkjepa.stages.evaluate.runs import TrainedRun, read_evaluations, runs_under
from thinkjepa.stages.evaluate.table import table_path
from thinkjepa.stages.json_files import write_json
from thinkjepa.stages.progress import Progress

MOST_MODELS = 10


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
    name = run_dir / f"eval-{split}"
    files = [
        f"all tables: {name}.md; over the horizon: {name}.png",
        f"a row per clip: {name}.parquet; numbers: {name}.json",
    ]
    return result, comparison_page(comparison, files)


def evaluation_digests(run_dir: Path, *, split: str) -> dict[str, str]:
    """sha256 of the small files that a comparison is made from, by name."""
    files = (run_dir / f"eval-{split}.json", table_path(run_dir, split))
    return {path.name: file_digest(path) for path in files}


def write_comparison(
    out: Path, runs: Sequence[EvaluatedRun], *, sort_by: str | None = None
) -> tuple[dict[str, Any], str]:
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
    return comparison, comparison_page(comparison, _comparison_files(out))


def describe_runs(runs: Path, *, report: Path) -> str:
    """A page on every evaluated run under a folder; `report` is the folder of their comparison."""
    comparison = compare(read_evaluations(runs_under(runs), "test"))
    return comparison_page(comparison, _comparison_files(report))


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
    if out is None and len(run_dirs) > 1:
        raise StageError(f"{len(run_dirs)} runs to roll out: name a folder for their table with --out")
    rolled: dict[str, RolledOut] = {}
    for path in run_dirs:
        name = path.name if path.name not in rolled else str(path)
        TrainedRun.open(path)  # refused before anything is written there
        with WriteLock(path, remedy=WAIT):
            rolled[name] = roll_out(
                path, horizons=horizons, split=split, cache_dir=cache_dir, device=device, progress=progress
            )
            _write_rollout(path / f"rollout-{split}", compare_rollouts({name: rolled[name]}))
    compared = compare_rollouts(rolled)
    result: dict[str, Any] = next(iter(rolled.values())).result
    if out is not None:
        result = {"runs": {name: item.result for name, item in rolled.items()}, "compared": compared}
        with WriteLock(out, remedy=WAIT):
            write_json(out / f"rollout-{split}.json", result)
            _write_rollout(out / f"rollout-{split}", compared)
    return result, rollout_page(compared, (out or run_dirs[0]) / f"rollout-{split}")


def parse_horizons(text: str) -> list[int]:
    """`4,8,16,32` as numbers. Raises StageError."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise StageError(f"--rollout {text!r}: give horizons in latent steps, such as 4,8,16,32") from error


def _write_rollout(name: Path, rolled: Rolled) -> None:
    replace_file(Path(f"{name}.md"), rollout_markdown(rolled).encode())
    replace_file(Path(f"{name}.png"), rollout_picture(rolled))


def rollout_page(rolled: Rolled, name: Path) -> str:
    """The terminal's page on rollouts: the first metric's table, and where the others are."""
    metric = rolled_metrics(rolled)[0]
    return "\n".join(
        [
            f"{counted(rolled['num_clips'], rolled['split'] + ' clip')} of "
            f"{counted(rolled['num_videos'], 'video')}. "
            f"{metric.label()} {metric.arrow} up to each horizon, with the seconds from the last observed "
            "frame to its end.",
            *data_warnings(rolled),
            *([line] if (line := left_out_line(rolled)) else []),
            "",
            rollout_table(rolled, metric, controls=False),
            "",
            f"all tables: {name}.md; picture: {name}.png; numbers: {name}.json",
        ]
    )


def comparison_page(comparison: Comparison, files: Sequence[str]) -> str:
    """The terminal's page on a comparison: a table, the verdicts, and `files`, lines on where the rest is."""
    metrics = available(exhibited("page"), [entry["metrics"] for entry in comparison["entries"]])
    ranking, models = comparison["ranking"], ranked_models(comparison)
    by_validation = len(models) > 1 and ranking is not None and ranking["clips"] == "validation"
    lines = [
        f"{counted(comparison['num_clips'], comparison['split'] + ' clip')} of "
        f"{counted(comparison['num_videos'], 'video')}. "
        f"{'Best on validation clips first. ' if by_validation else ''}"
        f"Brackets: {100 * comparison['interval']['level']:g} % intervals for other groups and seeds.",
        *data_warnings(comparison),
        "",
        _table(comparison, models, metrics),
    ]
    if (left_out := len(models) - MOST_MODELS) > 0:
        lines.append(f"{counted(left_out, 'more setting')} in the file below")
    return "\n".join([*lines, "", *answer_lines(comparison), "", *files])


def _table(comparison: Comparison, models: Sequence[Mapping[str, Any]], metrics: Sequence[Metric]) -> str:
    """A row per model, then the methods that need none. The first metric has its intervals."""
    others = [entry for entry in comparison["entries"] if entry["method"] != "model" and is_main(entry)]
    rows = [
        [
            entry["name"],
            entry["num_seeds"] or "",
            *(_cell(entry, metric, whole=metric is metrics[0]) for metric in metrics),
        ]
        for entry in [*models[:MOST_MODELS], *others]
    ]
    return markdown_table(["method", "seeds", *(_head(metric, comparison) for metric in metrics)], rows)


def _head(metric: Metric, comparison: Comparison) -> str:
    last_frame_s = comparison["last_frame"]["seconds"]
    label = metric.heading() if metric.kind == "latent" else metric.label(last_frame_s=last_frame_s)
    return f"{label} {metric.arrow}"


def _cell(entry: Mapping[str, Any], metric: Metric, *, whole: bool) -> str:
    figure = entry["metrics"].get(metric.name)
    if figure is None:
        return ""
    number = metric.unit.number
    return figure_text(figure, number) if whole else number(figure["mean"])


def _comparison_files(out: Path) -> list[str]:
    return [
        f"all tables: {out / 'comparison.md'}; numbers: {out / 'comparison.json'}",
        f"pictures in {out}: horizon.png, distances.png, differences.png",
    ]
