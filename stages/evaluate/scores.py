"""Scores of clips by method, metric and step, and the figures of them.

Evaluations, comparisons, rankings and rollouts read one table: (run, seed, clip, video, group, method,
metric, step, value). It is held densely, as an array over clips for each `Score` of a run, because all runs
of a comparison have the same clips: rows with all their keys would take several times the memory.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from thinkjepa.stages.evaluate.baselines import METHODS
from thinkjepa.stages.evaluate.metrics import LATENT_METRICS, TRAJECTORY_METRICS
from thinkjepa.stages.intervals import Clusters, Figure, Floats


class Score(NamedTuple):
    """The key of a score that each clip has."""

    method: str
    metric: str
    step: int = 0
    """A latent step, counted from 1, or a rollout's horizon; 0 for the whole future."""


Scores = Mapping[Score, Floats]
"""Values of one run `(clip,)`; NaN where a clip has none."""


def figures_by_kind(scores: Scores, step: int, clusters: Clusters) -> dict[str, dict[str, dict[str, Figure]]]:
    """Figures of all scores of one step: by kind, `latent` or `trajectory`, then method, then metric."""
    kinds: dict[str, dict[str, Any]] = {}
    for kind, metrics in (("latent", LATENT_METRICS), ("trajectory", TRAJECTORY_METRICS)):
        found = {
            method: clusters.figures(
                {
                    metric: [scores[score][np.newaxis]]
                    for metric in metrics
                    if (score := Score(method, metric, step)) in scores
                }
            )
            for method in METHODS
        }
        kinds[kind] = {method: figures for method, figures in found.items() if figures}
    return kinds
