"""Which group a video belongs to: all videos of a group land on the same side of a split.

Which videos train, validate and test: by group, by hash, and decided once.

A group's side follows from a hash of the seed and the group's name alone, so adding videos moves no group.
Identical videos (same content digest under two paths) tie their groups together. What was decided is kept:
known groups and videos stay where they are, also after a file was renamed.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass as pydantic_dataclass

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.settings import Settings, setting

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


Side = Literal["train", "validation", "test"]

SIDES: tuple[Side, ...] = ("train", "validation", "test")


@pydantic_dataclass(frozen=True)
class SplitRule(Settings):
    """How videos are divided into training, validation and test."""

    PANEL: ClassVar[str] = "Split"

    group_by: str = setting(
        "auto",
        "What never straddles two sides: folder, video, auto (folder if there are at least 3), "
        "or a regular expression on the relative path whose first group names the group.",
    )
    validation_fraction: float = setting(0.15, "Expected fraction of groups that select the best epoch.")
    test_fraction: float = setting(0.15, "Expected fraction of groups that training never touches.")
    split_seed: int = setting(0, "Seed of the division, apart from the training seed.")

    def __post_init__(self) -> None:
        fractions = (self.validation_fraction, self.test_fraction)
        if not (min(fractions) > 0 and sum(fractions) < 1):
            raise ValueError(
                f"split fractions validation={fractions[0]}, test={fractions[1]}: both must be above 0 and "
                "their sum below 1, so that training, too, keeps some groups"
            )


@dataclass(frozen=True, slots=True)
class Split:
    """The side of every group, and of every video by content digest."""

    groups: Mapping[str, Side] = field(default_factory=dict)
    videos: Mapping[str, Side] = field(default_factory=dict)


def assign_splits(
    members: Mapping[str, Collection[str]], *, rule: SplitRule, known: Split | None = None
) -> Split:
    """Extend `known` by the groups and videos that it lacks; what it holds never moves.

    `members` maps each group to the content digests of its videos. Every side has at least one group: where
    the hash leaves a side empty, it takes a new group from a side that has several. Raises StageError when
    there are too few.
    """
    known = known or Split()
    videos = _sides_of_known_videos(members, known)
    clusters = _linked_groups({group: members[group] for group in members.keys() - known.groups.keys()})
    decided = {cluster: _decide(cluster, members, videos, rule) for cluster in clusters}
    free = [cluster for cluster in clusters if not _sides_touched(cluster, members, videos)]
    _fill_empty_sides(decided, free=free, taken=known.groups.values(), seed=rule.split_seed)
    groups = dict(known.groups)
    for cluster, side in decided.items():
        for group in cluster:
            groups[group] = side
            for digest in members[group]:
                videos.setdefault(digest, side)
    return Split(groups=groups, videos=videos)


def hashed_side(name: str, rule: SplitRule) -> Side:
    """The side that the seed and a group's name determine: test from 0 up, then validation, then training."""
    digest = hashlib.sha256(f"{rule.split_seed}:{name}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < rule.test_fraction:
        return "test"
    return "validation" if place < rule.test_fraction + rule.validation_fraction else "train"


def _sides_of_known_videos(members: Mapping[str, Collection[str]], known: Split) -> dict[str, Side]:
    """Known videos keep their side; new ones in a known group take the group's."""
    videos = dict(known.videos)
    for group in sorted(members.keys() & known.groups.keys()):
        for digest in members[group]:
            videos.setdefault(digest, known.groups[group])
    return videos


def _linked_groups(members: Mapping[str, Collection[str]]) -> list[tuple[str, ...]]:
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


def _sides_touched(
    cluster: Iterable[str], members: Mapping[str, Collection[str]], videos: Mapping[str, Side]
) -> set[Side]:
    return {videos[digest] for group in cluster for digest in members[group] if digest in videos}


def _decide(
    cluster: tuple[str, ...],
    members: Mapping[str, Collection[str]],
    videos: Mapping[str, Side],
    rule: SplitRule,
) -> Side:
    """The side of the known videos it holds copies of (held-out sides first), else by hash."""
    touched = _sides_touched(cluster, members, videos)
    held = next((side for side in reversed(SIDES) if side in touched), None)
    return held or hashed_side(cluster[0], rule)


def _fill_empty_sides(
    decided: dict[tuple[str, ...], Side],
    *,
    free: Collection[tuple[str, ...]],
    taken: Collection[Side],
    seed: int,
) -> None:
    """Move free clusters, chosen by hash, from sides that have several to sides that have none."""
    for side in reversed(SIDES):
        counts = Counter([*taken, *decided.values()])
        if counts[side]:
            continue
        spare = [cluster for cluster in free if counts[decided[cluster]] > 1]
        if not spare:
            raise StageError(
                f"a split needs at least {FEWEST_GROUPS} groups without a video in common, got "
                f"{counts.total()}: add videos, or group them by 'video' or a finer expression"
            )
        chosen = min(spare, key=lambda item: hashlib.sha256(f"{seed}:{side}:{item[0]}".encode()).digest())
        decided[chosen] = side


def as_side(name: str) -> Side:
    """Check a side's name. Raises StageError naming the three."""
    if name not in SIDES:
        raise StageError(f"split {name!r} is not one of {', '.join(SIDES)}")
    return name


FAR = 0.5
"""A side is far off where its share differs from the one asked for by more than this part of it."""


@dataclass(frozen=True, slots=True)
class SideSize:
    """Groups, videos and clips of a side; `share` is its part of all clips."""

    groups: int
    videos: int
    clips: int
    share: float


def side_sizes(clips: Iterable[tuple[Side, str, str]]) -> dict[Side, SideSize]:
    """The size of each side, from the side, group and video of every clip."""
    rows = list(clips)
    sizes: dict[Side, SideSize] = {}
    for side in SIDES:
        own = [(group, video) for of, group, video in rows if of == side]
        sizes[side] = SideSize(
            groups=len({group for group, _ in own}),
            videos=len({video for _, video in own}),
            clips=len(own),
            share=len(own) / max(1, len(rows)),
        )
    return sizes


def split_warning(sizes: Mapping[Side, SideSize], rule: SplitRule, *, grouping: str) -> str:
    """What to say of sides that are far from what was asked for, empty where none is."""
    asked: dict[Side, float] = {
        "train": 1 - rule.validation_fraction - rule.test_fraction,
        "validation": rule.validation_fraction,
        "test": rule.test_fraction,
    }
    far = [side for side in SIDES if abs(sizes[side].share - asked[side]) > FAR * asked[side]]
    if not far:
        return ""
    found = ", ".join(
        f"{side} has {100 * sizes[side].share:.0f} % of the clips ({100 * asked[side]:.0f} % asked for)"
        for side in far
    )
    finer = "" if grouping == "video" else "--group-by video divides finer, as does a regular expression, or "
    groups = sum(size.groups for size in sizes.values())
    few = f"{groups} groups by {grouping} are few to divide"
    return f"warning: {found}: {few}; {finer}--split-seed N draws again"
