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
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic.dataclasses import dataclass as pydantic_dataclass

from thinkjepa.cache.disk.lock import WAIT, WriteLock
from thinkjepa.cache.records import fingerprint
from thinkjepa.stages.data.groups import (
    FEWEST_GROUPS,
    TEST_FOLDER,
    check_official,
    group_of,
    is_official_test,
    linked_groups,
    resolve_rule,
)
from thinkjepa.stages.data.history import Histories, stored_histories
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.json_files import read_json, write_json
from thinkjepa.stages.settings import Settings, setting

if TYPE_CHECKING:
    from thinkjepa.cache import ClipSelection, FeatureDataset

SplitName = Literal["train", "validation", "test"]

SPLIT_NAMES: tuple[SplitName, ...] = ("train", "validation", "test")

FAR = 0.5
"""A share of clips is far off where it differs from the one asked for by more than this part of it."""


@pydantic_dataclass(frozen=True)
class SplitRule(Settings):
    """The rule by which videos are divided into training, validation and test."""

    PANEL: ClassVar[str] = "Split"

    partition: Literal["hash", "official"] = setting(
        "hash",
        "Where the test videos come from: hash, a draw of groups by the seed, or official, the videos under "
        "test/ (EgoDex), while validation is drawn from the others.",
        rare=True,
    )
    group_by: str = setting(
        "auto",
        "What is never divided: folder, task (the folder's name, alike in part1/ and test/), "
        "video, auto (folder if there are at least 3, task of an official partition), or a regular "
        "expression on the relative path whose first group names the group.",
    )
    validation_fraction: float = setting(0.15, "Expected fraction of groups that select the best epoch.")
    test_fraction: float = setting(
        0.15, "Expected fraction of groups that training never touches; not used with an official partition."
    )
    split_seed: int = setting(0, "Seed of the partition, apart from the training seed.")

    def __post_init__(self) -> None:
        fractions = (self.validation_fraction, self.test_fraction)
        if not (min(fractions) > 0 and sum(fractions) < 1):
            raise ValueError(
                f"split fractions validation={fractions[0]}, test={fractions[1]}: both must be above 0 and "
                "their sum below 1, so that training, too, keeps some groups"
            )

    @property
    def is_official(self) -> bool:
        return self.partition == "official"

    def to_json(self) -> dict[str, Any]:
        """All settings, without a partition by hash: records of before there was another stay equal."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("partition", "hash")}


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


def stored_partition(
    cache_dir: Path, rule: SplitRule, videos: Collection[tuple[str, str]]
) -> StoredPartition:
    """The cache's partition of `videos`, pairs of relative path and content digest.

    The first call writes it to the cache. Later calls read it and write only to add new videos.
    """
    path = partition_file(cache_dir, rule)
    if path.exists() and (stored := _read(path, rule)).covers(videos):
        return stored
    # Another run writes the same partition, which takes a moment: it is awaited without a word.
    with WriteLock(path.parent, file=path.name, remedy=WAIT, on_wait=lambda note: None):
        extended = planned_partition(cache_dir, rule, videos)
        write_json(path, extended.to_json())
    return extended


def planned_partition(
    cache_dir: Path, rule: SplitRule, videos: Collection[tuple[str, str]]
) -> StoredPartition:
    """The result of `stored_partition`. Nothing is written."""
    path = partition_file(cache_dir, rule)
    current = _read(path, rule) if path.exists() else None
    if current and current.covers(videos):
        return current
    paths, known = [path for path, _ in videos], current.partition if current else Partition()
    grouping = current.grouping if current else resolve_rule(rule.group_by, paths, official=rule.is_official)
    members: dict[str, set[str]] = {}
    for name, digest in videos:
        members.setdefault(group_of(name, grouping), set()).add(digest)
    if rule.is_official:
        if current is None:
            check_official(paths)
        members, known = hold_out(
            members, {digest for name, digest in videos if is_official_test(name)}, known
        )
    partition = assign_partition(members, rule=rule, known=known)
    return StoredPartition(rule=rule, grouping=grouping, partition=partition)


def _read(path: Path, rule: SplitRule) -> StoredPartition:
    record = read_json(path)
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


@dataclass(frozen=True, slots=True)
class PartitionedClips:
    """Clips by split name: their ids, in the order of the clips, and sizes."""

    stored: StoredPartition
    ids: Mapping[SplitName, tuple[str, ...]]
    sizes: Mapping[SplitName, SplitSize]
    histories: Histories = field(default_factory=Histories)
    """Of all clips: how many have no history beyond the observed window."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """The group of each clip, by its id."""
    whole_sizes: Mapping[SplitName, SplitSize] | None = None
    """Sizes before a share of the training groups was taken; None where all of them train."""

    @property
    def warning(self) -> str:
        """Warning of sizes that are far from the fractions asked for, empty where none is."""
        return split_warning(self.whole_sizes or self.sizes, self.stored.rule, grouping=self.stored.grouping)

    def sizes_to_json(self) -> dict[str, Any]:
        """Groups, videos and clips of each split."""
        sizes: dict[str, Any] = {name: asdict(size) for name, size in self.sizes.items()}
        return {"grouping": self.stored.grouping, **sizes, "warning": self.warning}

    @property
    def digests(self) -> dict[str, dict[str, Any]]:
        """Count and digest of the clips of each split."""
        return clip_digests(self.ids)

    def to_json(self) -> dict[str, Any]:
        return {**self.stored.to_json(), "clips": {name: list(ids) for name, ids in self.ids.items()}}


def clip_digests(ids: Mapping[SplitName, Iterable[str]]) -> dict[str, dict[str, Any]]:
    """Count and digest of the clips of each split, equal for equal clips in any order.

    A clip's id names the content of its video and the split frame.
    """
    listed = {name: sorted(own) for name, own in ids.items()}
    return {name: {"count": len(own), "sha256": fingerprint(own)} for name, own in listed.items()}


PartitionOf = Callable[[Path, SplitRule, Collection[tuple[str, str]]], StoredPartition]
"""`stored_partition` or `planned_partition`."""


def partition_clips(
    clips: ClipSelection, cache_dir: Path, rule: SplitRule, *, partition_of: PartitionOf = stored_partition
) -> PartitionedClips:
    """Divide clips by the cache's partition, which is made or extended where needed.

    `planned_partition` writes nothing.
    """
    videos, digests = clips.values("video"), clips.values("video_digest")
    stored = partition_of(cache_dir, rule, sorted(set(zip(videos, digests, strict=True))))
    names = [stored.partition.videos[digest] for digest in digests]
    groups = [group_of(video, stored.grouping) for video in videos]
    clip_ids: list[str] = clips.clip_ids.to_pylist()
    named = list(zip(clip_ids, names, strict=True))
    return PartitionedClips(
        stored=stored,
        ids={name: tuple(clip_id for clip_id, own in named if own == name) for name in SPLIT_NAMES},
        sizes=split_sizes(zip(names, groups, digests, strict=True)),
        histories=stored_histories(clips),
        groups=dict(zip(clip_ids, groups, strict=True)),
    )


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


def split_dataset(dataset: FeatureDataset, rule: SplitRule | None = None) -> dict[SplitName, FeatureDataset]:
    """Datasets by split name, of the cache's partition by `rule`, else of the one that thinkjepa-train makes.

    The partition is written to the cache, as training does: a video keeps its split name for good. A split
    may be empty where its videos have no features.
    """
    ids = partition_clips(dataset.clips, dataset.cache.path, rule or SplitRule()).ids
    return {name: dataset.only(ids[name]) for name in SPLIT_NAMES}
