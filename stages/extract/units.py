"""Units of extraction: clips whose features fill one shard of each set, by one process.

The plan is a pure function of the clips, of what the cache holds and of what an interrupted run has assigned;
the number of workers has no part in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from thinkjepa.cache import ClipRow, FeatureSet, Kind, WriteSession


@dataclass(frozen=True, slots=True)
class Unit:
    """Clips in the order of the plan, and the shard that receives them in each set that misses them."""

    clips: tuple[ClipRow, ...]
    shards: Mapping[Kind, int]


def plan_units(
    session: WriteSession, sets: Mapping[Kind, FeatureSet], clips: Sequence[ClipRow]
) -> list[Unit]:
    """Units for all `clips` without features: those that an interrupted run assigned, and new ones.

    What is new is assigned here: from now on it is known which clip goes where. Clips that two sets miss
    alike are one unit, and decoded once.
    """
    shards = {kind: dict(session.assigned(item)) for kind, item in sets.items()}
    missing = {kind: _missing(session, item, clips, shards[kind]) for kind, item in sets.items()}
    pending = [clip.clip_id for clip in clips if any(clip.clip_id in ids for ids in missing.values())]
    size = min(item.rows_per_shard for item in sets.values())
    for kind, item in sets.items():
        groups = _groups(pending, missing[kind], size)
        shards[kind] |= zip(session.assign(item, groups), groups, strict=True)
    together: dict[tuple[str, ...], dict[Kind, int]] = {}
    for kind, assigned in shards.items():
        for number, group in assigned.items():
            together.setdefault(group, {})[kind] = number
    by_id = {clip.clip_id: clip for clip in clips}
    return [
        Unit(tuple(by_id[clip_id] for clip_id in group if clip_id in by_id), numbers)
        for group, numbers in together.items()
    ]


def undecided(session: WriteSession, sets: Mapping[Kind, FeatureSet], unit: Unit) -> set[str]:
    """Clips of a unit that nobody has come to, in one set or another."""
    clip_ids = [clip.clip_id for clip in unit.clips]
    return {
        clip_id
        for kind, shard in unit.shards.items()
        for clip_id in session.undecided(sets[kind], shard, clip_ids)
    }


def _missing(
    session: WriteSession,
    feature_set: FeatureSet,
    clips: Sequence[ClipRow],
    assigned: Mapping[int, tuple[str, ...]],
) -> set[str]:
    """Clips without features in a set that no shard has been assigned to."""
    planned = {clip_id for group in assigned.values() for clip_id in group}
    return {clip.clip_id for clip in clips} - session.done_clip_ids(feature_set) - planned


def _groups(pending: Sequence[str], missing: set[str], size: int) -> list[tuple[str, ...]]:
    """Runs of `size` pending clips, of each those that one set misses: so the sets' groups match."""
    runs = [pending[start : start + size] for start in range(0, len(pending), size)]
    groups = [tuple(clip_id for clip_id in run if clip_id in missing) for run in runs]
    return [group for group in groups if group]
