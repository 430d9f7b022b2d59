"""Markdown reports of comparisons and sweeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from thinkjepa.pipeline.cli.console import counted
from thinkjepa.pipeline.report.tables import TableWriter, available, markdown_table, titled
from thinkjepa.pipeline.report.verdict import (
    FEWEST_GROUPS,
    FEWEST_SEEDS,
    Figure,
    baseline_verdicts,
    evidence_of,
    figure_text,
    is_main,
    model_verdicts,
    outcome,
    question_of,
    question_verdicts,
    readout_lines,
)
from thinkjepa.stages.display import CLIPS, RANK
from thinkjepa.stages.evaluate.compared.entries import MOST_GROUPS_BY_PAIRS
from thinkjepa.stages.evaluate.compared.groups import TRAINED_ON
from thinkjepa.stages.evaluate.metrics import METRICS, VALIDATION_METRICS, Metric, MetricKind, exhibited

Comparison = Mapping[str, Any]
"""The content of comparison.json."""

DETAILS: dict[MetricKind, str] = {
    "trajectory": "Where: kinds of error of hands",
    "latent": "What latents are worth: skill, collapse, retrieval",
}
"""Titles of the tables of details."""

STRATA = {
    "history": "of clips by the seconds that the thinker saw before the observed window. Without any, "
    "guidance can tell nothing of what was before.",
    "task": "of clips by whether training clips have their task, which is the name of the video's folder.",
}
"""Notes above the tables of strata."""

VERDICT_METRICS = {metric.kind: metric.name for metric in METRICS.values() if metric.to_beat}
"""The metric that verdicts are about, by kind."""

FRAMES_OF_REFERENCE = {
    "camera": "the camera frame of the last observed frame",
    "world": "the labels' world, where no camera is known",
}

TOO_FEW_GROUPS = f"- **fewer than {FEWEST_GROUPS} groups: no difference is called one**"
SHUFFLED_NOTE = (
    "Shuffled guidance: the same model reads the states of another clip of as much history. A difference "
    "shows that the model uses the states that it was trained on. It does not show that the thinker "
    "understands anything: an untrained thinker's states tell a clip's appearance, and losing them costs. "
    "Controls that are *trained* on other states tell the two apart."
)
LATENTS_LEFT_OUT = "- latent distances left out: the runs' latents are not in one space"


def comparison_markdown(comparison: Comparison) -> str:
    """The whole report of a comparison."""
    parts = ["# Evaluation", conditions(comparison), *ranking_section(comparison)]
    metrics = list(VERDICT_METRICS.values())
    lines = [line for name in metrics for line in baseline_verdicts(comparison, name)]
    lines += [line for name in metrics for line in readout_lines(comparison, name)]
    parts += titled("Who wins", entry_table(comparison), lines)
    lines = [line for name in metrics for line in model_verdicts(comparison, name)]
    if table := difference_table(comparison):
        parts += [*titled("By how much", table, lines), difference_notes(comparison)]
    parts += titled("Where: over the horizon", horizon_table(comparison))
    parts += titled("Where: by length of history", stratum_table(comparison, "history"))
    parts += titled("Where: tasks that training has seen or not", stratum_table(comparison, "task"))
    for kind, title in DETAILS.items():
        parts += titled(title, detail_table(comparison, kind), detail_lines(comparison, kind))
    return "\n\n".join(parts) + "\n"


def ranked_models(comparison: Comparison) -> list[Mapping[str, Any]]:
    """The entries of models, the best on validation clips first where runs are ranked."""
    models = [entry for entry in comparison["entries"] if entry["method"] == "model"]
    if (ranking := comparison["ranking"]) is not None:
        position = {row["name"]: index for index, row in enumerate(ranking["rows"])}
        models.sort(key=lambda entry: position[entry["name"]])
    return models


def answer_lines(comparison: Comparison) -> list[str]:
    """The verdicts that answer first: guidance or none, the baselines, and the best model's other pairs."""
    models, names = ranked_models(comparison), list(VERDICT_METRICS.values())
    lines = [line for name in names for line in question_verdicts(comparison, name)]
    for name in names:
        lines += baseline_verdicts(comparison, name)
        lines += readout_lines(comparison, name, of=models[0]["name"])
    metrics = available(exhibited("page"), [entry["metrics"] for entry in comparison["entries"]])
    if metrics and len(models) <= MOST_GROUPS_BY_PAIRS:
        lines += model_verdicts(comparison, metrics[0].name, of=models[0]["name"])
    return list(dict.fromkeys(lines))


def conditions(comparison: Comparison) -> str:
    """The conditions of the measurement, a list."""
    frames = comparison["joint_frames"]
    lines = [
        f"- {counted(comparison['num_clips'], comparison['split'] + ' clip')} of "
        f"{counted(comparison['num_videos'], 'video')} in {counted(comparison['num_groups'], 'group')} (by "
        f"{comparison['grouping']}); weights were chosen on validation clips"
    ]
    if left_out := comparison["num_clips_left_out"]:
        lines.append(f"- {counted(left_out, 'clip')} not evaluated in all runs left out")
    if lacking := comparison["training_clips_lacking"]:
        lines.append(
            f"- the cache lacks {counted(lacking, 'training clip')}: what is learned from them is left out"
        )
    if not comparison["latents_compared"]:
        lines.append(LATENTS_LEFT_OUT)
    lines += [f"- **{line}**" for line in data_warnings(comparison)]
    for group in comparison["groups"]:
        seeds = ", ".join(map(str, group["seeds"]))
        lines.append(f"- {group['name']}: {counted(len(group['seeds']), 'seed')} ({seeds})")
    if varied := comparison["varied"]:
        named = (f"{name} ({', '.join(map(str, values))})" for name, values in varied.items())
        lines.append(f"- settings in which these runs differ: {'; '.join(named)}")
    lines.append(f"- {brackets_text(comparison['interval'])}")
    if any(len(group["seeds"]) == 1 for group in comparison["groups"]):
        lines.append("- of one seed no interval holds the spread over seeds")
    if comparison["num_groups"] < FEWEST_GROUPS:
        lines.append(TOO_FEW_GROUPS)
    if frames:
        lines += _joint_conditions(comparison, frames)
    return "\n".join(lines)


def data_warnings(comparison: Comparison) -> list[str]:
    """A line for each kind of data that the groups were not trained on alike."""
    return [
        f"warning: these groups were trained on different {TRAINED_ON[item['data']]}, so that more than "
        f"the models may differ: {', '.join(_counts(item['groups']))}"
        for item in comparison["different_data"]
    ]


def _counts(groups: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """`jepa 12 (3f2a91c0)`, the beginning of a digest telling equal counts apart."""
    return [
        f"{name} {own['count']} ({own['sha256'][:8]})" if own else f"{name} none"
        for name, own in groups.items()
    ]


def brackets_text(interval: Mapping[str, Any]) -> str:
    """The meaning of all brackets."""
    return (
        f"brackets: {100 * interval['level']:g} % intervals, for other groups of videos and other seeds "
        f"({interval['method']})"
    )


def _joint_conditions(comparison: Comparison, frames: Mapping[str, int]) -> Iterable[str]:
    where = " or ".join(FRAMES_OF_REFERENCE[frame] for frame in comparison["reference_frames"])
    yield (
        f"- {counted(len(comparison['joints']), 'joint')}: distances in mm, in {where}; keypoints are "
        f"{len(comparison['keypoints'])} of EgoDex's 12"
    )
    share = 100 * frames["counted"] / frames["labelled"] if frames["labelled"] else 0.0
    rest = ": the rest are of joints that were not seen before the split" if share < 100 else ""
    yield (
        f"- {frames['counted']:,} of {frames['labelled']:,} labelled joint-frames count ({share:.1f} %), in "
        f"{counted(frames['clips'], 'clip')}{rest}"
    )


def ranking_section(comparison: Comparison, *, write: TableWriter = markdown_table) -> list[str]:
    """Title, table and note of a sweep: a row per group, best first, with its settings.

    Empty for a single group.
    """
    ranking = comparison["ranking"]
    if ranking is None or len(ranking["rows"]) < 2:
        return []
    sorted_by, varied = ranking["sorted_by"], ranking["varied"]
    scores = {entry["name"]: entry["metrics"] for entry in comparison["entries"]}
    shown = available(exhibited("page"), [scores[row["name"]] for row in ranking["rows"]])
    if sorted_by in METRICS and METRICS[sorted_by] not in shown:
        shown.append(METRICS[sorted_by])
    validation = [
        name
        for name in VALIDATION_METRICS
        if any(name in row["validation"] for row in ranking["rows"])
        and name in ("validation_distance_m", "validation_latent_error", sorted_by)
    ]
    header = [
        "",
        "variant",
        *varied,
        "seeds",
        *(f"{VALIDATION_METRICS[name].label} ↓" for name in validation),
    ]
    header += [f"test {head}" for head in _heads(shown, comparison)]
    rows = [
        [
            position,
            row["variant"],
            *("" if row["settings"][name] is None else row["settings"][name] for name in varied),
            row["num_seeds"],
            *(_validation_text(row, name) for name in validation),
            *_figure_texts(scores[row["name"]], shown),
        ]
        for position, row in enumerate(ranking["rows"], start=1)
    ]
    if ranking["clips"] == "validation":
        note = (
            f"Sorted by {VALIDATION_METRICS[sorted_by].label}: choose by it, and report the test columns of "
            "what was chosen. ± is the standard deviation over seeds, brackets are intervals as above."
        )
    else:
        note = (
            f"**Sorted by the {comparison['split']} clips' {METRICS[sorted_by].label()}: who chooses by this "
            "order chooses on the clips that the report stands on.** Choose by a validation column."
        )
    return ["## Runs, the best first", write(header, rows, left=2 + len(varied)), note]


def _validation_text(row: Mapping[str, Any], name: str) -> str:
    if name not in row["validation"]:
        return ""
    mean, std = row["validation"][name], row["validation_seed_std"].get(name)
    number = VALIDATION_METRICS[name].unit.number
    return number(mean) if std is None else f"{number(mean)} ± {number(std)}"


def entry_table(comparison: Comparison, *, write: TableWriter = markdown_table) -> str:
    """A row per method with mean and interval of the main metrics."""
    entries = comparison["entries"]
    shown = available(exhibited("page"), [entry["metrics"] for entry in entries])
    rows = [
        [entry["name"], entry["num_seeds"] or "", *_figure_texts(entry["metrics"], shown)]
        for entry in entries
        if available(shown, [entry["metrics"]])
    ]
    return write(["method", "seeds", *_heads(shown, comparison)], rows, left=2)


def detail_table(comparison: Comparison, kind: MetricKind, *, write: TableWriter = markdown_table) -> str:
    """A row per model and baseline with the means of the metrics that are details; empty without any."""
    entries = [entry for entry in comparison["entries"] if is_main(entry)]
    means = [
        {name: figure["mean"] for name, figure in entry["metrics"].items()} | entry["over_clips"]
        for entry in entries
    ]
    details = [metric for metric in METRICS.values() if metric.detail and metric.kind == kind]
    shown = available(details, means)
    rows = [
        [entry["name"], *(_number_text(metric, found.get(metric.name)) for metric in shown)]
        for entry, found in zip(entries, means, strict=True)
        if available(shown, [found])
    ]
    return write(["method", *_heads(shown, comparison)], rows)


def detail_lines(comparison: Comparison, kind: MetricKind) -> list[str]:
    """The figures of the true latents that those of predictions are to be read against."""
    found = comparison["true_latents"] if kind == "latent" else {}
    lines = []
    if "effective_rank" in found:
        rank = RANK.number(found["effective_rank"])
        lines.append(f"the true latents' effective rank is {rank}, their variance ratio 1")
    if "candidates" in found:
        lines.append(
            f"an own future is told from {found['candidates']:.1f} others: by chance it is the first in "
            f"{CLIPS.number(1 / (1 + found['candidates']))}"
        )
    return lines


def difference_table(comparison: Comparison, *, write: TableWriter = markdown_table) -> str:
    """A row per pair, with a star where a difference is more than chance; empty without pairs."""
    differences = comparison["differences"]
    shown = available(exhibited("page"), [item["metrics"] for item in differences])
    rows = [
        [item["a"], item["b"], *(_difference_text(comparison, item, metric) for metric in shown)]
        for item in differences
        if available(shown, [item["metrics"]])
    ]
    return write(["a", "b", *_heads(shown, comparison)], rows, left=2)


def difference_notes(comparison: Comparison) -> str:
    """The meaning of stars, and of shuffled guidance where there is any."""
    notes = (
        f"a - b, clip by clip and seed by seed. `*`: the interval does not contain 0, with {FEWEST_GROUPS} "
        f"groups and {FEWEST_SEEDS} seeds or more."
    )
    methods = {entry["method"] for entry in comparison["entries"]}
    return f"{notes}\n\n{SHUFFLED_NOTE}" if "shuffled_guidance" in methods else notes


def _difference_text(comparison: Comparison, item: Mapping[str, Any], metric: Metric) -> str:
    text = _signed_text(item["metrics"], metric)
    if not text:
        return ""
    found = outcome(metric.name, item["metrics"][metric.name], evidence_of(comparison, item))
    return text + (" *" if found in ("better", "worse") else "")


def _signed_text(figures: Mapping[str, Figure], metric: Metric) -> str:
    return figure_text(figures[metric.name], metric.unit.signed) if metric.name in figures else ""


def horizon_table(comparison: Comparison, *, write: TableWriter = markdown_table) -> str:
    """A row per latent step: ADE of models and baselines, or L2 where there are no joints."""
    main = [entry for entry in comparison["entries"] if is_main(entry)]
    metrics = available(exhibited("horizon"), [entry["metrics"] for entry in main])
    if not metrics:
        return ""
    metric = metrics[0]
    shown = [entry for entry in main if metric.name in entry["metrics"]]
    rows = [
        [
            f"{step['seconds']:.2f}",
            *(_mean_text(metric, entry["horizon"][step["step"] - 1]) for entry in shown),
        ]
        for step in comparison["horizon"]
    ]
    note = (
        f"{metric.label()} of each latent step. Seconds run from the last observed frame to the "
        "middle of the step's frames."
    )
    return write(["seconds", *(entry["name"] for entry in shown)], rows, note=note)


def stratum_table(comparison: Comparison, kind: str, *, write: TableWriter = markdown_table) -> str:
    """A row per stratum: main metric of models and baselines, and the difference in question.

    Empty with a single stratum.
    """
    strata = comparison[f"by_{kind}"]
    main = [entry for entry in comparison["entries"] if is_main(entry)]
    metrics = available(exhibited("horizon"), [entry["metrics"] for entry in main])
    if not metrics or not strata:
        return ""
    metric = metrics[0]
    shown = [entry["name"] for entry in main if metric.name in entry["metrics"]]
    asked = question_of(comparison)
    rows = []
    for stratum in strata:
        cells = [_mean_text(metric, stratum["entries"][entry]) for entry in shown]
        cells += [
            _signed_text(item["metrics"], metric)
            for item in stratum["differences"]
            if (item["a"], item["b"]) == asked
        ]
        rows.append([stratum[kind], stratum["num_clips"], *cells])
    header = [kind, "clips", *shown, *([f"{asked[0]} - {asked[1]}"] if asked else [])]
    return write(header, rows, note=f"{metric.label()} {STRATA[kind]}")


def _heads(metrics: Sequence[Metric], comparison: Comparison) -> list[str]:
    last_frame_s = comparison["last_frame"]["seconds"]
    return [f"{metric.label(last_frame_s=last_frame_s)} {metric.arrow}" for metric in metrics]


def _figure_texts(figures: Mapping[str, Figure], metrics: Sequence[Metric]) -> list[str]:
    return [
        figure_text(figures[metric.name], metric.unit.number) if metric.name in figures else ""
        for metric in metrics
    ]


def _mean_text(metric: Metric, figures: Mapping[str, Figure]) -> str:
    return _number_text(metric, figures[metric.name]["mean"]) if metric.name in figures else ""


def _number_text(metric: Metric, value: float | None) -> str:
    return "" if value is None else metric.unit.number(value)
