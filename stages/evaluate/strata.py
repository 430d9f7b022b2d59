"""Strata of clips by the length of their history: what the thinker saw before the observed window.

Where a clip has no more history than the observed window, guidance can tell nothing of what was before.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thinkjepa.cache import ClipRow
from thinkjepa.stages.data.history import SAME_S, earlier_s
from thinkjepa.stages.evaluate.scores import Floats, Parts

MOST_BINS = 3
"""Of clips with a history beyond the observed window, of about equal numbers of clips."""


@dataclass(frozen=True, slots=True)
class Stratum:
    """Some of the clips. The ends of their histories are seconds beyond the observed window."""

    from_s: float
    to_s: float
    chosen_C: npt.NDArray[np.bool_]

    @property
    def label(self) -> str:
        if self.to_s == 0:
            return "none"
        same = f"{self.from_s:.2f}" == f"{self.to_s:.2f}"
        return f"{self.to_s:.2f} s" if same else f"{self.from_s:.2f} to {self.to_s:.2f} s"

    def of(self, parts: Parts) -> list[Floats]:
        """The scores `(seed, clip)` of these clips, NaN elsewhere."""
        return [np.where(self.chosen_C, part, np.nan) for part in parts]

    def to_json(self) -> dict[str, Any]:
        return {
            "history": self.label,
            "from_s": self.from_s,
            "to_s": self.to_s,
            "num_clips": int(self.chosen_C.sum()),
        }


def beyond_window_s(clip: ClipRow) -> float:
    """Seconds of history before the observed window; 0 where they are less than one of its steps."""
    times_s = clip.observed_times_s
    step_s = (times_s[-1] - times_s[0]) / (len(times_s) - 1)
    found_s = earlier_s(clip)
    return found_s if found_s >= step_s - SAME_S else 0.0


def strata_of(beyond_s: Floats) -> list[Stratum]:
    """Strata by `beyond_window_s` of each clip: those with none, and quantiles of the others.

    Clips of equal histories stay together. Empty where there would be one stratum only.
    """
    none_C = beyond_s == 0
    edges_s = np.quantile(beyond_s[~none_C], np.linspace(0, 1, MOST_BINS + 1)[1:]) if not none_C.all() else []
    bins: list[npt.NDArray[np.bool_]] = [none_C]
    below_s = 0.0
    for edge_s in edges_s:
        bins.append((beyond_s > below_s) & (beyond_s <= edge_s + SAME_S))
        below_s = float(edge_s) + SAME_S
    found = [
        Stratum(float(beyond_s[chosen_C].min()), float(beyond_s[chosen_C].max()), chosen_C)
        for chosen_C in bins
        if chosen_C.any()
    ]
    return found if len(found) > 1 else []
