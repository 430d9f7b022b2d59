"""Comparison of evaluated runs: seeds aggregated, differences paired by clip, groups ranked.

Scores are averaged over the seeds of a group clip by clip; intervals then draw videos. They tell how much
another choice of test videos could change a figure, not another choice of seeds: `seed_std` tells that.

Readers take the first row of a ranking. So rows are sorted by a figure of the validation clips unless another
one is asked for, and a ranking names the clips that its order comes from.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.baselines import METHODS
from thinkjepa.stages.evaluate.evaluation import joint_frames
from thinkjepa.stages.evaluate.groups import (
    EvaluatedRun,
    RunGroup,
    different_data,
    differing,
    group_runs,
    on_shared_clips,
    one_latent_space,
    varied_settings,
)
from thinkjepa.stages.evaluate.metrics import (
    METRICS,
    VALIDATION_METRICS,
    Metric,
    horizon_summary,
    time_summary,
)
from thinkjepa.stages.evaluate.scores import INTERVAL_METHOD, Floats, Score, VideoBootstrap

COMPARISON_SCHEMA = "thinkjepa.comparison.v1"
MOST_GROUPS_BY_PAIRS = 6
"""Of more groups, not every two are compared: twenty settings would make 190 pairs."""

VALIDATION_DISTANCE, VALIDATION_LATENT, VALIDATION_LOSS = VALIDATION_METRICS

OF_THE_LOSS = (
    "latent_loss",
    "latent_weight",
    "next_step_weight",
    "trajectory_weight",
    "trajectory_units",
    "normalise_targets",
    "latent_pool",
    "latent_target",
    "whiten_latents",
)
"""Settings that change the loss of the same predictions."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the comparison: scores `(clip,)` of one method, means over the seeds of a group."""

    name: str
    method: str
    group: RunGroup | None
    """None for a method that uses no run's weights."""
    scores: Mapping[Score, Floats]

    @property
    def num_seeds(self) -> int:
        return len(self.group.runs) if self.group else 0

    def of_whole_future(self) -> dict[str, Floats]:
        """Scores by metric, without those at single latent steps."""
        return {score.metric: values for score, values in self.scores.items() if not score.step}


def compare(runs: Sequence[EvaluatedRun], *, sort_by: str | None = None) -> dict[str, Any]:
    """The content of comparison.json; `sort_by` as `rank` takes it.

    Raises StageError where runs cannot be compared, or cannot be sorted in this way.
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
        "training_clips_lacking": max(run.table.record.get("training_clips_lacking", 0) for run in shared),
        "latents_compared": one_latent_space(shared),
        "joint_frames": joint_frames(first),
        "interval": INTERVAL_METHOD,
        "groups": [
            {
                "name": group.name,
                "variant": group.variant,
                "seeds": group.seeds,
                "runs": [run.name for run in group.runs],
            }
            for group in groups
        ],
        "different_data": different_data(groups),
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
    """Yield the groups' models, then the other methods with each group's weights, then those without."""
    for group in groups:
        yield Entry(group.name, "model", group, _mean_scores("model", group, METRICS.values()))
    for group in groups:
        for name, method in METHODS.items():
            own = [metric for metric in METRICS.values() if metric.kind in method.of_run]
            if name != "model" and (scores := _mean_scores(name, group, own)):
                yield Entry(method.in_comparison.format(group.name), name, group, scores)
    for name, method in METHODS.items():
        common = [metric for metric in METRICS.values() if metric.kind not in method.of_run]
        for group in groups:
            if scores := _mean_scores(name, RunGroup(group.name, group.runs[:1]), common):
                yield Entry(name.replace("_", " "), name, None, scores)
                break


def pairs(entries: Sequence[Entry], *, first: str | None = None) -> Iterator[tuple[Entry, Entry]]:
    """Yield the entries to subtract: every two models, and each model and the methods to hold it against.

    Methods that see the future are subtracted from nothing.
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
            comparable = entry.method != "model" and not METHODS[entry.method].sees_future
            if comparable and entry.group in (None, model.group):
                yield model, entry


def _mean_scores(method: str, group: RunGroup, metrics: Iterable[Metric]) -> dict[Score, Floats]:
    """Means over seeds of those of `metrics` that all runs of the group have."""
    scores: dict[Score, Floats] = {}
    num_steps = max((score.step for score in group.runs[0].table.scores), default=0)
    for metric in metrics:
        if metric.best_of:
            by_seed = group.by_seed(Score(method, metric.best_of))
            if by_seed is not None and len(by_seed) > 1:
                scores[Score(method, metric.name)] = by_seed.min(axis=0)
        else:
            for step in range(num_steps + 1):
                score = Score(method, metric.name, step)
                if (by_seed := group.by_seed(score)) is not None:
                    scores[score] = by_seed.mean(axis=0)
    return scores


def _entry_record(entry: Entry, bootstrap: VideoBootstrap) -> dict[str, Any]:
    at_steps = {score: values for score, values in entry.scores.items() if score.step}
    found = bootstrap.figures(at_steps)
    num_steps = max((score.step for score in at_steps), default=0)
    return {
        "name": entry.name,
        "method": entry.method,
        "sees_future": METHODS[entry.method].sees_future,
        "group": entry.group.name if entry.group else None,
        "num_seeds": entry.num_seeds,
        "metrics": bootstrap.figures(entry.of_whole_future()),
        "seed_std": _seed_std(entry),
        "horizon": [
            {score.metric: figure for score, figure in found.items() if score.step == step}
            for step in range(1, num_steps + 1)
        ],
    }


def _seed_std(entry: Entry) -> dict[str, float]:
    """Standard deviation over seeds of each metric's mean over clips; empty with one seed."""
    if entry.group is None or entry.num_seeds < 2:
        return {}
    found = {}
    for metric, values in entry.of_whole_future().items():
        by_seed = entry.group.by_seed(Score(entry.method, metric))
        if by_seed is not None and not np.isnan(values).all():
            found[metric] = float(np.nanmean(by_seed, axis=1).std(ddof=1))
    return found


def _difference(one: Entry, other: Entry, bootstrap: VideoBootstrap) -> dict[str, Any]:
    """`one` - `other`, clip by clip; a clip without either score is in neither.

    The best of different numbers of seeds is not compared.
    """
    ones, others = one.of_whole_future(), other.of_whole_future()
    same_seeds = one.num_seeds == other.num_seeds
    both = [metric for metric in ones if metric in others and (same_seeds or not METRICS[metric].best_of)]
    return {
        "a": one.name,
        "b": other.name,
        "num_seeds": [one.num_seeds, other.num_seeds],
        "metrics": bootstrap.figures({metric: ones[metric] - others[metric] for metric in both}),
        "by_seed": _by_seed(one, other, both),
    }


def _by_seed(one: Entry, other: Entry, metrics: Sequence[str]) -> dict[str, list[float]]:
    """The mean difference of each seed of `one`, in the order of its group's seeds.

    A method without a run is subtracted from every seed, a run of the same seed from its own. Groups of other
    seeds have no pairs: empty.
    """
    if one.group is None or (other.group is not None and other.group.seeds != one.group.seeds):
        return {}
    found = {}
    for metric in metrics:
        score = Score(other.method, metric)
        theirs = other.scores[score] if other.group is None else other.group.by_seed(score)
        ours = one.group.by_seed(Score(one.method, metric))
        if ours is not None and theirs is not None and not np.isnan(ours - theirs).all():
            found[metric] = [float(mean) for mean in np.nanmean(ours - theirs, axis=1)]
    return found


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


def rank(
    groups: Sequence[RunGroup], test_scores: Mapping[str, Mapping[str, Any]], *, sort_by: str | None
) -> dict[str, Any]:
    """The groups, best first, with the settings in which they differ and their validation figures.

    `test_scores` are the figures of each group's model by metric; `sort_by` one of those or of
    VALIDATION_METRICS, None for the joints' distance on validation clips, or their latents' error where not
    all runs predict joints. Raises StageError where a figure is missing, or does not mean the same for all.
    """
    runs = [run for group in groups for run in group.runs]
    has_joints = all(VALIDATION_DISTANCE in run.validation for run in runs)
    chosen = sort_by or (VALIDATION_DISTANCE if has_joints else VALIDATION_LATENT)
    if chosen in VALIDATION_METRICS:
        _check_comparable(runs, chosen)
    values = {group.name: _sort_value(group, chosen, test_scores[group.name]) for group in groups}
    largest_first = chosen in METRICS and METRICS[chosen].better_when_larger
    varied = list(varied_settings(groups))
    return {
        "sorted_by": chosen,
        "clips": "validation" if chosen in VALIDATION_METRICS else "test",
        "varied": varied,
        "rows": [
            {
                "name": group.name,
                "variant": group.variant,
                "settings": {name: group.runs[0].description.get(name) for name in varied},
                "num_seeds": len(group.runs),
                "validation": {name: float(np.mean(found)) for name, found in _validation(group).items()},
                "validation_seed_std": {
                    name: float(np.std(found, ddof=1))
                    for name, found in _validation(group).items()
                    if len(group.runs) > 1
                },
            }
            for group in sorted(groups, key=lambda group: values[group.name], reverse=largest_first)
        ],
    }


def _check_comparable(runs: Sequence[EvaluatedRun], metric: str) -> None:
    if without := next((run.name for run in runs if run.validation.get(metric) is None), None):
        raise StageError(f"run {without!r} has no {metric}: sort by a figure that all runs have")
    if metric == VALIDATION_LATENT and not one_latent_space(runs):
        raise StageError(f"latents of these runs are not in one space: {metric} cannot sort them")
    settings = [run.table.record["settings"] for run in runs]
    if metric == VALIDATION_LOSS and (names := set(differing(settings)) & set(OF_THE_LOSS)):
        raise StageError(
            f"these runs differ in {', '.join(sorted(names))}, so their losses are not the same thing: sort "
            f"by {VALIDATION_DISTANCE} or {VALIDATION_LATENT}"
        )


def _sort_value(group: RunGroup, metric: str, test_scores: Mapping[str, Any]) -> float:
    if metric in VALIDATION_METRICS:
        return float(np.mean(_validation(group)[metric]))
    if metric not in test_scores:
        known = ", ".join((*VALIDATION_METRICS, *test_scores))
        raise StageError(f"cannot sort by {metric!r}: {group.name} has {known}")
    return float(test_scores[metric]["mean"])


def _validation(group: RunGroup) -> dict[str, list[float]]:
    """Figures of the validation clips, one a seed, that all runs of the group have."""
    return {
        name: [float(run.validation[name]) for run in group.runs]
        for name in VALIDATION_METRICS
        if all(run.validation.get(name) is not None for run in group.runs)
    }
