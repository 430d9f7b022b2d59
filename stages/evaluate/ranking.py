"""Groups of runs in order: chosen by what validation clips say, reported with what test clips say.

The first row of a table is what its reader takes. So rows are sorted by a figure of the validation clips
unless another is asked for, and a ranking says which clips its order comes from.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.groups import (
    EvaluatedRun,
    RunGroup,
    differing,
    one_latent_space,
    varied_settings,
)
from thinkjepa.stages.evaluate.metrics import METRICS, VALIDATION_METRICS

VALIDATION_DISTANCE, VALIDATION_LATENT, VALIDATION_LOSS = VALIDATION_METRICS

OF_THE_LOSS = (
    "latent_loss",
    "latent_weight",
    "context_weight",
    "trajectory_weight",
    "trajectory_units",
    "normalise_targets",
    "latent_pool",
)
"""Settings that change what a loss of the same forecasts is."""


def rank(
    groups: Sequence[RunGroup], test_scores: Mapping[str, Mapping[str, Any]], *, sort_by: str | None
) -> dict[str, Any]:
    """The groups, best first, with their settings that differ and their validation figures.

    `test_scores` are the figures of each group's model by metric; `sort_by` one of those or of
    VALIDATION_METRICS, None for the joints' distance on validation clips, or their latents' error where not
    all runs predict joints. Raises StageError where a figure is missing, or does not mean the same for all.
    """
    runs = [run for group in groups for run in group.runs]
    chosen = sort_by or _usual(runs)
    if chosen in VALIDATION_METRICS:
        _check_comparable(runs, chosen)
    values = {group.name: _value(group, chosen, test_scores[group.name]) for group in groups}
    sign = -1 if chosen in METRICS and METRICS[chosen].better_when_larger else 1
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
                "validation": _of_validation(group),
                "validation_seed_std": _seed_spread(group),
            }
            for group in sorted(groups, key=lambda group: sign * values[group.name])
        ],
    }


def _usual(runs: Sequence[EvaluatedRun]) -> str:
    has_joints = all(VALIDATION_DISTANCE in run.validation for run in runs)
    return VALIDATION_DISTANCE if has_joints else VALIDATION_LATENT


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


def _value(group: RunGroup, metric: str, test_scores: Mapping[str, Any]) -> float:
    if metric in VALIDATION_METRICS:
        return float(_of_validation(group)[metric])
    if metric not in test_scores:
        known = ", ".join((*VALIDATION_METRICS, *test_scores))
        raise StageError(f"cannot sort by {metric!r}: {group.name} has {known}")
    return float(test_scores[metric]["mean"])


def _of_validation(group: RunGroup) -> dict[str, float]:
    """Means over seeds."""
    return {name: float(np.mean(values)) for name, values in _by_seed(group).items()}


def _seed_spread(group: RunGroup) -> dict[str, float]:
    if len(group.runs) < 2:
        return {}
    return {name: float(np.std(values, ddof=1)) for name, values in _by_seed(group).items()}


def _by_seed(group: RunGroup) -> dict[str, list[float]]:
    return {
        name: [float(run.validation[name]) for run in group.runs]
        for name in VALIDATION_METRICS
        if all(run.validation.get(name) is not None for run in group.runs)
    }
