"""The partition of a cache's videos into training, validation and test: by group, by hash, kept on disk.

All videos of a group get the same split name, which follows from a hash of the seed and the group's name
alone, so new videos move no group. Videos of equal content under two paths tie their groups together. Known
groups and videos keep their split name, also after a file was renamed.

`--partition official` takes the test videos from a folder instead: those under `test/`, as EgoDex has it. The
others are divided into training and validation as above. A video under both is a test video alone.

`CACHE/splits/<12 hex digits of the rule>.json` holds the rule, the grouping it resolved to, and the split
name of every group and of every video (by content digest).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic.dataclasses import dataclass as pydantic_dataclass

from thinkjepa.cache.disk.lock import WAIT, WriteLock
from thinkjepa.cache.records import fingerprint
from thinkjepa.stages.data.groups import (
    FEWEST_GROUPS,
    TEST_FOLDER,
    check_official,
    clip_groups,
    is_official_test,
    linked_groups,
    resolve_rule,
)
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.json_files import read_record, write_json
from thinkjepa.stages.settings import Settings, setting

if TYPE_CHECKING:
    pass

SplitName = Literal["train", "validation", "test"]

SPLIT_NAMES: tuple[SplitName, ...] = ("train", "validation", "test")

FAR = 0.5
"""A share of clips is far off where it differs from the one asked for by more than this part of it."""


@pydantic_dataclass(frozen=True)
class SplitRule(Settings):
    """The rule by which videos are divided into training, validation and test."""

    PANEL: ClassVar[str] = "Split"

    partition: Literal["auto", "hash", "official", "file"] = setting(
        "auto",
        "Where validation and test come from: hash, a draw of groups by the seed; official, test of the "
        "videos under test/ (EgoDex), validation drawn from the others; file, the table of extract --clips; "
        "auto, file where clips have a partition of it, else hash.",
        rare=True,
    )
    group_by: str = setting(
        "auto",
        "What is never divided: folder, task (the folder's name, alike in part1/ and test/), video, file "
        "(the groups of extract --clips), auto (file where clips have such groups, else folder if there are "
        "at least 3; task of an official partition), or a regular expression on the relative path whose "
        "first group names the group.",
    )
    validation_fraction: float = setting(
        0.15, "Expected fraction of groups that select the best epoch; not used with a partition of a file."
    )
    test_fraction: float = setting(
        0.15,
        "Expected fraction of groups that training never touches; not used with an official partition or one "
        "of a file.",
    )
    split_seed: int = setting(0, "Seed of the partition, apart from the training seed.")

    def __post_init__(self) -> None:
        fractions = (self.validation_fraction, self.test_fraction)
        if not (min(fractions) > 0 and sum(fractions) < 1):
            raise ValueError(
                f"split fractions validation={fractions[0]}, test={fractions[1]}: both must be above 0 and "
                "their sum below 1, so that training, too, keeps some groups"
            )
        if self.is_official and self.group_by == "file":
            raise ValueError(
                "--partition official with --group-by file: it goes by folders; leave out one of the two"
            )

    @property
    def is_official(self) -> bool:
        return self.partition == "official"

    def to_json(self) -> dict[str, Any]:
        """All settings, without a partition by hash: records of before there was another stay equal."""
        left_out = ("partition",) if self.partition in ("auto", "hash") else ()
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    def settled(self, partitions: Collection[str]) -> SplitRule:
        """The rule with `auto` resolved for clips of these partitions of a table, empty where it names none.

        Raises StageError where only some clips have one, or none has and `file` is asked for.
        """
        if self.partition not in ("auto", "file"):
            return self
        if self.partition == "auto" and not any(partitions):
            return replace(self, partition="hash")
        if not all(partitions) or not partitions:
            raise StageError(
                f"--partition {self.partition}: {sum(not name for name in partitions)} of {len(partitions)} "
                "clips have no partition of a table of clips (extract --clips): give one to each row and "
                "extract into a new cache, or use --partition hash"
            )
        return replace(self, partition="file")


@dataclass(frozen=True, slots=True)
class Partition:
    """The split name of every group, and of every video by content digest."""

    groups: Mapping[str, SplitName] = field(default_factory=dict)
    videos: Mapping[str, SplitName] = field(default_factory=dict)


def assign_partition(
    members: Mapping[str, Collection[str]], *, rule: SplitRule, known: Partition | None = None
) -> Partition:
    """Extend `known` by the groups and videos that it lacks. Nothing that it holds moves.

    `members` maps each group to the content digests of its videos. Every split has at least one group: where
    the hash leaves one empty, it takes a new group from a split that has several. Raises StageError where
    there are too few groups.
    """
    known = known or Partition()
    videos = dict(known.videos)
    for group in sorted(members.keys() & known.groups.keys()):
        for digest in members[group]:
            videos.setdefault(digest, known.groups[group])
    clusters = linked_groups({group: members[group] for group in members.keys() - known.groups.keys()})
    chosen: dict[tuple[str, ...], SplitName] = {}
    free = []
    for cluster in clusters:
        touched = {videos[digest] for group in cluster for digest in members[group] if digest in videos}
        held_out_first = [name for name in reversed(SPLIT_NAMES) if name in touched]
        chosen[cluster] = held_out_first[0] if touched else hashed_split_name(cluster[0], rule)
        if not touched:
            free.append(cluster)
    _fill_empty_splits(chosen, free=free, taken=known.groups.values(), seed=rule.split_seed)
    groups = dict(known.groups)
    for cluster, name in chosen.items():
        for group in cluster:
            groups[group] = name
            for digest in members[group]:
                videos.setdefault(digest, name)
    return Partition(groups=groups, videos=videos)


def hold_out(
    members: Mapping[str, Collection[str]], test_digests: Collection[str], known: Partition
) -> tuple[dict[str, set[str]], Partition]:
    """Groups without the videos of an official test folder, and `known` with these as one more group of test.

    What is known does not move. Groups that have test videos alone are left out.
    """
    tests = {digest for digest in test_digests if known.videos.get(digest, "test") == "test"}
    videos: dict[str, SplitName] = {**dict.fromkeys(tests, "test"), **known.videos}
    held = {digest for digest, name in videos.items() if name == "test"}
    left = {group: set(own) - held for group, own in members.items()}
    groups: dict[str, SplitName] = {**known.groups, f"{TEST_FOLDER}/": "test"}
    return {group: own for group, own in left.items() if own}, Partition(groups=groups, videos=videos)


def hashed_split_name(group: str, rule: SplitRule) -> SplitName:
    """The split name that the seed and a group's name determine.

    The hash is a number from 0 to 1: test from 0 up, then validation, then training.
    """
    digest = hashlib.sha256(f"{rule.split_seed}:{group}".encode()).digest()
    number = int.from_bytes(digest[:8], "big") / 2**64
    test_share = 0.0 if rule.is_official else rule.test_fraction
    if number < test_share:
        return "test"
    return "validation" if number < test_share + rule.validation_fraction else "train"


def _fill_empty_splits(
    chosen: dict[tuple[str, ...], SplitName],
    *,
    free: Collection[tuple[str, ...]],
    taken: Collection[SplitName],
    seed: int,
) -> None:
    """Move free clusters, picked by hash, from splits that have several to splits that have none."""
    for name in reversed(SPLIT_NAMES):
        counts = Counter([*taken, *chosen.values()])
        if counts[name]:
            continue
        spare = [cluster for cluster in free if counts[chosen[cluster]] > 1]
        if not spare:
            raise StageError(
                f"a split needs at least {FEWEST_GROUPS} groups without a video in common, got "
                f"{counts.total()}: add videos, or group them by 'video' or a finer expression"
            )
        moved = min(spare, key=lambda item: hashlib.sha256(f"{seed}:{name}:{item[0]}".encode()).digest())
        chosen[moved] = name


def as_split_name(text: str) -> SplitName:
    """Check a split name. Raises StageError naming the three."""
    if text not in SPLIT_NAMES:
        raise StageError(f"split {text!r} is not one of {', '.join(SPLIT_NAMES)}")
    return text


@dataclass(frozen=True, slots=True)
class StoredPartition:
    """A partition with the rule that made it. `grouping` is the rule with `auto` resolved."""

    rule: SplitRule
    grouping: str
    partition: Partition

    def to_json(self) -> dict[str, object]:
        names = {"groups": dict(self.partition.groups), "videos": dict(self.partition.videos)}
        return {"rule": self.rule.to_json(), "grouping": self.grouping, **names}

    def covers(self, videos: Collection[tuple[str, str]]) -> bool:
        """True if every video, a pair of path and content digest, has a split name."""
        return all(digest in self.partition.videos for _, digest in videos)


def partition_file(cache_dir: Path, rule: SplitRule) -> Path:
    """The file of a cache that keeps the partition of this rule."""
    name = hashlib.sha256(json.dumps(rule.to_json(), sort_keys=True).encode()).hexdigest()[:12]
    return cache_dir / "splits" / f"{name}.json"


def known_grouping(cache_dir: Path, rule: SplitRule) -> str | None:
    """The grouping of the cache's partition by this rule; None where there is none yet."""
    path = partition_file(cache_dir, rule)
    return _read(path, rule).grouping if path.exists() else None


def stored_partition(
    cache_dir: Path, rule: SplitRule, videos: Collection[tuple[str, str]], grouping: str | None = None
) -> StoredPartition:
    """The cache's partition of `videos`, pairs of relative path and content digest.

    The first call writes it to the cache, with the rule's grouping unless one is given. Later calls read it
    and write only to add new videos. With `file` for a grouping, pairs are of a group and what is its own.
    """
    path = partition_file(cache_dir, rule)
    if path.exists() and (stored := _read(path, rule)).covers(videos):
        return stored
    # Another run writes the same partition, which takes a moment: it is awaited without a word.
    with WriteLock(path.parent, file=path.name, remedy=WAIT, on_wait=lambda note: None):
        extended = planned_partition(cache_dir, rule, videos, grouping)
        write_json(path, extended.to_json())
    return extended


def planned_partition(
    cache_dir: Path, rule: SplitRule, videos: Collection[tuple[str, str]], grouping: str | None = None
) -> StoredPartition:
    """The result of `stored_partition`. Nothing is written."""
    path = partition_file(cache_dir, rule)
    current = _read(path, rule) if path.exists() else None
    if current and current.covers(videos):
        return current
    paths, known = [path for path, _ in videos], current.partition if current else Partition()
    if current or grouping is None:
        official = rule.is_official
        grouping = current.grouping if current else resolve_rule(rule.group_by, paths, official=official)
    members: dict[str, set[str]] = {}
    for group, (_, digest) in zip(clip_groups(paths, paths, grouping), videos, strict=True):
        members.setdefault(group, set()).add(digest)
    if rule.is_official:
        if current is None:
            check_official(paths)
        members, known = hold_out(
            members, {digest for name, digest in videos if is_official_test(name)}, known
        )
    partition = assign_partition(members, rule=rule, known=known)
    return StoredPartition(rule=rule, grouping=grouping, partition=partition)


@dataclass(frozen=True, slots=True)
class _Stored:
    """Content of a partition's file, as far as it is read."""

    grouping: str
    groups: dict[str, SplitName]
    videos: dict[str, SplitName]


def _read(path: Path, rule: SplitRule) -> StoredPartition:
    record = read_record(path, _Stored)
    groups = {group: as_split_name(name) for group, name in record["groups"].items()}
    videos = {digest: as_split_name(name) for digest, name in record["videos"].items()}
    return StoredPartition(rule, record["grouping"], Partition(groups=groups, videos=videos))


@dataclass(frozen=True, slots=True)
class SplitSize:
    """Groups, videos and clips of a split. `share` is its part of all clips."""

    groups: int
    videos: int
    clips: int
    share: float


def clip_digests(ids: Mapping[SplitName, Iterable[str]]) -> dict[str, dict[str, Any]]:
    """Count and digest of the clips of each split, equal for equal clips in any order.

    A clip's id names the content of its video and the split frame.
    """
    listed = {name: sorted(own) for name, own in ids.items()}
    return {name: {"count": len(own), "sha256": fingerprint(own)} for name, own in listed.items()}


def split_sizes(clips: Iterable[tuple[SplitName, str, str]]) -> dict[SplitName, SplitSize]:
    """The size of each split, from the split name, group and video of every clip."""
    rows = list(clips)
    sizes: dict[SplitName, SplitSize] = {}
    for name in SPLIT_NAMES:
        own = [(group, video) for of, group, video in rows if of == name]
        sizes[name] = SplitSize(
            groups=len({group for group, _ in own}),
            videos=len({video for _, video in own}),
            clips=len(own),
            share=len(own) / max(1, len(rows)),
        )
    return sizes


def split_warning(sizes: Mapping[SplitName, SplitSize], rule: SplitRule, *, grouping: str) -> str:
    """Warning of sizes that are far from the fractions asked for, empty where none is."""
    test = sizes["test"].share if rule.is_official else rule.test_fraction
    validation = rule.validation_fraction * (1 - test if rule.is_official else 1)
    asked: dict[SplitName, float] = {
        "train": 1 - validation - test,
        "validation": validation,
        "test": test,
    }
    far = [name for name in SPLIT_NAMES if abs(sizes[name].share - asked[name]) > FAR * asked[name]]
    if not far:
        return ""
    found = ", ".join(
        f"{name} has {100 * sizes[name].share:.0f} % of the clips ({100 * asked[name]:.0f} % asked for)"
        for name in far
    )
    finer = "" if grouping == "video" else "--group-by video divides finer, as does a regular expression, or "
    groups = sum(size.groups for size in sizes.values())
    few = f"{groups} groups by {grouping} are few to divide"
    return f"warning: {found}: {few}; {finer}--split-seed N draws again"
