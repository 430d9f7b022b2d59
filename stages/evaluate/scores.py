"""Scores of clips, and their means with 95 % intervals.

Evaluations, comparisons, rankings and rollouts read one table: (run, seed, clip, video, group, method,
metric, step, value). It is held densely, as an array over clips for each `Score` of a run, because all runs
of a comparison have the same clips: rows with all their keys would take several times the memory.

Intervals come from drawing videos, each with all its clips: clips of one video resemble each other, so
drawing clips would promise more certainty than there is. They are percentiles of the means of 2,000 draws.
The draws are fixed, so that equal scores give equal intervals, and differences are paired.

Shape letters: C clips, V videos, M metrics, R draws.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from thinkjepa.stages.evaluate.baselines import METHODS
from thinkjepa.stages.evaluate.metrics import LATENT_METRICS, TRAJECTORY_METRICS

Floats = npt.NDArray[np.float64]

Figure = dict[str, float | None]
"""`mean`, `low`, `high`; the ends are None with fewer than two videos."""

LEVEL = 0.95
NUM_DRAWS = 2_000
INTERVAL_METHOD = {"method": "percentile bootstrap over videos", "level": LEVEL, "draws": NUM_DRAWS}
"""The description of the intervals in JSON files."""

SEED = 0
DRAWS_AT_ONCE = 100  # bounds memory: 100 x 10,000 videos x 8 B = 8 MB


class Score(NamedTuple):
    """The key of a score that each clip has."""

    method: str
    metric: str
    step: int = 0
    """A latent step, counted from 1, or a rollout's horizon; 0 for the whole future."""


Scores = Mapping[Score, Floats]
"""Values of one run `(clip,)`; NaN where a clip has none."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Intervals:
    """Means of some scores and the ends of their intervals, `(metric,)`; NaN where unknown."""

    mean: Floats
    low: Floats
    high: Floats


class VideoBootstrap:
    """Intervals for scores of clips, given each clip's video."""

    def __init__(self, videos: Sequence[Hashable], *, num_draws: int = NUM_DRAWS, seed: int = SEED) -> None:
        numbers: dict[Hashable, int] = {}
        self._video_of = np.array([numbers.setdefault(video, len(numbers)) for video in videos], dtype=int)
        self.num_videos = len(numbers)
        generator = np.random.default_rng(seed)
        equal = np.full(self.num_videos, 1 / self.num_videos)
        sizes = [min(DRAWS_AT_ONCE, num_draws - start) for start in range(0, num_draws, DRAWS_AT_ONCE)]
        draws = [generator.multinomial(self.num_videos, equal, size).astype(np.uint16) for size in sizes]
        self._draws_of_videos = draws  # (draw, video): how often each video was drawn

    def intervals(self, scores_CM: Floats) -> Intervals:
        """Intervals of the mean of each column; a clip's NaN is left out.

        With fewer than two videos the ends are NaN.
        """
        known_CM = ~np.isnan(scores_CM)
        total_VM = self._by_video(np.where(known_CM, scores_CM, 0.0))
        count_VM = self._by_video(known_CM.astype(np.float64))
        with np.errstate(invalid="ignore"):
            mean = total_VM.sum(axis=0) / count_VM.sum(axis=0)
        if self.num_videos < 2:
            return Intervals(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan))
        low, high = _percentiles(self._means(total_VM, count_VM))
        return Intervals(mean, low, high)

    def figures(self, scores: Mapping[Key, Floats]) -> dict[Key, Figure]:
        """Mean and interval of each of some scores `(clip,)`; scores that no clip has are left out."""
        known = {key: values for key, values in scores.items() if not np.isnan(values).all()}
        if not known:
            return {}
        found = self.intervals(np.stack(list(known.values()), axis=1))
        return {
            key: {"mean": _number(mean), "low": _number(low), "high": _number(high)}
            for key, mean, low, high in zip(known, found.mean, found.low, found.high, strict=True)
        }

    def _by_video(self, values_CM: Floats) -> Floats:
        sums_VM = np.zeros((self.num_videos, values_CM.shape[1]))
        np.add.at(sums_VM, self._video_of, values_CM)
        return sums_VM

    def _means(self, total_VM: Floats, count_VM: Floats) -> Floats:
        """The mean of each draw, `(draw, metric)`."""
        parts = []
        for counts_RV in self._draws_of_videos:
            draws_RV = counts_RV.astype(np.float64)
            with np.errstate(invalid="ignore"):
                parts.append((draws_RV @ total_VM) / (draws_RV @ count_VM))
        return np.concatenate(parts)


def figures_by_kind(
    scores: Scores, step: int, bootstrap: VideoBootstrap
) -> dict[str, dict[str, dict[str, Figure]]]:
    """Figures of all scores of one step: by kind, `latent` or `trajectory`, then method, then metric."""
    kinds: dict[str, dict[str, Any]] = {}
    for kind, metrics in (("latent", LATENT_METRICS), ("trajectory", TRAJECTORY_METRICS)):
        found = {
            method: bootstrap.figures(
                {
                    metric: scores[score]
                    for metric in metrics
                    if (score := Score(method, metric, step)) in scores
                }
            )
            for method in METHODS
        }
        kinds[kind] = {method: figures for method, figures in found.items() if figures}
    return kinds


def _percentiles(means_RM: Floats) -> tuple[Floats, Floats]:
    """Ends of the intervals; draws that hit no clip with a score are left out."""
    ends = np.full((2, means_RM.shape[1]), np.nan)
    tail = 50 * (1 - LEVEL)
    for metric, means_R in enumerate(means_RM.T):
        known = means_R[~np.isnan(means_R)]
        if len(known):
            ends[:, metric] = np.percentile(known, (tail, 100 - tail))
    return ends[0], ends[1]


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(value) else float(value)
