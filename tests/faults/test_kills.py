"""A command that is killed anywhere and run again ends with the bytes of one that was not killed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from .conftest import Command, copied, damage, faults
from .kill_points import NEVER, killed_at

TreeDigest = Callable[[Path], Mapping[str, str]]

SAMPLED = 6
"""Points of each command in the ordinary run of the tests."""

FROM_FILLED = ("extract", "rm set", "rm clips")
"""Commands on a cache of six clips."""

FROM_NOTHING = ("make", "merge")
"""Commands that make a cache."""


def points(total: int, *, sampled: bool) -> list[int]:
    every = list(range(1, total + 1))
    return sorted(random.Random(0).sample(every, SAMPLED)) if sampled else every


def check_every_point(
    command: Command, start: Path, folder: Path, digest: TreeDigest, *, sampled: bool = True
) -> Iterator[int]:
    whole = copied(start, folder / "whole")
    total = killed_at(NEVER, lambda: command(whole), whole)
    assert total
    assert faults(whole) == []
    wanted = digest(whole)
    for point in points(total, sampled=sampled):
        cut = copied(start, folder / "cut")
        if killed_at(point, lambda root=cut: command(root), cut) is None:
            yield point
            killed_at(NEVER, lambda root=cut: command(root), cut)
        assert faults(cut) == [], f"killed before step {point} of {total}"
        found = digest(cut)
        assert found == wanted, f"killed before step {point} of {total}"


def check_pairs(
    commands: Mapping[str, Command], first: str, filled: Path, folder: Path, *, sampled: int | None
) -> None:
    """Kill a command at points, run any other to its end, then the first again: no fault after either.

    A cache that is repaired has faults until then.
    """
    start = copied(filled, folder / "start")
    if first == "repair":
        damage(start)
        assert len(faults(start)) == 2
    whole = copied(start, folder / "whole")
    total = killed_at(NEVER, lambda: commands[first](whole), whole)
    assert total
    points = list(range(1, total))
    for point in points if sampled is None else random.Random(1).sample(points, sampled):
        cut = copied(start, folder / "cut")
        assert killed_at(point, lambda root=cut: commands[first](root), cut) is None
        for second in (*FROM_FILLED, "repair"):
            both = copied(cut, folder / "both")
            for name in (second, first):
                killed_at(NEVER, lambda root=both, name=name: commands[name](root), both)
                where = f"{first} killed before step {point} of {total}, then {second}"
                assert faults(both) == [] or (first, name) == ("repair", second), where


@pytest.mark.parametrize("first", [*FROM_FILLED, "repair"])
def test_a_killed_command_is_followed_by_any_other(
    first: str, commands: dict[str, Command], filled: Path, tmp_path: Path
) -> None:
    check_pairs(commands, first, filled, tmp_path, sampled=1)


@pytest.mark.soak
@pytest.mark.parametrize("first", [*FROM_FILLED, "repair"])
def test_a_command_that_is_killed_at_any_step_is_followed_by_any_other(
    first: str, commands: dict[str, Command], filled: Path, tmp_path: Path
) -> None:
    check_pairs(commands, first, filled, tmp_path, sampled=None)


@pytest.mark.parametrize("name", [*FROM_FILLED, *FROM_NOTHING])
def test_a_killed_command_is_continued_by_the_same_command(
    name: str, commands: dict[str, Command], filled: Path, tmp_path: Path, tree_digest: TreeDigest
) -> None:
    start = filled if name in FROM_FILLED else tmp_path / "nothing"
    killed = list(check_every_point(commands[name], start, tmp_path, tree_digest))
    assert len(killed) >= SAMPLED // 2


@pytest.mark.soak
@pytest.mark.parametrize("name", [*FROM_FILLED, *FROM_NOTHING])
def test_a_command_that_is_killed_at_any_step_is_continued_by_the_same_command(
    name: str, commands: dict[str, Command], filled: Path, tmp_path: Path, tree_digest: TreeDigest
) -> None:
    start = filled if name in FROM_FILLED else tmp_path / "nothing"
    killed = list(check_every_point(commands[name], start, tmp_path, tree_digest, sampled=False))
    assert len(killed) >= SAMPLED
