"""How much of the clips each side of a split has, and whether that is what was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from thinkjepa.stages.data.splits import SIDES, Side, SplitRule

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
