"""Clips of one video on two sides of a partition that share frames: what is tested was seen in training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thinkjepa.cache import ClipSelection

Span = tuple[str, int, int, str]
"""Video, first and last frame, and split name of a clip."""


def overlap_warning(clips: ClipSelection, names: Sequence[str]) -> str:
    """One line with the number of such videos and the first one; empty where there are none.

    A clip goes from the first frame of its history to the last one of its future.
    """
    videos, histories, futures = (clips.values(name) for name in ("video", "thinker_frames", "future_frames"))
    spans = [
        (video, history[0], future[-1][-1], name)
        for video, history, future, name in zip(videos, histories, futures, names, strict=True)
    ]
    found = shared_videos(spans)
    if not found:
        return ""
    are = "1 video has" if len(found) == 1 else f"{len(found)} videos have"
    return (
        f"warning: {are} clips of two splits that share frames, the first is {found[0]!r}: what is tested "
        "there is not new to the run; start_s and end_s of the table keep clips apart"
    )


def shared_videos(spans: Iterable[Span]) -> list[str]:
    """Videos with a frame in clips of two split names, sorted."""
    reached: dict[str, dict[str, int]] = {}
    found = set()
    for video, first, last, name in sorted(spans):
        ends = reached.setdefault(video, {})
        if any(end >= first for other, end in ends.items() if other != name):
            found.add(video)
        ends[name] = max(last, ends.get(name, -1))
    return sorted(found)
