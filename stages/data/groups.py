"""Groups of videos by their paths and contents: tasks, an official test folder, groups that share a video."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePosixPath

from thinkjepa.stages.errors import StageError

TEST_FOLDER = "test"
"""Top folder of the official test videos, as EgoDex has it next to `part1`, `part2`, ..."""

FEWEST_GROUPS = 3
"""One for each of training, validation and test."""


def resolve_rule(
    rule: str, video_paths: Iterable[str], *, official: bool = False, named: Collection[str] = ()
) -> str:
    """Resolve `auto`: `folder` where the videos are in at least three folders, else `video`.

    Of an official partition it is `task`, whose names are alike in all top folders. It is `file` where the
    user's table of clips names a group for each clip: `named` are these, one a clip, empty without a name.
    Raises StageError where only some clips have one, or none has and `file` is asked for.
    """
    if rule == "file" or (rule == "auto" and not official and any(named)):
        if named and all(named):
            return "file"
        raise StageError(
            f"--group-by {rule}: {sum(not name for name in named)} of {len(named)} clips have no group of a "
            "table of clips (extract --clips): give one to each row, or use --group-by folder or video"
        )
    if rule != "auto":
        return rule
    if official:
        return "task"
    folders = {group_of(path, "folder") for path in video_paths}
    return "folder" if len(folders) >= FEWEST_GROUPS else "video"


def group_of(video_path: str, rule: str) -> str:
    """The group of a video, from its relative posix path.

    `rule` is `folder` (the video's folder), `task` (that folder's name, wherever it is), `video` (each video
    alone), or a regular expression searched in the path, whose first group, or whole match, names the group.
    `auto` is resolved beforehand. Raises StageError where the expression does not compile or match.
    """
    if rule == "task":
        return task_of(video_path) or "."
    if rule == "folder":
        return PurePosixPath(video_path).parent.as_posix()
    if rule == "video":
        return video_path
    try:
        match = re.search(rule, video_path)
    except re.error as error:
        raise StageError(
            f"grouping rule {rule!r} is neither 'auto', 'folder', 'task' nor 'video', and as a regular "
            f"expression it does not compile: {error}"
        ) from error
    if match is None:
        raise StageError(
            f"video {video_path!r}: the grouping expression {rule!r} does not match; it must match every "
            "relative path, or use 'folder' or 'video'"
        )
    group = match.group(1) if match.re.groups else match.group()
    if not group:
        raise StageError(f"video {video_path!r}: the grouping expression {rule!r} gives an empty group")
    return str(group)


def clip_groups(videos: Iterable[str], named: Iterable[str], rule: str) -> list[str]:
    """The group of each clip, from its video's path and the name that the user's table gives it.

    `rule` is as in `group_of`, or `file` for the table's names.
    """
    if rule == "file":
        return list(named)
    return [group_of(video, rule) for video in videos]


def task_of(video_path: str) -> str:
    """The name of a video's folder, wherever that folder is; empty for a video without one.

    `part1/pour/3.mp4` and `test/pour/8.mp4` are of the task `pour`.
    """
    return PurePosixPath(video_path).parent.name


def is_official_test(video_path: str) -> bool:
    """True for a video in the official test folder."""
    parts = PurePosixPath(video_path).parts
    return len(parts) > 1 and parts[0] == TEST_FOLDER


def check_official(video_paths: Iterable[str]) -> None:
    """Raises StageError where not both the official test folder and others have videos."""
    paths = list(video_paths)
    num_tests = sum(map(is_official_test, paths))
    if 0 < num_tests < len(paths):
        return
    tops = sorted({PurePosixPath(path).parts[0] for path in paths})
    shown = ", ".join(tops[:5]) + (", ..." if len(tops) > 5 else "")
    found = f"all {len(paths)} videos are" if num_tests else "no video is"
    raise StageError(
        f"--partition official: {found} under {TEST_FOLDER}/, at the top of the videos' folder is {shown}: "
        f"extract the folder that has part1, ... and {TEST_FOLDER} in it, or use --partition hash"
    )


def linked_groups(members: Mapping[str, Collection[str]]) -> list[tuple[str, ...]]:
    """Groups that share a video, directly or through others; each cluster and the list are sorted."""
    holders: dict[str, list[str]] = {}
    for group in members:
        for digest in members[group]:
            holders.setdefault(digest, []).append(group)
    clusters, seen = [], set[str]()
    for start in sorted(members):
        if start in seen:
            continue
        cluster, waiting = {start}, [start]
        while waiting:
            reached = {other for digest in members[waiting.pop()] for other in holders[digest]} - cluster
            cluster |= reached
            waiting.extend(reached)
        seen |= cluster
        clusters.append(tuple(sorted(cluster)))
    return clusters
