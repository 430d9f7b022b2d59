"""The clips of a selection, divided into training, validation and test, and a share of the training groups.

A share is for learning curves. It is seeded, and nested from share to share: groups are put in the order of a
hash of the split's seed and their name, and the first ones are kept. The groups of a small share are then
among those of a larger one, and runs that differ in the training seed alone have the same clips. Validation
and test clips stay as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinkjepa.stages.data.cutting.overlap import overlap_warning
from thinkjepa.stages.data.groups import clip_groups, resolve_rule
from thinkjepa.stages.data.history import Histories, stored_histories
from thinkjepa.stages.data.partition import (
    SPLIT_NAMES,
    Partition,
    SplitName,
    SplitRule,
    SplitSize,
    StoredPartition,
    as_split_name,
    clip_digests,
    known_grouping,
    split_sizes,
    split_warning,
    stored_partition,
)

if TYPE_CHECKING:
    from thinkjepa.cache import ClipSelection, FeatureDataset


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
    overlap: str = ""
    """Warning of clips on two sides that share frames, empty where there are none."""
    whole_sizes: Mapping[SplitName, SplitSize] | None = None
    """Sizes before a share of the training groups was taken; None where all of them train."""

    @property
    def warning(self) -> str:
        """Warning of sizes that are far from the fractions asked for, and of shared frames; else empty."""
        rule, sizes = self.stored.rule, self.whole_sizes or self.sizes
        far = "" if rule.partition == "file" else split_warning(sizes, rule, grouping=self.stored.grouping)
        return "\n".join(filter(None, [far, self.overlap]))

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


PartitionOf = Callable[[Path, SplitRule, Collection[tuple[str, str]], str], StoredPartition]
"""`stored_partition` or `planned_partition`."""


def partition_clips(
    clips: ClipSelection, cache_dir: Path, rule: SplitRule, *, partition_of: PartitionOf = stored_partition
) -> PartitionedClips:
    """Divide clips by the cache's partition, which is made or extended where needed, or by a table's.

    `planned_partition` writes nothing.
    """
    videos, digests, named = (clips.values(name) for name in ("video", "video_digest", "group"))
    partitions = clips.values("partition")
    rule = rule.settled(partitions)
    wanted = known_grouping(cache_dir, rule) or rule.group_by
    grouping = resolve_rule(wanted, videos, official=rule.is_official, named=named)
    groups = clip_groups(videos, named, grouping)
    if rule.partition == "file":
        stored, names = StoredPartition(rule, grouping, Partition()), list(map(as_split_name, partitions))
    else:
        by_group = grouping == "file"  # episodes of one video may be on several sides
        keys = [f"{digest} {group}" for digest, group in zip(digests, groups, strict=True)]
        keys, paths = (keys, groups) if by_group else (digests, videos)
        stored = partition_of(cache_dir, rule, sorted(set(zip(paths, keys, strict=True))), grouping)
        names = [stored.partition.videos[key] for key in keys]
    clip_ids: list[str] = clips.clip_ids.to_pylist()
    of_clip = list(zip(clip_ids, names, strict=True))
    return PartitionedClips(
        stored=stored,
        ids={name: tuple(clip_id for clip_id, own in of_clip if own == name) for name in SPLIT_NAMES},
        sizes=split_sizes(zip(names, groups, digests, strict=True)),
        histories=stored_histories(clips),
        groups=dict(zip(clip_ids, groups, strict=True)),
        overlap=overlap_warning(clips, names) if "file" in (rule.partition, grouping) else "",
    )


def split_dataset(dataset: FeatureDataset, rule: SplitRule | None = None) -> dict[SplitName, FeatureDataset]:
    """Datasets by split name, of the cache's partition by `rule`, else of the one that thinkjepa-train makes.

    The partition is written to the cache, as training does: a video keeps its split name for good. A split
    may be empty where its videos have no features.
    """
    ids = partition_clips(dataset.clips, dataset.cache.path, rule or SplitRule()).ids
    return {name: dataset.only(ids[name]) for name in SPLIT_NAMES}


def shared_groups(groups: Iterable[str], *, share: float, seed: int) -> frozenset[str]:
    """A share of groups, rounded, at least one."""
    names = set(groups)
    in_order = sorted(names, key=lambda name: hashlib.sha256(f"{seed}:share:{name}".encode()).digest())
    return frozenset(in_order[: max(1, round(share * len(names)))])


def with_training_share(clips: PartitionedClips, rows: ClipSelection, *, share: float) -> PartitionedClips:
    """The same partition with a share of its training groups. `rows` are its clips.

    Warnings of sizes are those of the whole partition: a share is small on purpose.
    """
    if share == 1:
        return clips
    digests = dict(zip(rows.clip_ids.to_pylist(), rows.values("video_digest"), strict=True))
    group, train_ids = clips.groups, clips.ids["train"]
    kept = shared_groups(
        (group[clip_id] for clip_id in train_ids), share=share, seed=clips.stored.rule.split_seed
    )
    ids = {**clips.ids, "train": tuple(clip_id for clip_id in train_ids if group[clip_id] in kept)}
    sizes = split_sizes(
        (name, group[clip_id], digests[clip_id]) for name, own in ids.items() for clip_id in own
    )
    return replace(clips, ids=ids, sizes=sizes, whole_sizes=clips.whole_sizes or clips.sizes)
