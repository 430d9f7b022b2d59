"""Strata of clips: by the length of their history, and by whether training has seen their task.

The history is what the thinker saw before the observed window. Where a clip has no more than that window,
guidance can tell nothing of what was before. A video's task is the name of its folder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from thinkjepa.cache import ClipRow
from thinkjepa.stages.data.groups import task_of
from thinkjepa.stages.data.history import SAME_S, earlier_s
from thinkjepa.stages.intervals import Floats, Parts
from thinkjepa.stages.train.data.features import Features

MOST_BINS = 3
"""Of clips with a history beyond the observed window, of about equal numbers of clips."""


@dataclass(frozen=True, slots=True)
class Stratum:
    """Some of the clips, and what they have in common."""

    kind: Literal["history", "task"]
    label: str
    chosen_C: npt.NDArray[np.bool_]
    ends_s: Mapping[str, float] = field(default_factory=dict)
    """Of a history, seconds beyond the observed window: `from_s` and `to_s`."""

    def of(self, parts: Parts) -> list[Floats]:
        """The scores `(seed, clip)` of these clips, NaN elsewhere."""
        return [np.where(self.chosen_C, part, np.nan) for part in parts]

    def to_json(self) -> dict[str, Any]:
        return {self.kind: self.label, **self.ends_s, "num_clips": int(self.chosen_C.sum())}


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
    found = [_by_history(beyond_s, chosen_C) for chosen_C in bins if chosen_C.any()]
    return found if len(found) > 1 else []


def _by_history(beyond_s: Floats, chosen_C: npt.NDArray[np.bool_]) -> Stratum:
    from_s, to_s = float(beyond_s[chosen_C].min()), float(beyond_s[chosen_C].max())
    ends = [f"{from_s:.2f}", f"{to_s:.2f}"]
    label = f"{' to '.join(dict.fromkeys(ends))} s" if to_s else "none"
    return Stratum("history", label, chosen_C, {"from_s": from_s, "to_s": to_s})


def training_tasks(features: Features, train_ids: Sequence[str]) -> frozenset[str] | None:
    """The tasks of a run's training clips. None where the cache lacks one of the clips."""
    clips = features.clips.only(train_ids)
    if len(clips) < len(set(train_ids)):
        return None
    return frozenset(task_of(video) for video in set(clips.values("video"))) - {""}


def task_seen(clips: Sequence[ClipRow], tasks: frozenset[str] | None) -> Floats:
    """1 for clips of a task that training has seen, 0 for others, NaN where that is not known."""
    named = [task_of(clip.video) for clip in clips]
    return np.array([float(task in tasks) if task and tasks is not None else np.nan for task in named])


def task_strata(seen_C: Floats) -> list[Stratum]:
    """Strata by `task_seen` of each clip. Empty where there would be one stratum only."""
    found = [
        Stratum("task", label, seen_C == value)
        for label, value in (("seen in training", 1), ("unseen", 0))
        if (seen_C == value).any()
    ]
    return found if len(found) > 1 else []
