"""Comparison of evaluated runs: seeds and groups in the intervals, differences paired by clip, groups ranked.

A figure is a mean over clips and seeds. Its interval tells how much other groups of videos and other seeds
could change it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from thinkjepa.stages.evaluate.baselines import METHODS
from thinkjepa.stages.evaluate.compared.entries import Entry, entries_of, means_by_seed, pairs, subtracted
from thinkjepa.stages.evaluate.compared.groups import (
    EvaluatedRun,
    different_data,
    group_records,
    group_runs,
    on_shared_clips,
    one_latent_space,
    varied_settings,
)
from thinkjepa.stages.evaluate.compared.ranking import ranking_of
from thinkjepa.stages.evaluate.evaluation import joint_frames
from thinkjepa.stages.evaluate.metrics import horizon_summary, time_summary
from thinkjepa.stages.evaluate.over_clips import figures_over_clips
from thinkjepa.stages.evaluate.strata import Stratum, strata_of, task_strata
from thinkjepa.stages.intervals import INTERVAL_METHOD, Clusters

COMPARISON_SCHEMA = "thinkjepa.comparison.v2"


def compare(runs: Sequence[EvaluatedRun], *, sort_by: str | None = None) -> dict[str, Any]:
    """The content of comparison.json; `sort_by` as `rank` takes it.

    Raises StageError where runs cannot be compared, or cannot be sorted in this way.
    """
    shared = on_shared_clips(runs)
    groups = group_runs(shared)
    first = max(shared, key=lambda run: len(run.table.record["joints"])).table
    clusters = first.clusters()
    entries = list(entries_of(groups))
    records = [_entry_record(entry, clusters) for entry in entries]
    ranking = ranking_of(groups, records, sort_by=sort_by)
    order = [row["name"] for row in ranking["rows"]] if ranking else []
    compared = pairs(entries, order=order)
    return {
        "schema": COMPARISON_SCHEMA,
        "split": first.record["split"],
        "num_clips": len(first.clip_ids),
        "num_clips_left_out": len(set().union(*(run.table.clip_ids for run in runs))) - len(first.clip_ids),
        "num_videos": clusters.num_videos,
        "num_groups": clusters.num_groups,
        "grouping": first.record["division"]["grouping"],
        "joints": first.record["joints"],
        "keypoints": first.record["keypoints"],
        "reference_frames": first.record["reference_frames"],
        "training_clips_lacking": max(run.table.record.get("training_clips_lacking", 0) for run in shared),
        "true_latents": true_latents(shared),
        "latents_compared": one_latent_space(shared),
        "joint_frames": joint_frames(first),
        "interval": INTERVAL_METHOD,
        "groups": group_records(groups),
        "different_data": different_data(groups),
        "varied": varied_settings(groups),
        "ranking": ranking,
        "entries": records,
        "differences": [_difference(one, other, clusters) for one, other in compared],
        "last_frame": time_summary(first.numbers("last_frame_s")),
        "horizon": horizon_summary(first.lists("horizon_s")),
        **{
            name: [_stratum_record(stratum, entries, compared, clusters) for stratum in strata]
            for name, strata in (
                ("by_history", strata_of(first.numbers("beyond_window_s"))),
                ("by_task", task_strata(first.numbers("task_seen"))),
            )
        },
    }


def true_latents(runs: Sequence[EvaluatedRun]) -> dict[str, float]:
    """Figures of the true latents, of the first run that has latents. Empty without any."""
    found = (figures_over_clips(run.table).get("future", {}) for run in runs)
    return next(filter(None, found), {})


def _entry_record(entry: Entry, clusters: Clusters) -> dict[str, Any]:
    found = clusters.figures({score: [values] for score, values in entry.scores.items()})
    num_steps = max((score.step for score in entry.scores), default=0)
    return {
        "name": entry.name,
        "method": entry.method,
        "sees_future": METHODS[entry.method].sees_future,
        "group": entry.group.name if entry.group else None,
        "num_seeds": len(entry.seeds),
        "metrics": {score.metric: figure for score, figure in found.items() if not score.step},
        "over_clips": entry.over_clips_at(0),
        "seed_std": _seed_std(entry),
        "horizon": [
            {score.metric: figure for score, figure in found.items() if score.step == step}
            for step in range(1, num_steps + 1)
        ],
        **({"ade_m_by_joint": dict(entry.by_joint)} if entry.by_joint else {}),
    }


def _stratum_record(
    stratum: Stratum, entries: Sequence[Entry], compared: Sequence[tuple[Entry, Entry]], clusters: Clusters
) -> dict[str, Any]:
    """The clips of a stratum, and the figures of entries and differences over its whole future."""
    found = [
        {
            "a": one.name,
            "b": other.name,
            "metrics": clusters.figures(
                {
                    score.metric: stratum.of(parts)
                    for score, parts in subtracted(one, other).items()
                    if not score.step
                }
            ),
        }
        for one, other in compared
    ]
    scores = {
        entry.name: {metric: stratum.of([values]) for metric, values in entry.of_whole_future().items()}
        for entry in entries
    }
    return {
        **stratum.to_json(),
        "entries": {name: clusters.figures(own) for name, own in scores.items()},
        "differences": found,
    }


def _seed_std(entry: Entry) -> dict[str, float]:
    """Standard deviation over seeds of each metric's mean over clips. No metric is in it with one seed."""
    return {
        metric: float(np.nanmean(values, axis=1).std(ddof=1))
        for metric, values in entry.of_whole_future().items()
        if len(values) > 1 and not np.isnan(values).all()
    }


def _difference(one: Entry, other: Entry, clusters: Clusters) -> dict[str, Any]:
    """`one` - `other`; a clip without either score is in neither."""
    parts = {score.metric: own for score, own in subtracted(one, other).items() if not score.step}
    by_seed = {metric: means_by_seed(own) for metric, own in parts.items()} if one.seeds else {}
    return {
        "a": one.name,
        "b": other.name,
        "num_seeds": [len(one.seeds), len(other.seeds)],
        "metrics": clusters.figures(parts),
        "by_seed": {metric: means for metric, means in by_seed.items() if means},
    }
