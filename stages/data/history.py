"""Length of a video's past at a clip's split: the large stride has something to add, or not.

At the first split of a video the history is the observed window. The thinker's frames then span no more time
than the encoder's, and guidance can tell nothing of what was before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from thinkjepa.cache import ClipRow

if TYPE_CHECKING:
    from thinkjepa.cache import ClipSelection

Times = npt.NDArray[np.float64]
"""Times in seconds, of each clip or of each clip's frames `(clip, frame)`."""

SAME_S = 1e-3
"""Containers such as Matroska store whole milliseconds."""


def history_s(clip: ClipRow) -> float:
    """Seconds from the first frame that the thinker is given to the last observed one."""
    return clip.observed_times_s[-1] - clip.thinker_times_s[0]


def earlier_s(clip: ClipRow) -> float:
    """Seconds of the history before the observed window begins."""
    return clip.observed_times_s[0] - clip.thinker_times_s[0]


@dataclass(frozen=True, slots=True)
class Histories:
    """Count of clips whose history reaches back no further than their observed window."""

    clips: int = 0
    """Whose thinker frames begin less than a dense step before the observed window."""
    of_clips: int = 0
    observed_s: float = 0.0
    """Seconds of the longest observed window."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def planned_histories(clips: Sequence[ClipRow]) -> Histories:
    """The histories of planned clips, all of the same settings."""
    begins_s = [clip.thinker_times_s[0] for clip in clips]
    return _histories(np.array(begins_s), np.array([clip.observed_times_s for clip in clips]))


def stored_histories(clips: ClipSelection) -> Histories:
    """The histories of clips in a cache, all of one way to choose dense frames."""
    return _histories(clips.first_times_s("thinker_times_s"), clips.times_s("observed_times_s"))


def _histories(begins_s: Times, observed_s: Times) -> Histories:
    if not len(observed_s):
        return Histories()
    spans_s = observed_s[:, -1] - observed_s[:, 0]
    step_s = spans_s / (observed_s.shape[1] - 1)
    short = observed_s[:, 0] - begins_s < step_s - SAME_S
    return Histories(int(short.sum()), len(observed_s), float(spans_s.max()))


def describe_histories(histories: Histories) -> str:
    """One line with the remedy. Empty where every clip has more history than its observed window."""
    if not histories.clips:
        return ""
    if histories.clips == histories.of_clips:
        return (
            "no clip has a history beyond the observed window: the thinker sees no more time than the encoder"
        )
    share = histories.clips / histories.of_clips
    have = "has" if histories.clips == 1 else "have"
    return (
        f"{histories.clips} of {histories.of_clips} clips ({share:.0%}) {have} no history beyond the "
        f"observed window, so the thinker sees no more time there than the encoder; --min-history-s above "
        f"{histories.observed_s:.2f} cuts later clips"
    )
