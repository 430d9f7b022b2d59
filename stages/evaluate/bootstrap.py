"""95 % intervals of means over clips, by drawing videos again and again.

Clips of one video resemble each other, so whole videos are drawn, with all their clips: drawing clips would
promise more certainty than there is. Percentile method; the draws are fixed, so equal scores give equal
intervals, and differences are paired.

Shape letters: C clips, V videos, M metrics, R draws.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LEVEL = 0.95
NUM_DRAWS = 2_000
SEED = 0
DRAWS_AT_ONCE = 100  # bounds memory: 100 x 10,000 videos x 8 B = 8 MB


@dataclass(frozen=True, slots=True)
class Intervals:
    """Means of some metrics and the ends of their intervals, `(metric,)`; NaN where nothing is known."""

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
        """Intervals of the mean of each column; a NaN is a clip without that score.

        With fewer than two videos nothing is known about the spread: the ends are NaN.
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


def _percentiles(means_RM: Floats) -> tuple[Floats, Floats]:
    """Ends of the intervals; draws that hit no clip with a score tell nothing and are left out."""
    ends = np.full((2, means_RM.shape[1]), np.nan)
    tail = 50 * (1 - LEVEL)
    for metric, means_R in enumerate(means_RM.T):
        known = means_R[~np.isnan(means_R)]
        if len(known):
            ends[:, metric] = np.percentile(known, (tail, 100 - tail))
    return ends[0], ends[1]
