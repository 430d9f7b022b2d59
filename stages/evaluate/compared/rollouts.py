"""Comparison of rollouts: figures over groups and seeds and paired differences, as of one window, by horizon.

The slope of an error over the future is a score of each clip, too: of the line of least squares through its
errors at single latent steps, per second.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from thinkjepa.stages.evaluate.compared.comparison import true_latents
from thinkjepa.stages.evaluate.compared.entries import Entry, entries_of, pairs, subtracted
from thinkjepa.stages.evaluate.compared.groups import (
    EvaluatedRun,
    different_data,
    group_records,
    group_runs,
    on_shared_clips,
    one_latent_space,
)
from thinkjepa.stages.evaluate.rollout import SLOPE, RolledOut
from thinkjepa.stages.evaluate.scores import Score
from thinkjepa.stages.intervals import INTERVAL_METHOD, Clusters, Figure, Parts

ROLLOUTS_SCHEMA = "thinkjepa.rollouts.v1"


def compare_rollouts(rolled: Mapping[str, RolledOut]) -> dict[str, Any]:
    """Figures at each horizon, of rollouts to the same horizons by the names of their runs.

    `entries` and `differences` have `horizons`, figures by metric for each, and `per_s`, those of slopes.
    `over_clips` has those of all clips together at each horizon, without intervals.
    Raises StageError where runs cannot be compared.
    """
    first = next(iter(rolled.values())).result
    runs = [EvaluatedRun(name, item.table, trained_on=item.trained_on) for name, item in rolled.items()]
    shared = on_shared_clips(runs)
    groups = group_runs(shared)
    table = shared[0].table
    clusters, entries = table.clusters(), list(entries_of(groups))
    horizons = [
        {name: item[name] for name in ("steps", "windows", "seconds", "last_frame_s")}
        for item in first["horizons"]
    ]
    steps = [item["steps"] for item in horizons]
    of_split = max(item.result["num_clips"] + item.result["num_clips_left_out"] for item in rolled.values())
    return {
        "schema": ROLLOUTS_SCHEMA,
        "split": first["split"],
        "num_clips": len(table.clip_ids),
        "num_clips_left_out": of_split - len(table.clip_ids),
        "num_videos": clusters.num_videos,
        "num_groups": clusters.num_groups,
        "grouping": table.record["division"]["grouping"],
        "observed_steps": first["observed_steps"],
        "window_steps": first["window_steps"],
        "latents_compared": one_latent_space(runs),
        "interval": INTERVAL_METHOD,
        "different_data": different_data(groups),
        "groups": group_records(groups),
        "horizons": horizons,
        "true_latents": true_latents(shared),
        "entries": [_entry_record(entry, steps, clusters) for entry in entries],
        "differences": [
            {
                "a": one.name,
                "b": other.name,
                "num_seeds": [len(one.seeds), len(other.seeds)],
                **_figures(subtracted(one, other), steps, clusters),
            }
            for one, other in pairs(entries)
        ],
    }


def _entry_record(entry: Entry, steps: Sequence[int], clusters: Clusters) -> dict[str, Any]:
    return {
        "name": entry.name,
        "method": entry.method,
        "group": entry.group.name if entry.group else None,
        "num_seeds": len(entry.seeds),
        **_figures({score: [values] for score, values in entry.scores.items()}, steps, clusters),
        "over_clips": [entry.over_clips_at(step) for step in steps],
    }


def _figures(parts: Mapping[Score, Parts], steps: Sequence[int], clusters: Clusters) -> dict[str, Any]:
    """Figures by metric at each horizon, and of slopes."""
    found = clusters.figures(parts)

    def at(step: int) -> dict[str, Figure]:
        return {score.metric: figure for score, figure in found.items() if score.step == step}

    return {"horizons": [at(step) for step in steps], "per_s": at(SLOPE)}
