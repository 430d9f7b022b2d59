"""Permutations of clips for shuffled guidance: each clip is given the thinker's states of another one.

Partners have as much history as the clip: with another moment of another video, a loss would come from the
moment as well as from the clip.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import attrgetter

from thinkjepa.cache import ClipRow
from thinkjepa.stages.data.history import SAME_S, earlier_s
from thinkjepa.stages.train.data.sources import derangement

CLIP_ID = attrgetter("clip_id")

PERMUTATIONS = 4
"""Scores of shuffled guidance are means over so many, as any single one is a matter of luck."""

FEWEST_CLIPS = 8
"""Of a bin: fewer would meet the same partners in every permutation."""

Partners = Mapping[str, str]
"""The clip id whose states a clip is given, by the clip's own."""


def permutations_of(clips: Sequence[ClipRow]) -> list[Partners]:
    """Different permutations, whatever the order of `clips`; none of a single clip.

    No clip keeps its own states. None has those of its own video, unless one video has more than half of the
    clips of a bin.
    """
    if len(clips) < 2:
        return []
    bins = bins_by_history(clips)
    return [
        {
            clip_id: other
            for some in bins
            for clip_id, other in derangement(map(CLIP_ID, some), seed=draw).items()
        }
        for draw in range(PERMUTATIONS)
    ]


def bins_by_history(clips: Sequence[ClipRow]) -> list[list[ClipRow]]:
    """Clips of as nearly equal histories as FEWEST_CLIPS of enough videos allow, the shortest first.

    Clips of equal histories share a bin. What is left at the end joins the last one.
    """

    def history(clip: ClipRow) -> int:
        return round(earlier_s(clip) / SAME_S)

    bins: list[list[ClipRow]] = [[]]
    for _, equal in groupby(sorted(clips, key=lambda clip: (history(clip), clip.clip_id)), key=history):
        if _is_enough(bins[-1]):
            bins.append([])
        bins[-1] += equal
    if len(bins) > 1 and not _is_enough(bins[-1]):
        rest = bins.pop()
        bins[-1] += rest
    return bins


def _is_enough(clips: Sequence[ClipRow]) -> bool:
    return len(clips) >= FEWEST_CLIPS and 2 * _most_clips(clips) <= len(clips)


def _most_clips(clips: Sequence[ClipRow]) -> int:
    """The number of clips of the video that has most."""
    return max(Counter(clip.video_digest for clip in clips).values())
