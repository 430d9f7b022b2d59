"""Which group a video belongs to: all videos of a group land on the same side of a split."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from thinkjepa.stages.errors import StageError

FEWEST_GROUPS = 3  # one each for training, validation and test


def resolve_rule(rule: str, video_paths: Iterable[str]) -> str:
    """Make `auto` definite: `folder` where the videos lie in at least three folders, else `video`."""
    if rule != "auto":
        return rule
    folders = {group_of(path, "folder") for path in video_paths}
    return "folder" if len(folders) >= FEWEST_GROUPS else "video"


def group_of(video_path: str, rule: str) -> str:
    """The group of a video, from its relative posix path.

    `rule` is `folder` (the folder it lies in), `video` (each by itself), or a regular expression searched in
    the path, whose first group, or whole match, names the group. (`auto` is made definite beforehand.)
    """
    if rule == "folder":
        return PurePosixPath(video_path).parent.as_posix()
    if rule == "video":
        return video_path
    match = _compiled(rule).search(video_path)
    if match is None:
        raise StageError(
            f"video {video_path!r}: the grouping expression {rule!r} does not match; it must match every "
            "relative path, or use 'folder' or 'video'"
        )
    group = match.group(1) if match.re.groups else match.group()
    if not group:
        raise StageError(f"video {video_path!r}: the grouping expression {rule!r} gives an empty group")
    return str(group)


def _compiled(rule: str) -> re.Pattern[str]:
    try:
        return re.compile(rule)
    except re.error as error:
        raise StageError(
            f"grouping rule {rule!r} is neither 'auto', 'folder' nor 'video', and as a regular expression it "
            f"does not compile: {error}"
        ) from error
