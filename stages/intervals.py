"""Means of clips' values with 95 % intervals, for other groups of videos and other seeds.

A mean is of a sample of clips and of a sample of seeds. Its variance has two parts, which are crossed:

groups   clips of one group (what the partition never divides: a task, a subject, a video) resemble each
         other, so groups are left out one at a time, each with all its videos and clips (jackknife)
seeds    seeds share all clips, so the spread of their means counts whole, less what chance meetings of
         seeds and groups add to it, which the first part holds already

Each part reaches as far as its own Student's t, and the reaches add as squares do (Banerjee, Sankhya 22,
1960). Satterthwaite's common degrees of freedom come too high by chance where few seeds differ by little: the
interval is then narrow just where it should not be. It reaches further to the side of the longer tail of
groups, by Hall's transformation (Journal of the Royal Statistical Society B 54, 1992, equation 2.4).
`docs/evaluation.md` has the coverage that was measured.

Shape letters: S seeds, C clips, G groups.
"""

from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

Figure = dict[str, float | None]
"""`mean`, `low`, `high`; the ends are None where there is nothing to take a spread from."""

LEVEL = 0.95
INTERVAL_METHOD = {"method": "t over groups, seeds crossed, skewness corrected", "level": LEVEL}
"""The description of the intervals in JSON files."""

ANGLES = 4096  # the t quantile is then right to 1e-5 of its value up to MOST_FREEDOM
MOST_FREEDOM = 10_000.0
LEAST_SKEWNESS = 1e-6
"""Below it Hall's transformation is the identity, to the accuracy of its arithmetic."""

Parts = Sequence[Floats]
"""Values `(seed, clip)` whose sum is a score.

Seeds of one part are a sample of their own. A difference paired by seed is one part, one of unpaired seeds
is two.
"""

Key = TypeVar("Key", bound=Hashable)


class Spread(NamedTuple):
    """One of the independent parts of a mean's spread."""

    variance: float
    freedom: float
    """Degrees of freedom of the variance."""
    third_moment: float = 0.0
    """Third central moment of the mean over this part."""


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
        below, above = _margins(
            [_of_groups(total_G, size_G), *(_of_seeds(total, size_G) for total in totals)]
        )
        return {"mean": mean, "low": mean - below, "high": mean + above}


def _by_cluster(values_SC: Floats, cluster_C: npt.NDArray[np.intp]) -> Floats:
    """Sums of each seed's clips by cluster, `(seed, group)`."""
    order = np.argsort(cluster_C, kind="stable")
    starts = np.flatnonzero(np.diff(cluster_C[order], prepend=-1))
    sums: Floats = np.add.reduceat(values_SC[:, order], starts, axis=1)
    return sums


def _of_groups(total_G: Floats, size_G: npt.NDArray[np.intp]) -> Spread:
    """Spread of the mean over other groups.

    Groups of unequal sizes count as the number of equal ones of the same sum of squares. Their skewness is
    taken over clips: cubes of what each group adds to the mean would be those of the largest groups alone.
    """
    num_groups, mean = len(size_G), total_G.sum() / size_G.sum()
    without_G = (total_G.sum() - total_G) / (size_G.sum() - size_G)
    variance = (num_groups - 1) / num_groups * float(((without_G - mean) ** 2).sum())
    share_G, apart_G = size_G / size_G.sum(), total_G / size_G - mean
    squares, cubes = (float((share_G**power).sum()) for power in (2, 3))
    if (square := float(share_G @ apart_G**2)) > 0.0:
        skewness = float(share_G @ apart_G**3) / square**1.5 * cubes / squares**1.5
    else:
        skewness = 0.0
    return Spread(variance, max(1 / squares - 1.0, 1.0), third_moment=skewness * variance**1.5)


def _of_seeds(total_SG: Floats, size_G: npt.NDArray[np.intp]) -> Spread:
    """Spread of the mean over other seeds, apart from that over groups. Too few to tell its skewness."""
    num_seeds, num_groups = total_SG.shape
    if num_seeds < 2:
        return Spread(variance=0.0, freedom=1.0)
    mean_S = total_SG.sum(axis=1) / size_G.sum()
    rest_SG = (total_SG - size_G * mean_S[:, np.newaxis]) / size_G.sum()
    rest_SG -= rest_SG.mean(axis=0)
    meetings = num_groups / (num_groups - 1) * float((rest_SG**2).sum()) / (num_seeds * (num_seeds - 1))
    return Spread(max(float(mean_S.var(ddof=1)) / num_seeds - meetings, 0.0), num_seeds - 1.0)


def _margins(parts: Sequence[Spread]) -> tuple[float, float]:
    """Reach of an interval below and above the mean, whose spread has these independent parts."""
    total = sum(part.variance for part in parts)
    if total == 0.0:
        return 0.0, 0.0
    reach = sum(t_quantile(part.freedom) ** 2 * part.variance for part in parts if part.variance)
    quantile, error = float(np.sqrt(reach / total)), float(np.sqrt(total))
    skewness = sum(part.third_moment for part in parts) / total**1.5
    return error * skewed_quantile(quantile, skewness), -error * skewed_quantile(-quantile, skewness)


def skewed_quantile(quantile: float, skewness: float) -> float:
    """A quantile of the studentized mean, from that of Student's t and the skewness of the mean.

    It inverts Hall's cubic, which takes the skewness out of a studentized mean and is monotone.
    """
    if abs(skewness) < LEAST_SKEWNESS:
        return quantile
    return float(3 / skewness * (np.cbrt(1 + skewness * (quantile - skewness / 6)) - 1))


@lru_cache(maxsize=4096)  # one computation for all metrics of the same clips
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
