"""A power cut at any step, or after the end: what was reported is there, and the same command goes on."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from thinkjepa.cache import FeatureCache, WriteSession
from thinkjepa.cache.disk.layout import array_dir, cache_json, journal_dir
from thinkjepa.cache.disk.lines import read_lines
from thinkjepa.cache.shards.write import journal_rows

from .conftest import Command, Makers, copied, faults
from .kill_points import NEVER, killed_at
from .power_cuts import cut_at

TreeDigest = Callable[[Path], Mapping[str, str]]

SAMPLED = 4
"""Points of each command in the ordinary run of the tests, besides the end."""

FROM_FILLED = ("extract", "rm set", "rm clips")


def committed(root: Path) -> set[str]:
    """Features that are visible, or in the journal of an open shard: `<set> <clip>`."""
    if not cache_json(root).exists():
        return set()
    cache, found = FeatureCache.open(root), set()
    for name in cache.feature_sets:
        rows = [
            row for path in journal_dir(root, name).glob("*.jsonl") for row in journal_rows(read_lines(path))
        ]
        found |= {f"{name} {clip_id}" for clip_id in cache.index(name).clip_ids.to_pylist()}
        found |= {f"{name} {row.clip_id}" for row in rows if row.status == "ok"}
    return found


@pytest.fixture
def check_cuts(
    commands: dict[str, Command], makers: Makers, filled: Path, tmp_path: Path, tree_digest: TreeDigest
) -> Callable[..., None]:
    """A function that cuts the power at points of a command, always at its end too, and runs it again."""

    def check(name: str, *, names: bool, sampled: int | None = None) -> None:
        start = filled if name in FROM_FILLED else tmp_path / "nothing"
        whole = copied(start, tmp_path / "whole")
        total = killed_at(NEVER, lambda: commands[name](whole), whole)
        assert total
        points = list(range(1, total))
        if sampled is not None:
            points = sorted(random.Random(0).sample(points, sampled))
        for point in [*points, total]:
            cut, left = copied(start, tmp_path / "cut"), copied(tmp_path / "nothing", tmp_path / "left")
            makers.log.unlink(missing_ok=True)
            assert cut_at(point, lambda root=cut: commands[name](root), cut, left, names=names)
            where = f"cut before step {point} of {total}"
            assert left.exists() or point < total
            assert name.startswith("rm") or makers.reported() <= committed(left), where
            killed_at(NEVER, lambda root=left: commands[name](root), left)
            assert faults(left) == [], where
            assert tree_digest(left) == tree_digest(whole), where

    return check


MODES = pytest.mark.parametrize("names", [False, True], ids=["nothing unsynced", "names without contents"])


@MODES
@pytest.mark.parametrize("name", [*FROM_FILLED, "make"])
def test_what_was_reported_survives_a_power_cut_and_the_same_command_goes_on(
    name: str, names: bool, check_cuts: Callable[..., None]
) -> None:
    check_cuts(name, names=names, sampled=SAMPLED)


@pytest.mark.soak
@MODES
@pytest.mark.parametrize("name", [*FROM_FILLED, "make", "merge"])
def test_a_power_cut_at_any_step(name: str, names: bool, check_cuts: Callable[..., None]) -> None:
    check_cuts(name, names=names)


@pytest.mark.parametrize("lost", [True, False], ids=["missing", "empty"])
def test_metadata_that_was_lost_is_written_again(
    filled: Path, tmp_path: Path, commands: dict[str, Command], tree_digest: TreeDigest, lost: bool
) -> None:
    """Earlier versions did not sync zarr's metadata: a power cut left files of 0 bytes."""
    whole, cut = copied(filled, tmp_path / "whole"), copied(filled, tmp_path / "cut")
    name = next(iter(FeatureCache.open(cut).feature_sets))
    for path in [*(cut / "features.zarr").rglob("zarr.json")]:
        if lost:
            path.unlink()
        else:
            path.write_bytes(b"")
    with WriteSession(cut):
        pass
    assert tree_digest(cut) == tree_digest(whole)
    assert array_dir(cut, name, "observed").is_dir()
    for root in (whole, cut):
        commands["extract"](root)
    assert tree_digest(cut) == tree_digest(whole)
