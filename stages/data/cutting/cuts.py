"""Clips of one video: a split each, and the segment that none of its frames leaves.

The frames of a segment are chosen as if it were all of the video, so that every rule of time holds inside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from thinkjepa.stages.data.cutting.reading import ClipRequest
from thinkjepa.stages.data.sampling import TOLERANCE_S, Times, has_future
from thinkjepa.stages.errors import StageError

LATE_S = 1.0
"""A video's duration lies up to a frame after its last frame's time: no video has fewer than one a second."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A clip's place in its video, in frames: the segment `[first, stop)`, and a split inside it."""

    split: int
    first: int
    stop: int
    group: str = ""
    partition: str = ""
    where: str = ""
    """File and row that ask for it; empty for a cut by the rule."""

    def own(self, times_s: Times) -> Times:
        """Times of the segment's frames."""
        return times_s[self.first : self.stop]


def requested_cuts(times_s: Times, requests: Iterable[ClipRequest]) -> list[Cut]:
    """A cut for each row, in the order of splits.

    Raises StageError for a split or a segment outside the video, and for two rows of one clip.
    """
    cuts: dict[tuple[int, int], Cut] = {}
    for request in requests:
        cut = place(times_s, request)
        if twin := cuts.get((cut.split, cut.first)):
            raise StageError(
                f"{cut.where}: the same clip as {twin.where}, split frame {cut.split} of a video of the same "
                "content: keep one of the rows"
            )
        cuts[cut.split, cut.first] = cut
    return [cuts[key] for key in sorted(cuts)]


def place(times_s: Times, request: ClipRequest) -> Cut:
    """The frames that a row means. Raises StageError where they are not in the video."""
    where, last_s = request.where, float(times_s[-1])
    first, stop = 0, len(times_s)
    if request.start_s is not None:
        first = _frame_at(times_s, request.start_s)
    if request.end_s is not None:
        stop = _frame_at(times_s, request.end_s)
        if request.end_s > last_s + LATE_S:
            raise StageError(
                f"{where}: end_s {request.end_s:g} is after the video, which ends at {last_s:.2f} s"
            )
    split, asked = request.split_frame, f"split_frame {request.split_frame}"
    if split is None:
        assert request.split_s is not None, "a row has one of the two"
        split, asked = _frame_at(times_s, request.split_s), f"split_s {request.split_s:g}"
    if not 0 < split < len(times_s):
        raise StageError(
            f"{where}: {asked} is outside the video, which has {len(times_s)} frames, the last at "
            f"{last_s:.2f} s: give one after the first and up to the last"
        )
    if not first < split < stop:
        ends = f"{request.end_s:g}" if request.end_s is not None else f"{last_s:.2f}"
        raise StageError(
            f"{where}: {asked} is outside the segment, which goes from {request.start_s or 0:g} s to {ends} s"
        )
    return Cut(split, first, stop, request.group, request.partition, where)


def _frame_at(times_s: Times, wanted_s: float) -> int:
    """The first frame at a time or after it, up to the rounding of containers; `len(times_s)` if none is."""
    return int(np.searchsorted(times_s, wanted_s - TOLERANCE_S))


def lacking(
    times_s: Times, cut: Cut, *, history_s: float, num_future: int, num_windows: int, fps: float
) -> str:
    """The window that a clip's segment has no room for, in words; empty where it has room for all."""
    own, split = cut.own(times_s), cut.split - cut.first
    past_s = float(own[split - 1] - own[0])
    if past_s < history_s - TOLERANCE_S:
        return f"{past_s:.2f} s from the segment's begin to the last observed frame, of {history_s:.2f} s"
    if not has_future(own, split, num_windows=num_windows, num_frames=num_future, fps=fps):
        span_s = (num_windows * num_future - 1) / fps
        return f"{own[-1] - own[split]:.2f} s from the split to the segment's end, of {span_s:.2f} s or more"
    return ""


def whole_video(times_s: Times, splits: Sequence[int]) -> list[Cut]:
    """Cuts whose segment is all of the video."""
    return [Cut(split, 0, len(times_s)) for split in splits]
