"""A share of the training groups, for learning curves: seeded, and nested from share to share.

Groups are put in the order of a hash of the split's seed and their name, and the first ones are kept. The
groups of a small share are then among those of a larger one, and runs that differ in the training seed alone
have the same clips. Validation and test clips stay as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from thinkjepa.cache import ClipSelection
from thinkjepa.stages.data.partition import PartitionedClips, split_sizes


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
