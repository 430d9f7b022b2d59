"""The table of a sweep: a row per group of runs, best first, with the settings in which they differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from thinkjepa.pipeline.report.verdict import (
    FEWEST_SEEDS,
    FEWEST_VIDEOS,
    Evidence,
    Figure,
    baseline_verdicts,
    evidence_of,
    figure_text,
    is_main,
    model_verdicts,
    outcome,
    signed_number,
)
from thinkjepa.stages.evaluate.metrics import (
    DECIMALS,
    LATENT_METRICS,
    METRICS,
    TRAJECTORY_METRICS,
    VALIDATION_METRICS,
    exhibited,
)


def ranking_lines(comparison: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows; none where there is only one group, or no validation figure."""
    ranking = comparison.get("ranking")
    if ranking is None or len(ranking["rows"]) < 2:
        return [], []
    metrics = {entry["name"]: entry["metrics"] for entry in comparison["entries"]}
    page = [metric.name for metric in exhibited("page")]
    shown = [metric for metric in page if any(metric in metrics[row["name"]] for row in ranking["rows"])]
    if ranking["sorted_by"] not in (*VALIDATION_METRICS, *shown):
        shown.append(ranking["sorted_by"])
    validation = _validation_shown(ranking)
    header = ["", "variant", *ranking["varied"], "seeds"]
    header += [f"{VALIDATION_METRICS[name]} ↓" for name in validation]
    last_frame_s = comparison["last_frame"]["seconds"]
    header += [
        f"test {METRICS[name].label(last_frame_s=last_frame_s)} {METRICS[name].arrow}" for name in shown
    ]
    rows = [
        [
            str(place),
            row["variant"],
            *(str(row["settings"][name]) for name in ranking["varied"]),
            str(row["num_seeds"]),
            *(_with_spread(row, name) for name in validation),
            *(_test_text(metrics[row["name"]].get(metric)) for metric in shown),
        ]
        for place, row in enumerate(ranking["rows"], start=1)
    ]
    return header, rows


def ranking_note(comparison: Mapping[str, Any]) -> str:
    """Which clips the order comes from, and what that allows."""
    ranking = comparison["ranking"]
    if ranking["clips"] == "validation":
        return (
            f"Sorted by {VALIDATION_METRICS[ranking['sorted_by']]}: choose by it, and report the test "
            "columns of what was chosen. ± is the standard deviation over seeds, brackets are intervals as "
            "above."
        )
    return (
        f"**Sorted by the {comparison['split']} clips' {METRICS[ranking['sorted_by']].label()}: who chooses "
        "by this order chooses on the clips that the report stands on.** Choose by a validation column."
    )


def _validation_shown(ranking: Mapping[str, Any]) -> Sequence[str]:
    """The joints' distance and the latents' error where all have them, and what is sorted by."""
    everywhere = [
        name for name in VALIDATION_METRICS if all(name in row["validation"] for row in ranking["rows"])
    ]
    return [name for name in everywhere if name != "validation_loss" or name == ranking["sorted_by"]]


def _with_spread(row: Mapping[str, Any], name: str) -> str:
    mean = f"{row['validation'][name]:.{DECIMALS}f}"
    spread = row["validation_seed_std"].get(name)
    return mean if spread is None else f"{mean} ± {spread:.{DECIMALS}f}"


def _test_text(figure: Figure | None) -> str:
    return "" if figure is None else figure_text(figure)


TABLES = {
    "Hand trajectories": TRAJECTORY_METRICS,
    "Future latents": LATENT_METRICS,
}

VERDICT_METRICS = {"Hand trajectories": "ade_m", "Future latents": "l2"}

FRAMES_OF_REFERENCE = {
    "camera": "the camera frame of the last observed frame",
    "world": "the labels' world, where no camera is known",
}


def comparison_markdown(comparison: Mapping[str, Any]) -> str:
    """The whole report."""
    parts = ["# Evaluation", what_was_measured(comparison), *ranking_section(comparison)]
    for title, metrics in TABLES.items():
        lines = baseline_verdicts(comparison, VERDICT_METRICS[title])
        parts += _titled(title, entry_table(comparison, metrics), lines)
    for title, metrics in TABLES.items():
        lines = model_verdicts(comparison, VERDICT_METRICS[title])
        parts += _titled(f"Differences: {title.lower()}", difference_table(comparison, metrics), lines)
    if any(difference["metrics"] for difference in comparison["differences"]):
        parts.append(
            f"a - b, clip by clip. `*`: the interval does not contain 0, with {FEWEST_VIDEOS} videos and "
            f"{FEWEST_SEEDS} seeds or more."
        )
    parts += _titled("Over the horizon", horizon_table(comparison))
    return "\n\n".join(parts) + "\n"


def ranking_section(comparison: Mapping[str, Any]) -> list[str]:
    """The table of a sweep with what its order means; nothing where one group stands alone."""
    header, rows = ranking_lines(comparison)
    if not rows:
        return []
    varied = len(comparison["ranking"]["varied"])
    return [
        "## Runs, the best first",
        markdown_table(header, rows, left=2 + varied),
        ranking_note(comparison),
    ]


def what_was_measured(comparison: Mapping[str, Any]) -> str:
    """The conditions that figures without them mean little."""
    interval, frames = comparison["interval"], comparison["joint_frames"]
    clips = f"{count_of(comparison['num_clips'], comparison['split'] + ' clip')} of"
    lines = [
        f"- {clips} {count_of(comparison['num_videos'], 'video')}; weights were chosen on validation clips"
    ]
    if left_out := comparison["num_clips_left_out"]:
        lines.append(f"- {count_of(left_out, 'clip')} not evaluated in all runs left out")
    if not comparison["latents_compared"]:
        lines.append("- latent distances left out: the runs' latents are not in one space")
    for group in comparison["groups"]:
        seeds = ", ".join(map(str, group["seeds"]))
        lines.append(f"- {group['name']}: {count_of(len(group['seeds']), 'seed')} ({seeds})")
    if varied := comparison["varied"]:
        named = (f"{name} ({', '.join(map(str, values))})" for name, values in varied.items())
        lines.append(f"- settings in which these runs differ: {'; '.join(named)}")
    lines.append(
        f"- brackets: {100 * interval['level']:g} % intervals, {interval['method']}, {interval['draws']:,} "
        "draws; scores are averaged over seeds first, so the spread over seeds is not in them"
    )
    if comparison["num_videos"] < FEWEST_VIDEOS:
        lines.append(
            f"- **fewer than {FEWEST_VIDEOS} videos: intervals are too narrow, nothing follows from them**"
        )
    if frames:
        lines += _about_joints(comparison, frames)
    return "\n".join(lines)


def entry_table(comparison: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """A row per method with mean and interval; empty where nothing has any of these metrics."""
    rows = [(entry["name"], entry["num_seeds"] or "", entry["metrics"]) for entry in comparison["entries"]]
    return _figure_table(["method", "seeds"], rows, metrics, figure_text, _last_frame_s(comparison))


def difference_table(comparison: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """A row per pair; empty where nothing has any of these metrics."""
    rows = [
        (item["a"], item["b"], _starred(item["metrics"], evidence_of(comparison, item)))
        for item in comparison["differences"]
    ]
    return _figure_table(["a", "b"], rows, metrics, str, _last_frame_s(comparison))


def horizon_table(comparison: Mapping[str, Any]) -> str:
    """A row per latent step: ADE of models and baselines, or L2 where there are no joints."""
    with_joints = any("ade_m" in entry["metrics"] for entry in comparison["entries"])
    metric = "ade_m" if with_joints else "l2"
    shown = [entry for entry in comparison["entries"] if metric in entry["metrics"] and is_main(entry)]
    rows = [
        [
            f"{step['seconds']:.2f}",
            *(_plain(entry["horizon"][step["step"] - 1].get(metric)) for entry in shown),
        ]
        for step in comparison["horizon"]
    ]
    header = ["seconds", *(entry["name"] for entry in shown)]
    if not shown:
        return ""
    note = (
        f"{METRICS[metric].label()} of each latent step. Seconds run from the last observed frame to the "
        "middle of the step's frames."
    )
    return f"{note}\n\n{markdown_table(header, rows)}"


def signed_text(figure: Mapping[str, Any]) -> str:
    """`-0.0100 [-0.0120, -0.0080]`; without the interval where it is unknown."""
    mean = signed_number(figure["mean"])
    if figure["low"] is None:
        return mean
    return f"{mean} [{signed_number(figure['low'])}, {signed_number(figure['high'])}]"


def _starred(figures: Mapping[str, Figure], evidence: Evidence) -> dict[str, str]:
    """`signed_text` of each metric, with a star where the difference is more than chance."""
    return {
        metric: signed_text(figure)
        + (" *" if outcome(metric, figure, evidence) in ("better", "worse") else "")
        for metric, figure in figures.items()
    }


def _last_frame_s(comparison: Mapping[str, Any]) -> float:
    return float(comparison["last_frame"]["seconds"])


def _about_joints(comparison: Mapping[str, Any], frames: Mapping[str, int]) -> Iterable[str]:
    where = " or ".join(FRAMES_OF_REFERENCE[frame] for frame in comparison["reference_frames"])
    yield (
        f"- {count_of(len(comparison['joints']), 'joint')} in metres, in {where}; keypoints are "
        f"{len(comparison['keypoints'])} of EgoDex's 12"
    )
    share = 100 * frames["counted"] / frames["labelled"] if frames["labelled"] else 0.0
    rest = ": the rest are of joints that were not seen before the split" if share < 100 else ""
    yield (
        f"- {frames['counted']:,} of {frames['labelled']:,} labelled joint-frames count ({share:.1f} %), in "
        f"{count_of(frames['clips'], 'clip')}{rest}"
    )


def _figure_table(
    heads: Sequence[str],
    rows: Sequence[tuple[Any, Any, Mapping[str, Any]]],
    metrics: Sequence[str],
    text: Callable[[Any], str],
    last_frame_s: float,
) -> str:
    shown = [metric for metric in metrics if any(metric in found for *_, found in rows)]
    lines = [
        [first, second, *(text(found[metric]) if metric in found else "" for metric in shown)]
        for first, second, found in rows
        if any(metric in found for metric in shown)
    ]
    labels = [f"{METRICS[name].label(last_frame_s=last_frame_s)} {METRICS[name].arrow}" for name in shown]
    header = [*heads, *labels]
    return markdown_table(header, lines, left=len(heads)) if lines else ""


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, left: int = 1) -> str:
    """A table whose columns are aligned in plain text, too; the first `left` ones to the left."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * width if place < left else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    lines = [cells[0], rule, *cells[1:]]
    return "\n".join(
        "| "
        + " | ".join(
            _pad(cell, width, place < left)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    )


def _pad(cell: str, width: int, left: bool) -> str:
    return cell.ljust(width) if left else cell.rjust(width)


def _titled(title: str, table: str, lines: Sequence[str] = ()) -> list[str]:
    """A table under its title, with lines below it; nothing where the table is empty."""
    below = ["\n".join(f"- {line}" for line in lines)] if lines else []
    return [f"## {title}", table, *below] if table else []


def _plain(figure: Figure | None) -> str:
    return "" if figure is None else f"{figure['mean']:.{DECIMALS}f}"


def count_of(number: int, noun: str) -> str:
    """`1 clip`, `1,200 clips`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
