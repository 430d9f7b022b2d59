"""Several evaluated runs side by side: seeds aggregated, differences paired by clip.

Scores are averaged over the seeds of a group clip by clip; intervals then draw videos. They tell how much
another choice of test videos could change a figure, not another choice of seeds: `seed_std` tells that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.bootstrap import Floats, VideoBootstrap
from thinkjepa.stages.evaluate.groups import (
    EvaluatedRun,
    RunGroup,
    group_runs,
    on_shared_clips,
    one_latent_space,
    varied_settings,
)
from thinkjepa.stages.evaluate.metrics import (
    LATENT_METRICS,
    METRICS,
    TRAJECTORY_METRICS,
    horizon_summary,
    time_summary,
)
from thinkjepa.stages.evaluate.ranking import rank
from thinkjepa.stages.evaluate.table import figures, interval_method, joint_frames

COMPARISON_SCHEMA = "thinkjepa.comparison.v1"
MOST_GROUPS_BY_PAIRS = 6
"""Of more groups, not every two are compared: twenty settings would make 190 pairs."""

OF_A_GROUP = {
    "shuffled_guidance": ("{}, shuffled guidance", tuple(METRICS)),
    "latent_persistence": ("{} head on last latents", TRAJECTORY_METRICS),
}
"""Methods that use a run's own weights: what they are called, and which of their scores are the run's."""
OF_NO_RUN = {
    "latent_persistence": LATENT_METRICS,
    "constant_pose": TRAJECTORY_METRICS,
    "constant_velocity": TRAJECTORY_METRICS,
    "mean_pose": TRAJECTORY_METRICS,
}
"""Methods whose scores are the same beside every run."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the comparison: scores `(clip,)` and curves `(clip, step)` of one method."""

    name: str
    method: str
    group: RunGroup | None
    scores: dict[str, Floats]
    curves: dict[str, Floats]


def compare(runs: Sequence[EvaluatedRun], *, sort_by: str | None = None) -> dict[str, Any]:
    """The content of comparison.json; `sort_by` as `rank` takes it.

    Raises StageError where runs cannot be compared, or not be sorted so.
    """
    shared = on_shared_clips(runs)
    groups = group_runs(shared)
    first = max(shared, key=lambda run: len(run.table.record["joints"])).table
    bootstrap = VideoBootstrap(first.video_digests)
    entries = list(entries_of(groups))
    records = [_entry_record(entry, bootstrap) for entry in entries]
    ranking = _ranking(groups, records, sort_by=sort_by)
    return {
        "schema": COMPARISON_SCHEMA,
        "split": first.record["split"],
        "num_clips": len(first.clip_ids),
        "num_clips_left_out": len(set().union(*(run.table.clip_ids for run in runs))) - len(first.clip_ids),
        "num_videos": bootstrap.num_videos,
        "joints": first.record["joints"],
        "keypoints": first.record["keypoints"],
        "reference_frames": first.record["reference_frames"],
        "latents_compared": one_latent_space(shared),
        "joint_frames": joint_frames(first),
        "interval": interval_method(),
        "groups": [_group_record(group) for group in groups],
        "varied": varied_settings(groups),
        "ranking": ranking,
        "entries": records,
        "differences": [
            _difference(one, other, bootstrap)
            for one, other in pairs(entries, first=ranking["rows"][0]["name"] if ranking else None)
        ],
        "last_frame": time_summary(first.numbers("last_frame_s")),
        "horizon": horizon_summary(first.lists("horizon_s")),
    }


def entries_of(groups: Sequence[RunGroup]) -> Iterator[Entry]:
    """The groups' models, then what each group's weights give otherwise, then what needs no run."""
    for group in groups:
        yield _entry(group.name, "model", group, tuple(METRICS))
    for group in groups:
        for method, (name, metrics) in OF_A_GROUP.items():
            if (entry := _entry(name.format(group.name), method, group, metrics)).scores:
                yield entry
    for method, metrics in OF_NO_RUN.items():
        having = (group for group in groups if any(group.has(method, metric) for metric in metrics))
        if first := next(having, None):
            one_run = RunGroup(first.name, first.runs[:1])
            yield replace(_entry(method.replace("_", " "), method, one_run, metrics), group=None)


def pairs(entries: Sequence[Entry], *, first: str | None = None) -> Iterator[tuple[Entry, Entry]]:
    """Which entries are subtracted: every two models, and each model from what it has to beat.

    Of more than MOST_GROUPS_BY_PAIRS models each is compared with the one that is called `first` only.
    """
    models = [entry for entry in entries if entry.method == "model"]
    yield from (
        (one, other)
        for one, other in combinations(models, 2)
        if len(models) <= MOST_GROUPS_BY_PAIRS or first is None or first in (one.name, other.name)
    )
    for model in models:
        for entry in entries:
            if entry.method != "model" and entry.group in (None, model.group):
                yield model, entry


def _ranking(
    groups: Sequence[RunGroup], records: Sequence[dict[str, Any]], *, sort_by: str | None
) -> dict[str, Any] | None:
    """The order of the groups; None where none is asked for and the usual figure is missing somewhere."""
    scores = {record["name"]: record["metrics"] for record in records}
    try:
        return rank(groups, scores, sort_by=sort_by)
    except StageError:
        if sort_by is None:
            return None
        raise


def _entry(name: str, method: str, group: RunGroup, metrics: Sequence[str]) -> Entry:
    """A line with those of `metrics` that all runs of the group have, means over its seeds."""
    scores: dict[str, Floats] = {}
    for metric in metrics:
        if best_of := METRICS[metric].best_of:
            if best_of in scores and len(group.runs) > 1:
                scores[metric] = group.by_seed(method, best_of).min(axis=0)
        elif group.has(method, metric):
            scores[metric] = group.by_seed(method, metric).mean(axis=0)
    curves = {metric: group.curves(method, metric) for metric in scores if METRICS[metric].by_step}
    return Entry(name, method, group, scores, curves)


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
        if not METRICS[metric].best_of and not np.isnan(entry.scores[metric]).all():
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
        both = [metric for metric in both if not METRICS[metric].best_of]
    return {
        "a": one.name,
        "b": other.name,
        "num_seeds": num_seeds,
        "metrics": figures({name: one.scores[name] - other.scores[name] for name in both}, bootstrap),
        "by_seed": _by_seed(one, other, [metric for metric in both if not METRICS[metric].best_of]),
    }


def _by_seed(one: Entry, other: Entry, metrics: Sequence[str]) -> dict[str, list[float]]:
    """The mean difference of each seed of `one`, in the order of its group's seeds.

    A method of no run is subtracted from every seed, a run of the same seed from its own. Groups of other
    seeds have no pairs: empty.
    """
    if one.group is None or (other.group is not None and other.group.seeds != one.group.seeds):
        return {}
    found = {}
    for metric in metrics:
        theirs = other.scores[metric] if other.group is None else other.group.by_seed(other.method, metric)
        differences = one.group.by_seed(one.method, metric) - theirs
        if not np.isnan(differences).all():
            found[metric] = [float(mean) for mean in np.nanmean(differences, axis=1)]
    return found
