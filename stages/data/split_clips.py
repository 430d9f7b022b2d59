"""The clips of each side of a cache's split: what training, and a dataset of one's own, divide by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from thinkjepa.cache import ClipSelection, FeatureDataset
from thinkjepa.stages.data.split_store import StoredSplit, stored_split
from thinkjepa.stages.data.splits import SIDES, Side, SplitRule

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
