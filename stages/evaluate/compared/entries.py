"""Entries of a comparison: one method each, with its scores by seed and clip, and their differences."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from thinkjepa.stages.evaluate.baselines import METHODS
from thinkjepa.stages.evaluate.compared.groups import RunGroup
from thinkjepa.stages.evaluate.metrics import METRICS, Metric
from thinkjepa.stages.evaluate.over_clips import figures_over_clips
from thinkjepa.stages.evaluate.scores import Score
from thinkjepa.stages.intervals import Floats, Parts

MOST_GROUPS_BY_PAIRS = 6
"""Of more groups, not every two are compared: twenty settings would make 190 pairs."""

QUESTION = ("thinkjepa", "jepa")
"""The variants whose difference is always shown: whether guidance helps the same predictor."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the comparison: scores `(seed, clip)` of one method, of a group or of no run."""

    name: str
    method: str
    group: RunGroup | None
    """None for a method that uses no run's weights."""
    scores: Mapping[Score, Floats]
    """Of one row where the method has no seeds, or the metric is the best of them."""
    over_clips: Mapping[Score, float]
    """Figures of all clips together, means over the seeds, of the whole future or at a rollout's horizons."""
    by_joint: Mapping[str, Sequence[float | None]]
    """Mean distance (m) of each joint at each latent step, over the seeds; empty where a run lacks it."""

    @property
    def seeds(self) -> list[int]:
        return self.group.seeds if self.group else []

    def of_whole_future(self) -> dict[str, Floats]:
        """Scores by metric, without those at single steps and horizons."""
        return {score.metric: values for score, values in self.scores.items() if not score.step}

    def over_clips_at(self, step: int) -> dict[str, float]:
        """Figures of all clips together by metric, at a horizon or (0) of the whole future."""
        return {score.metric: value for score, value in self.over_clips.items() if score.step == step}


def entries_of(groups: Sequence[RunGroup]) -> Iterator[Entry]:
    """Yield the groups' models, then the other methods with each group's weights, then those without."""
    for group in groups:
        yield _entry(group.name, "model", group, METRICS.values(), of=group)
    for group in groups:
        for name, method in METHODS.items():
            own = [metric for metric in METRICS.values() if metric.kind in method.of_run]
            entry = _entry(method.in_comparison.format(group.name), name, group, own, of=group)
            if name != "model" and entry.scores:
                yield entry
    for name, method in METHODS.items():
        common = [metric for metric in METRICS.values() if metric.kind not in method.of_run]
        for group in groups:
            first_run = RunGroup(group.name, group.runs[:1])
            if (entry := _entry(name.replace("_", " "), name, first_run, common, of=None)).scores:
                yield entry
                break


def _entry(
    name: str, method: str, runs: RunGroup, metrics: Collection[Metric], *, of: RunGroup | None
) -> Entry:
    """The entry of the group `of`, with those of `metrics` that all of `runs` have."""
    scores = _scores(method, runs, metrics)
    by_joint = _by_joint(method, runs) if Score(method, "ade_m") in scores else {}
    return Entry(name, method, of, scores, _over_clips(method, runs, metrics), by_joint)


def _over_clips(method: str, group: RunGroup, metrics: Iterable[Metric]) -> dict[Score, float]:
    """Means over seeds of those of `metrics` that are of all clips together and that all runs have."""
    means: dict[Score, float] = {}
    for step in filter(lambda step: step >= 0, _steps(group)):  # slopes have none
        found = [figures_over_clips(run.table, step=step).get(method, {}) for run in group.runs]
        means |= {
            Score(method, metric.name, step): float(np.mean([figures[metric.name] for figures in found]))
            for metric in metrics
            if all(metric.name in figures for figures in found)
        }
    return means


def _by_joint(method: str, group: RunGroup) -> dict[str, list[float | None]]:
    """Means over seeds of each joint's curve; empty unless all runs have one."""
    curves = [run.table.by_joint.get(method, {}) for run in group.runs]
    if not all(curves):
        return {}
    means: dict[str, list[float | None]] = {}
    for joint in curves[0]:
        by_step = zip(*(curve[joint] for curve in curves), strict=True)
        means[joint] = [None if None in values else float(np.mean(values)) for values in by_step]
    return means


def _steps(group: RunGroup) -> list[int]:
    """Latent steps, or horizons, that a run has scores of; 0 is the whole future."""
    return sorted({score.step for score in group.runs[0].table.scores})


def _scores(method: str, group: RunGroup, metrics: Iterable[Metric]) -> dict[Score, Floats]:
    """Those of `metrics` that all runs of the group have."""
    scores: dict[Score, Floats] = {}
    steps = _steps(group)
    for metric in metrics:
        if metric.best_of:
            by_seed = group.by_seed(Score(method, metric.best_of))
            if by_seed is not None and len(by_seed) > 1:
                scores[Score(method, metric.name)] = by_seed.min(axis=0, keepdims=True)
        else:
            for step in steps:
                score = Score(method, metric.name, step)
                if (by_seed := group.by_seed(score)) is not None:
                    scores[score] = by_seed
    return scores


def pairs(entries: Sequence[Entry], *, order: Sequence[str] = ()) -> list[tuple[Entry, Entry]]:
    """The entries to subtract: every two models, and each model and the methods to hold it against.

    Methods that see the future are subtracted from nothing. Of more than MOST_GROUPS_BY_PAIRS models each is
    compared with the first one only, and the first of either variant in `QUESTION` with each other. `order`
    has the names of models, the best first.
    """
    models = {entry.name: entry for entry in entries if entry.method == "model"}
    chosen = list(combinations(models.values(), 2))
    if len(models) > MOST_GROUPS_BY_PAIRS and order:
        groups = {name: group for name in order if (group := models[name].group)}
        asked = question_pair({name: group.variant for name, group in groups.items() if not group.is_control})
        chosen = [
            (one, other)
            for one, other in chosen
            if order[0] in (one.name, other.name) or {one.name, other.name} == set(asked or ())
        ]
    chosen += [
        (model, entry)
        for model in models.values()
        for entry in entries
        if entry.method != "model"
        and not METHODS[entry.method].sees_future
        and entry.group in (None, model.group)
    ]
    return chosen


def question_pair(variants: Mapping[str, str]) -> tuple[str, str] | None:
    """The names of the first model of either variant in `QUESTION`; None where one has none.

    `variants` has the variant of each model, the best first, without controls: what guides these is not the
    thinker.
    """
    found = [next((name for name, own in variants.items() if own == variant), None) for variant in QUESTION]
    return (found[0], found[1]) if found[0] is not None and found[1] is not None else None


def subtracted(one: Entry, other: Entry) -> dict[Score, Parts]:
    """`one` - `other`, clip by clip, by score; a run is held against the run of the same seed.

    Groups of other seeds have no such pairs: their seeds are samples of their own. The best of different
    numbers of seeds is not subtracted.
    """
    found: dict[Score, Parts] = {}
    for score, ours in one.scores.items():
        theirs = other.scores.get(score._replace(method=other.method))
        if theirs is None or (METRICS[score.metric].best_of and len(one.seeds) != len(other.seeds)):
            continue
        paired = one.seeds == other.seeds or len(theirs) == 1
        found[score] = [ours - theirs] if paired else [ours, -theirs]
    return found


def means_by_seed(parts: Parts) -> list[float]:
    """The mean over clips of each seed's difference; empty where seeds are not paired, or no clip has one."""
    if len(parts) != 1 or np.isnan(parts[0]).all():
        return []
    return [float(mean) for mean in np.nanmean(parts[0], axis=1)]
