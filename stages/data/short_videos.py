"""Whole videos without room for one clip: no failures, but counted, listed and recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from thinkjepa.cache import Failure

LISTED = 5
"""Videos that one line names. `thinkjepa-cache info` and `--json` list all."""

REMEDY = "fewer --observed-frames and --future-frames, or a higher --dense-fps, cut shorter clips"


ROW_REMEDY = "move split_s, start_s or end_s, or ask for fewer --observed-frames and --future-frames"


@dataclass(frozen=True, slots=True)
class ShortVideo:
    """A video that opens and lasts less than a clip, or a row of a table whose segment does."""

    video: str
    video_digest: str
    duration_s: float
    needed: str
    """What a clip takes, in words."""
    where: str = ""
    """File and row of the user's table that ask for the clip; empty for a whole video."""
    lacking: str = ""
    """What the row's segment has no room for, in words."""

    @property
    def record(self) -> Failure:
        """The row with which a cache lists the video, at stage `plan`."""
        if self.where:
            reason = f"{self.where} too short: {self.lacking}; {ROW_REMEDY}"
            return Failure(self.video, "plan", reason, video_digest=self.video_digest)
        reason = f"too short: {self.duration_s:.2f} s, a clip needs {self.needed}; {REMEDY}"
        return Failure(self.video, "plan", reason, video_digest=self.video_digest)


def describe_short(videos: Sequence[ShortVideo]) -> str:
    """One line with the number, the need and the first names. Empty where there are none."""
    if rows := [item for item in videos if item.where]:
        whole = describe_short([item for item in videos if not item.where])
        are = "row is" if len(rows) == 1 else "rows are"
        more = f"; {len(rows) - LISTED} more" if len(rows) > LISTED else ""
        listed = "; ".join(f"{item.where} ({item.video!r}): {item.lacking}" for item in rows[:LISTED])
        return "\n".join(filter(None, [whole, f"{len(rows)} {are} too short for a clip: {listed}{more}"]))
    if not videos:
        return ""
    are = "video is" if len(videos) == 1 else "videos are"
    names = ", ".join(f"{item.video!r} ({item.duration_s:.2f} s)" for item in videos[:LISTED])
    more = f" and {len(videos) - LISTED} more" if len(videos) > LISTED else ""
    return f"{len(videos)} {are} too short for a clip, which needs {videos[0].needed}: {names}{more}"


def refusal(videos: Sequence[ShortVideo], *, failed: int) -> str:
    """The error for a folder in which no video gives a clip."""
    if rows := [item for item in videos if item.where]:
        found = f"{rows[0].where} ({rows[0].video!r}): {rows[0].lacking}"
        return f"nothing to extract: no row has room for its clip, the first is {found}; {ROW_REMEDY}"
    longest = max(videos, key=lambda item: item.duration_s)
    others = f", and {failed} cannot be read" if failed else ""
    are = "the only video is" if len(videos) == 1 else f"all {len(videos)} videos that open are"
    return (
        f"nothing to extract: {are} too short for a clip, which needs {longest.needed}; the longest, "
        f"{longest.video!r}, lasts {longest.duration_s:.2f} s{others}: {REMEDY}"
    )
