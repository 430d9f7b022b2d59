"""Several evaluated runs side by side: seeds aggregated, differences paired by clip.

Scores are averaged over the seeds of a group clip by clip; intervals then draw videos. They tell how much
another choice of test videos could change a figure, not another choice of seeds: `seed_std` tells that.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from thinkjepa.stages.evaluate.bootstrap import Floats, VideoBootstrap
from thinkjepa.stages.evaluate.horizon import horizon_summary
from thinkjepa.stages.evaluate.latent_metrics import LATENT_METRICS
from thinkjepa.stages.evaluate.run_groups import EvaluatedRun, RunGroup, group_runs, on_shared_clips
from thinkjepa.stages.evaluate.summary import CURVES, METRICS, figures, interval_method, joint_frames

COMPARISON_SCHEMA = "thinkjepa.comparison.v1"
BEST_OF_SEEDS = "keypoint_best_m"
"""EgoDex's best of K: the distance over keypoints of the best of K predictions, K the number of seeds."""
COMPARED = (*METRICS[: -len(LATENT_METRICS)], BEST_OF_SEEDS, *LATENT_METRICS)
OF_A_GROUP = {"shuffled_guidance": "{}, shuffled guidance", "latent_persistence": "{} head on last latents"}
"""Methods that use a run's own weights: the forecaster's, and the head's to read joints."""
OF_NO_RUN = ("latent_persistence", "constant_pose", "constant_velocity", "mean_pose")
"""Methods that are the same beside every run; of latent persistence only the latents are."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the comparison: scores `(clip,)` and curves `(clip, step)` of one method."""

    name: str
    method: str
    group: RunGroup | None
    scores: dict[str, Floats]
    curves: dict[str, Floats]


def compare(runs: Sequence[EvaluatedRun]) -> dict[str, Any]:
    """The content of comparison.json. Raises StageError where runs cannot be compared."""
    shared = on_shared_clips(runs)
    groups = group_runs(shared)
    first = max(shared, key=lambda run: len(run.table.record["joints"])).table
    bootstrap = VideoBootstrap(first.video_digests)
    entries = list(entries_of(groups))
    return {
        "schema": COMPARISON_SCHEMA,
        "split": first.record["split"],
        "num_clips": len(first.clip_ids),
        "num_clips_left_out": len(set().union(*(run.table.clip_ids for run in runs))) - len(first.clip_ids),
        "num_videos": bootstrap.num_videos,
        "joints": first.record["joints"],
        "keypoints": first.record["keypoints"],
        "reference_frames": first.record["reference_frames"],
        "joint_frames": joint_frames(first),
        "interval": interval_method(),
        "groups": [_group_record(group) for group in groups],
        "entries": [_entry_record(entry, bootstrap) for entry in entries],
        "differences": [_difference(one, other, bootstrap) for one, other in pairs(entries)],
        "horizon": horizon_summary(first.lists("horizon_s")),
    }


def entries_of(groups: Sequence[RunGroup]) -> Iterator[Entry]:
    """The groups' models, then what each group's weights give otherwise, then what needs no run."""
    for group in groups:
        yield _entry(group.name, "model", group)
    for group in groups:
        for method, name in OF_A_GROUP.items():
            entry = _entry(name.format(group.name), method, group)
            if method == "latent_persistence":
                entry = _without_latents(entry)
            if entry.scores:
                yield entry
    widest = max(groups, key=lambda group: sum(group.has("constant_pose", name) for name in METRICS))
    for method in OF_NO_RUN:
        entry = _entry(method.replace("_", " "), method, RunGroup(widest.name, widest.runs[:1]))
        entry = Entry(entry.name, method, None, dict(entry.scores), dict(entry.curves))
        if method == "latent_persistence":
            entry = _latents_only(entry)
        if entry.scores:
            yield entry


def pairs(entries: Sequence[Entry]) -> Iterator[tuple[Entry, Entry]]:
    """Which entries are subtracted: every two models, and each model from what it has to beat."""
    models = [entry for entry in entries if entry.method == "model"]
    yield from combinations(models, 2)
    for model in models:
        for entry in entries:
            if entry.method != "model" and entry.group in (None, model.group):
                yield model, entry


def _entry(name: str, method: str, group: RunGroup) -> Entry:
    scores = {
        metric: group.by_seed(method, metric).mean(axis=0) for metric in METRICS if group.has(method, metric)
    }
    if "keypoint_m" in scores and len(group.runs) > 1:
        scores[BEST_OF_SEEDS] = group.by_seed(method, "keypoint_m").min(axis=0)
    curves = {metric: group.curves(method, metric) for metric in CURVES if group.has(method, metric)}
    ordered = {metric: scores[metric] for metric in COMPARED if metric in scores}
    return Entry(name, method, group, ordered, curves)


def _latents_only(entry: Entry) -> Entry:
    return _limited(entry, lambda metric: metric in LATENT_METRICS)


def _without_latents(entry: Entry) -> Entry:
    return _limited(entry, lambda metric: metric not in LATENT_METRICS)


def _limited(entry: Entry, wanted: Callable[[str], bool]) -> Entry:
    scores = {metric: values for metric, values in entry.scores.items() if wanted(metric)}
    curves = {metric: values for metric, values in entry.curves.items() if wanted(metric)}
    return Entry(entry.name, entry.method, entry.group, scores, curves)


def _group_record(group: RunGroup) -> dict[str, Any]:
    return {
        "name": group.name,
        "variant": group.variant,
        "seeds": group.seeds,
        "runs": [run.name for run in group.runs],
    }


def _entry_record(entry: Entry, bootstrap: VideoBootstrap) -> dict[str, Any]:
    group = entry.group
    return {
        "name": entry.name,
        "method": entry.method,
        "group": group.name if group else None,
        "num_seeds": len(group.runs) if group else 0,
        "metrics": figures(entry.scores, bootstrap),
        "seed_std": _seed_spread(entry),
        "horizon": _curve_records(entry, bootstrap),
    }


def _curve_records(entry: Entry, bootstrap: VideoBootstrap) -> list[dict[str, Any]]:
    """Figures at each latent step, the first one first."""
    num_steps = max((curve.shape[1] for curve in entry.curves.values()), default=0)
    by_step = {
        f"{metric} {step}": values
        for metric, curve in entry.curves.items()
        for step, values in enumerate(curve.T)
    }
    found = figures(by_step, bootstrap)
    return [
        {metric: found[f"{metric} {step}"] for metric in entry.curves if f"{metric} {step}" in found}
        for step in range(num_steps)
    ]


def _seed_spread(entry: Entry) -> dict[str, float]:
    """Standard deviation over seeds of each metric's mean over clips; empty with one seed."""
    group = entry.group
    if group is None or len(group.runs) < 2:
        return {}
    spread = {}
    for metric in entry.scores:
        if metric != BEST_OF_SEEDS and not np.isnan(entry.scores[metric]).all():
            means = np.nanmean(group.by_seed(entry.method, metric), axis=1)
            spread[metric] = float(means.std(ddof=1))
    return spread


def _difference(one: Entry, other: Entry, bootstrap: VideoBootstrap) -> dict[str, Any]:
    """`one` - `other`, clip by clip; a clip without either score is in neither.

    The best of different numbers of seeds is not compared.
    """
    both = [metric for metric in one.scores if metric in other.scores]
    num_seeds = [len(entry.group.runs) if entry.group else 0 for entry in (one, other)]
    if num_seeds[0] != num_seeds[1]:
        both = [metric for metric in both if metric != BEST_OF_SEEDS]
    return {
        "a": one.name,
        "b": other.name,
        "num_seeds": num_seeds,
        "metrics": figures({name: one.scores[name] - other.scores[name] for name in both}, bootstrap),
    }
