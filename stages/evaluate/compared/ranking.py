"""The order of compared groups: by a figure of the validation clips, unless another one is asked for.

Readers take the first row of a ranking. So a ranking names the clips that its order comes from.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.compared.groups import (
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
    "next_step_weight",
    "trajectory_weight",
    "trajectory_units",
    "normalise_targets",
    "latent_pool",
    "latent_target",
    "whiten_latents",
)
"""Settings that change the loss of the same predictions."""


def ranking_of(
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
