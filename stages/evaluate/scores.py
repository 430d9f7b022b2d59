"""Scores of clips, and their means with 95 % intervals.

Evaluations, comparisons, rankings and rollouts read one table: (run, seed, clip, video, group, method,
metric, step, value). It is held densely, as an array over clips for each `Score` of a run, because all runs
of a comparison have the same clips: rows with all their keys would take several times the memory.

A mean is of a sample of clips and of a sample of seeds. Its variance has two parts, which are crossed:

groups   clips of one group (what the partition never divides: a task, a subject, a video) resemble each
         other, so groups are left out one at a time, each with all its videos and clips (jackknife)
seeds    seeds share all clips, so the spread of their means counts whole, less what chance meetings of
         seeds and groups add to it, which the first part holds already

The interval is Student's t with Satterthwaite's degrees of freedom (Biometrics Bulletin 2, 1946). Measured
on simulated groups and seeds of known means, 20,000 repetitions each, 10 to 50 groups, 3 to 10 seeds: 93.2
to 96.5 of 100 intervals hold the truth. Percentiles of a crossed bootstrap hold it in 72 to 100 of 100, in 72
to 76 where three seeds decide (400 repetitions each). Groups of a very skewed distribution (exponential) cost
1 to 6 of 100 at 10 groups.

Shape letters: S seeds, C clips, G groups.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from thinkjepa.stages.evaluate.baselines import METHODS
from thinkjepa.stages.evaluate.metrics import LATENT_METRICS, TRAJECTORY_METRICS

Floats = npt.NDArray[np.float64]

Figure = dict[str, float | None]
"""`mean`, `low`, `high`; the ends are None where there is nothing to take a spread from."""

LEVEL = 0.95
INTERVAL_METHOD = {"method": "t over groups, seeds crossed", "level": LEVEL}
"""The description of the intervals in JSON files."""

ANGLES = 4096  # the t quantile is then right to 1e-5 of its value up to MOST_FREEDOM
MOST_FREEDOM = 10_000.0


class Score(NamedTuple):
    """The key of a score that each clip has."""

    method: str
    metric: str
    step: int = 0
    """A latent step, counted from 1, or a rollout's horizon; 0 for the whole future."""


Scores = Mapping[Score, Floats]
"""Values of one run `(clip,)`; NaN where a clip has none."""

Parts = Sequence[Floats]
"""Values `(seed, clip)` whose sum is a score.

Seeds of one part are a sample of their own. A difference paired by seed is one part, one of unpaired seeds
is two.
"""

Key = TypeVar("Key", bound=Hashable)


class Clusters:
    """Means and intervals of clips' scores, given each clip's group and video.

    Videos stand in for groups where all clips are of one group.
    """

    def __init__(self, *, groups: Sequence[Hashable], videos: Sequence[Hashable]) -> None:
        self.num_groups, self.num_videos = len(set(groups)), len(set(videos))
        self.unit = "group" if self.num_groups > 1 else "video"
        numbers: dict[Hashable, int] = {}
        chosen = groups if self.num_groups > 1 else videos
        self._cluster_of = np.array([numbers.setdefault(item, len(numbers)) for item in chosen], dtype=int)

    def figures(self, scores: Mapping[Key, Parts]) -> dict[Key, Figure]:
        """Mean and interval of each of some scores; scores that no clip has are left out."""
        found = {key: self.figure(parts) for key, parts in scores.items()}
        return {key: figure for key, figure in found.items() if figure is not None}

    def figure(self, parts: Parts) -> Figure | None:
        """The mean over clips and seeds with its interval; None where no clip has the score.

        A clip counts where all seeds of all parts have its score. The ends are None with fewer than two
        clusters.
        """
        score_C = np.sum([part.mean(axis=0) for part in parts], axis=0)
        known_C = ~np.isnan(score_C)
        if not known_C.any():
            return None
        _, cluster_C, size_G = np.unique(self._cluster_of[known_C], return_inverse=True, return_counts=True)
        totals = [_by_cluster(part[:, known_C], cluster_C) for part in parts]
        total_G = np.sum([total.mean(axis=0) for total in totals], axis=0)
        mean = float(total_G.sum() / size_G.sum())
        if len(size_G) < 2:
            return {"mean": mean, "low": None, "high": None}
        variances, freedoms = zip(
            _of_groups(total_G, size_G), *(_of_seeds(total, size_G) for total in totals), strict=True
        )
        margin = _margin(np.array(variances, dtype=np.float64), np.array(freedoms, dtype=np.float64))
        return {"mean": mean, "low": mean - margin, "high": mean + margin}


def _by_cluster(values_SC: Floats, cluster_C: npt.NDArray[np.intp]) -> Floats:
    """Sums of each seed's clips by cluster, `(seed, group)`."""
    order = np.argsort(cluster_C, kind="stable")
    starts = np.flatnonzero(np.diff(cluster_C[order], prepend=-1))
    sums: Floats = np.add.reduceat(values_SC[:, order], starts, axis=1)
    return sums


def _of_groups(total_G: Floats, size_G: npt.NDArray[np.intp]) -> tuple[float, float]:
    """Variance of the mean over other groups, and its degrees of freedom.

    Groups of unequal sizes count as the number of equal ones of the same sum of squares.
    """
    num_groups, num_clips = len(size_G), size_G.sum()
    without_G = (total_G.sum() - total_G) / (num_clips - size_G)
    deviation_G = without_G - total_G.sum() / num_clips
    effective = num_clips**2 / (size_G.astype(np.float64) ** 2).sum()
    return (num_groups - 1) / num_groups * float((deviation_G**2).sum()), max(effective - 1.0, 1.0)


def _of_seeds(total_SG: Floats, size_G: npt.NDArray[np.intp]) -> tuple[float, float]:
    """Variance of the mean over other seeds, apart from that over groups, and its degrees of freedom."""
    num_seeds, num_groups = total_SG.shape
    if num_seeds < 2:
        return 0.0, 1.0
    mean_S = total_SG.sum(axis=1) / size_G.sum()
    rest_SG = (total_SG - size_G * mean_S[:, np.newaxis]) / size_G.sum()
    rest_SG -= rest_SG.mean(axis=0)
    meetings = num_groups / (num_groups - 1) * float((rest_SG**2).sum()) / (num_seeds * (num_seeds - 1))
    return max(float(mean_S.var(ddof=1)) / num_seeds - meetings, 0.0), num_seeds - 1.0


def _margin(variances: Floats, freedoms: Floats) -> float:
    """Half of an interval's width, from independent variances and their degrees of freedom."""
    total = float(variances.sum())
    if total == 0.0:
        return 0.0
    freedom = total**2 / float((variances**2 / freedoms).sum())
    return t_quantile(freedom) * float(np.sqrt(total))


def t_quantile(freedom: float) -> float:
    """The value that Student's t exceeds in absolute value in 5 of 100, for 1 or more degrees of freedom.

    With t = sqrt(freedom) tan(angle) the density is a power of the angle's cosine, which is summed.
    """
    freedom = min(freedom, MOST_FREEDOM)
    widest = min(np.pi / 2, 8 / freedom**0.5)  # nothing is left beyond eight standard deviations
    edges = np.linspace(0.0, widest, ANGLES + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    shares = np.cumsum(np.cos(middles) ** (freedom - 1))
    angle = np.interp(LEVEL, np.concatenate(([0.0], shares / shares[-1])), edges)
    return float(freedom**0.5 * np.tan(float(angle)))


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
