"""Splits keep groups whole, stay put when videos are added, and are stored once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from thinkjepa.stages.data.groups import group_of, resolve_rule
from thinkjepa.stages.data.partition import (
    SPLIT_NAMES,
    Partition,
    SplitRule,
    assign_partition,
    hashed_split_name,
    partition_file,
    stored_partition,
)
from thinkjepa.stages.errors import StageError

Members = dict[str, frozenset[str]]

RULE = SplitRule(split_seed=1)

GROUPS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=4), st.frozensets(st.integers(0, 30), min_size=1, max_size=4)
)


def named(groups: dict[str, frozenset[int]]) -> Members:
    return {group: frozenset(f"digest{number}" for number in held) for group, held in groups.items()}


def split_of(members: Members, known: Partition | None = None, rule: SplitRule = RULE) -> Partition:
    """The split, where the groups are enough for one."""
    try:
        return assign_partition(members, rule=rule, known=known)
    except StageError:
        assume(False)
        raise


def apart(num_groups: int) -> Members:
    """Groups without a video in common."""
    return {f"g{number}": frozenset({f"digest{number}"}) for number in range(num_groups)}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("folder", "part1/pour"),
        ("video", "part1/pour/3.mp4"),
        (r"^[^/]+/([^/]+)/", "pour"),
        (r"^part\d", "part1"),
    ],
)
def test_group_of_follows_the_rule(rule: str, expected: str) -> None:
    assert group_of("part1/pour/3.mp4", rule) == expected


def test_auto_means_folder_from_three_folders_on() -> None:
    assert resolve_rule("auto", ["a/1.mp4", "b/1.mp4", "c/1.mp4"]) == "folder"
    assert resolve_rule("auto", ["a/1.mp4", "b/1.mp4", "b/2.mp4"]) == "video"
    assert resolve_rule("auto", ["1.mp4", "a/1.mp4", "b/1.mp4"]) == "folder"


@pytest.mark.parametrize("rule", ["(", "nowhere", "(x*)"])
def test_expression_that_gives_no_group_is_refused(rule: str) -> None:
    with pytest.raises(StageError, match="grouping"):
        group_of("a/1.mp4", rule)


@given(GROUPS)
def test_every_side_has_a_group_and_every_video_one_side(groups: dict[str, frozenset[int]]) -> None:
    members = named(groups)
    split = split_of(members)
    assert set(split.groups) == set(members)
    assert set(split.groups.values()) == set(SPLIT_NAMES)
    for group, digests in members.items():
        assert {split.videos[digest] for digest in digests} == {split.groups[group]}


@given(GROUPS, GROUPS)
def test_what_is_known_never_moves(first: dict[str, frozenset[int]], more: dict[str, frozenset[int]]) -> None:
    before = split_of(named(first))
    grown = {group: first.get(group, frozenset()) | more.get(group, frozenset()) for group in {*first, *more}}
    after = split_of(named(grown), known=before)
    assert {group: after.groups[group] for group in before.groups} == dict(before.groups)
    assert {digest: after.videos[digest] for digest in before.videos} == dict(before.videos)
    assert set(after.groups) == set(grown)


@given(st.integers(0, 1000))
def test_a_groups_side_does_not_depend_on_the_others(seed: int) -> None:
    """True without any memory, as long as no side had to be filled up."""
    rule = SplitRule(split_seed=seed)
    many = assign_partition(apart(60), rule=rule)
    assert dict(many.groups) == {group: hashed_split_name(group, rule) for group in apart(60)}


def test_sides_have_about_their_fractions() -> None:
    split = assign_partition(apart(4000), rule=SplitRule(validation_fraction=0.1, test_fraction=0.2))
    sides = list(split.groups.values())
    assert sides.count("validation") == pytest.approx(400, rel=0.15)
    assert sides.count("test") == pytest.approx(800, rel=0.15)


def test_three_groups_are_enough_and_two_are_not() -> None:
    for seed in range(50):
        split = assign_partition(apart(3), rule=SplitRule(split_seed=seed))
        assert sorted(split.groups.values()) == sorted(SPLIT_NAMES)
    with pytest.raises(StageError, match=r"at least 3 groups.*got 2.*add videos"):
        assign_partition(apart(2), rule=RULE)


def test_identical_videos_tie_their_groups_together() -> None:
    members = {**apart(20), "g3": frozenset({"twin", "digest3"}), "g7": frozenset({"twin"})}
    for seed in range(30):
        split = assign_partition(members, rule=SplitRule(split_seed=seed))
        assert split.groups["g3"] == split.groups["g7"] == split.videos["twin"]


def test_three_folders_of_one_video_are_one_group() -> None:
    members = {name: frozenset({"twin"}) for name in "abc"}
    with pytest.raises(StageError, match="without a video in common, got 1"):
        assign_partition(members, rule=RULE)


def test_a_new_copy_of_a_test_video_goes_to_test_with_its_group() -> None:
    before = assign_partition(apart(20), rule=RULE)
    test_group = next(group for group, side in before.groups.items() if side == "test")
    members = {**apart(20), "new": apart(20)[test_group] | {"fresh"}}
    after = assign_partition(members, rule=RULE, known=before)
    assert after.groups["new"] == after.videos["fresh"] == "test"


def test_a_copy_put_into_a_training_group_stays_in_test() -> None:
    before = assign_partition(apart(20), rule=RULE)
    test_group = next(group for group, side in before.groups.items() if side == "test")
    train_group = next(group for group, side in before.groups.items() if side == "train")
    twin = next(iter(apart(20)[test_group]))
    after = assign_partition({**apart(20), train_group: frozenset({twin, "fresh"})}, rule=RULE, known=before)
    assert after.videos[twin] == "test"
    assert after.videos["fresh"] == "train"


@pytest.mark.parametrize("fractions", [(0.0, 0.2), (0.2, 0.0), (0.5, 0.5), (-0.1, 0.2)])
def test_impossible_fractions_are_refused(fractions: tuple[float, float]) -> None:
    with pytest.raises(StageError, match="their sum below 1"):
        SplitRule(validation_fraction=fractions[0], test_fraction=fractions[1])


def videos(num_folders: int, *, per_folder: int = 2) -> list[tuple[str, str]]:
    return [
        (f"task{folder}/{number}.mp4", f"digest{folder}-{number}")
        for folder in range(num_folders)
        for number in range(per_folder)
    ]


def test_split_is_made_once_and_read_back(tmp_path: Path) -> None:
    first = stored_partition(tmp_path, RULE, videos(10))
    path = partition_file(tmp_path, RULE)
    content = path.read_bytes()
    assert len(path.stem) == 12
    assert stored_partition(tmp_path, RULE, videos(10)) == first
    assert path.read_bytes() == content


def test_stored_sides_are_used_even_where_the_hash_says_otherwise(tmp_path: Path) -> None:
    stored_partition(tmp_path, RULE, videos(10))
    path = partition_file(tmp_path, RULE)
    record = json.loads(path.read_text())
    swap = {"train": "test", "validation": "validation", "test": "train"}
    record["groups"] = {group: swap[side] for group, side in record["groups"].items()}
    record["videos"] = {digest: swap[side] for digest, side in record["videos"].items()}
    path.write_text(json.dumps(record))
    split = stored_partition(tmp_path, RULE, videos(14)).partition
    assert {group: split.groups[group] for group in record["groups"]} == record["groups"]
    assert len(split.groups) == 14


def test_a_renamed_video_keeps_its_side(tmp_path: Path) -> None:
    before = stored_partition(tmp_path, RULE, videos(10)).partition
    renamed = [(f"moved/{digest}.mp4", digest) for _, digest in videos(10)]
    assert stored_partition(tmp_path, RULE, renamed).partition == before


def test_auto_stays_what_it_was_when_folders_are_added(tmp_path: Path) -> None:
    rule = SplitRule(group_by="auto")
    assert stored_partition(tmp_path, rule, videos(2)).grouping == "video"
    assert stored_partition(tmp_path, rule, videos(6)).grouping == "video"


def test_rules_have_files_of_their_own(tmp_path: Path) -> None:
    rules = [SplitRule(), SplitRule(split_seed=1), SplitRule(group_by="video"), SplitRule(test_fraction=0.2)]
    assert len({partition_file(tmp_path, rule) for rule in rules}) == 4


def test_nothing_is_stored_when_groups_are_too_few(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="at least 3 groups"):
        stored_partition(tmp_path, SplitRule(group_by="folder"), videos(2))
    assert not partition_file(tmp_path, SplitRule(group_by="folder")).exists()


OFFICIAL = SplitRule(partition="official")


def egodex(*parts: str, tasks: int = 8) -> list[tuple[str, str]]:
    """Two videos of every task in each of these top folders."""
    return [
        (f"{part}/task{task}/{number}.mp4", f"{part}-{task}-{number}")
        for part in parts
        for task in range(tasks)
        for number in range(2)
    ]


def test_an_official_partition_tests_on_the_test_folder_and_keeps_tasks_whole_elsewhere(
    tmp_path: Path,
) -> None:
    found = stored_partition(tmp_path, OFFICIAL, egodex("part1", "part2", "test"))
    assert found.grouping == "task"
    names = {path: found.partition.videos[digest] for path, digest in egodex("part1", "part2", "test")}
    assert all((name == "test") == path.startswith("test/") for path, name in names.items())
    for task in range(8):  # a task of both parts is in training or in validation, never in both
        own = {name for path, name in names.items() if f"/task{task}/" in path and name != "test"}
        assert len(own) == 1
    assert {"train", "validation"} <= set(names.values())
    assert stored_partition(tmp_path, OFFICIAL, egodex("part1", "part2", "test")) == found


def test_a_video_in_the_test_folder_and_elsewhere_is_tested_and_its_task_stays(tmp_path: Path) -> None:
    videos = [*egodex("part1", "test"), ("part1/task3/copy.mp4", "test-3-0")]
    partition = stored_partition(tmp_path, OFFICIAL, videos).partition
    assert partition.videos["test-3-0"] == "test"
    assert partition.videos["part1-3-0"] == partition.videos["part1-3-1"] != "test"


def test_an_official_partition_does_not_move_when_videos_are_added(tmp_path: Path) -> None:
    before = dict(stored_partition(tmp_path, OFFICIAL, egodex("part1", "test")).partition.videos)
    grown = stored_partition(tmp_path, OFFICIAL, egodex("part1", "part2", "test", tasks=12)).partition
    assert {digest: grown.videos[digest] for digest in before} == before
    for task in range(8):
        assert grown.videos[f"part2-{task}-0"] == grown.videos[f"part1-{task}-0"]
    assert {grown.videos[f"test-{task}-1"] for task in range(12)} == {"test"}


@pytest.mark.parametrize(
    ("parts", "reason"), [(("part1",), "no video is under test/.*is part1"), (("test",), "all 16 videos are")]
)
def test_an_official_partition_needs_both_kinds_of_folders(
    tmp_path: Path, parts: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(StageError, match=reason):
        stored_partition(tmp_path, OFFICIAL, egodex(*parts))
    assert not partition_file(tmp_path, OFFICIAL).exists()


def test_records_of_a_partition_by_hash_are_those_of_before() -> None:
    assert SplitRule().to_json().keys() == {
        "group_by",
        "validation_fraction",
        "test_fraction",
        "split_seed",
    }
    assert partition_file(Path(), SplitRule()).name == "23dea56d6304.json"
    assert OFFICIAL.to_json()["partition"] == "official"


@pytest.mark.parametrize(
    ("path", "task"),
    [("part1/pour/3.mp4", "pour"), ("test/pour/8.mp4", "pour"), ("pour/3.mp4", "pour"), ("3.mp4", ".")],
)
def test_a_task_is_the_name_of_the_folder_wherever_it_is(path: str, task: str) -> None:
    assert group_of(path, "task") == task
