"""A cache's splits on disk: made once, read back, extended by new videos only.

`CACHE/splits/<12 hex digits of the rule>.json` holds the rule, the grouping it resolved to, the side of every
group and of every video (by content digest).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from thinkjepa.cache import ClipSelection, FeatureDataset
from thinkjepa.cache.disk.lock import WAIT, WriteLock
from thinkjepa.stages.data.partition import (
    SIDES,
    Side,
    Split,
    SplitRule,
    as_side,
    assign_splits,
    group_of,
    resolve_rule,
)
from thinkjepa.stages.json_files import read_json, write_json


@dataclass(frozen=True, slots=True)
class StoredSplit:
    """A split with the rule that made it; `grouping` is the rule with `auto` made definite."""

    rule: SplitRule
    grouping: str
    split: Split

    def to_json(self) -> dict[str, object]:
        sides = {"groups": dict(self.split.groups), "videos": dict(self.split.videos)}
        return {"rule": asdict(self.rule), "grouping": self.grouping, **sides}


def split_file(cache_dir: Path, rule: SplitRule) -> Path:
    """Where a cache keeps the split of this rule."""
    name = hashlib.sha256(json.dumps(asdict(rule), sort_keys=True).encode()).hexdigest()[:12]
    return cache_dir / "splits" / f"{name}.json"


def stored_split(cache_dir: Path, rule: SplitRule, videos: Collection[tuple[str, str]]) -> StoredSplit:
    """The cache's split of `videos`, pairs of relative path and content digest.

    Made at the first call and written to the cache; later calls read it and write only to add what is new.
    """
    path = split_file(cache_dir, rule)
    if path.exists() and _covers(_read(path, rule), videos):
        return planned_split(cache_dir, rule, videos)
    with WriteLock(path.parent, file=path.name, remedy=WAIT, on_wait=_wait_in_silence):
        extended = planned_split(cache_dir, rule, videos)
        write_json(path, extended.to_json())
    return extended


def _wait_in_silence(note: str) -> None:
    """Another run writes the same split, which takes a moment."""


def planned_split(cache_dir: Path, rule: SplitRule, videos: Collection[tuple[str, str]]) -> StoredSplit:
    """What `stored_split` gives; nothing is written."""
    path = split_file(cache_dir, rule)
    current = _read(path, rule) if path.exists() else None
    return current if current and _covers(current, videos) else _extend(current, rule, videos)


def _extend(current: StoredSplit | None, rule: SplitRule, videos: Collection[tuple[str, str]]) -> StoredSplit:
    grouping = current.grouping if current else resolve_rule(rule.group_by, [path for path, _ in videos])
    members: dict[str, set[str]] = {}
    for path, digest in videos:
        members.setdefault(group_of(path, grouping), set()).add(digest)
    split = assign_splits(members, rule=rule, known=current.split if current else None)
    return StoredSplit(rule=rule, grouping=grouping, split=split)


def _covers(stored: StoredSplit, videos: Collection[tuple[str, str]]) -> bool:
    return all(digest in stored.split.videos for _, digest in videos)


def _read(path: Path, rule: SplitRule) -> StoredSplit:
    record = read_json(path)
    groups = {group: as_side(side) for group, side in record["groups"].items()}
    videos = {digest: as_side(side) for digest, side in record["videos"].items()}
    return StoredSplit(rule=rule, grouping=record["grouping"], split=Split(groups=groups, videos=videos))


SideIds = Mapping[Side, tuple[str, ...]]


def split_clips(clips: ClipSelection, cache_dir: Path, rule: SplitRule) -> tuple[StoredSplit, SideIds]:
    """The cache's split, made or extended where needed, and ids of `clips` by side, in their order."""
    digests = clips.values("video_digest")
    videos = sorted(set(zip(clips.values("video"), digests, strict=True)))
    stored = stored_split(cache_dir, rule, videos)
    sides = [stored.split.videos[digest] for digest in digests]
    named = list(zip(clips.clip_ids.to_pylist(), sides, strict=True))
    return stored, {side: tuple(clip_id for clip_id, of in named if of == side) for side in SIDES}


def split_dataset(dataset: FeatureDataset, rule: SplitRule | None = None) -> dict[Side, FeatureDataset]:
    """A dataset of each side of the cache's split: without a rule, of the one that thinkjepa-train makes.

    The split is written to the cache, as training does: a video stays on its side for good. A side may be
    empty where its videos have no features.
    """
    _, ids = split_clips(dataset.clips, dataset.cache.path, rule or SplitRule())
    return {side: dataset.only(ids[side]) for side in SIDES}
