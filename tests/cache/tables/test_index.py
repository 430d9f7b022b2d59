"""The index and the clip table: what is found equals a plain dictionary, in any arrangement of files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkjepa.cache import CacheError, ClipRow, IndexRow
from thinkjepa.cache.disk import kept
from thinkjepa.cache.disk.layout import clips_dir, index_dir, index_file
from thinkjepa.cache.tables import index as index_module
from thinkjepa.cache.tables.clips import ClipTable
from thinkjepa.cache.tables.index import IdLookup, SetIndex, hash_ids, join_index_files, last_of_equal
from thinkjepa.cache.tables.parquet import (
    CLIPS_SCHEMA,
    INDEX_SCHEMA,
    next_number,
    numbered_files,
    write_table,
)

IDS = st.lists(st.text(alphabet="0123456789abcdef@é\n", max_size=80), max_size=60)


def ok(clip_id: str, row: int) -> IndexRow:
    return IndexRow(clip_id, "ok", row=row, shard=row // 4, token_count=row + 1, checksum=f"{row:08x}")


def failed(clip_id: str, reason: str) -> IndexRow:
    return IndexRow(clip_id, "failed", stage="thinker", reason=reason)


@given(ids=IDS, wanted=IDS)
def test_ids_are_found_at_their_positions(ids: list[str], wanted: list[str]) -> None:
    distinct = sorted(set(ids))
    lookup = IdLookup(pa.array(distinct, pa.string()))
    positions = {name: position for position, name in enumerate(distinct)}
    assert lookup.find_all([*wanted, *ids]).tolist() == [positions.get(name, -1) for name in [*wanted, *ids]]
    assert all(lookup.find(name) == position for name, position in positions.items())


@given(ids=IDS)
def test_of_equal_ids_the_last_place_counts(ids: list[str]) -> None:
    expected = sorted({name: position for position, name in enumerate(ids)}.values())
    assert last_of_equal(pa.array(ids, pa.string())).tolist() == expected


def test_equal_hashes_are_distinguished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thinkjepa.cache.tables.index.hash_ids", lambda ids: np.zeros(len(ids), np.uint64))
    lookup = IdLookup(pa.array(["a", "b", "c"]))
    assert lookup.find_all(["c", "x", "a", "b"]).tolist() == [2, -1, 0, 1]


def test_hashes_spread() -> None:
    ids = pa.array([f"{number:016x}@{frame}" for number in range(500) for frame in range(100)])
    hashes = hash_ids(ids)
    assert len(np.unique(hashes)) == len(ids)
    assert 0.45 < np.mean((hashes >> np.uint64(63)).astype(float)) < 0.55


@settings(max_examples=40)
@given(data=st.data())
def test_an_index_answers_as_a_dictionary_would(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("cache")
    expected: dict[str, IndexRow] = {}
    row = 0
    for number in range(data.draw(st.integers(0, 6))):
        rows = []
        for name in data.draw(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=5)):
            if expected.get(name, failed(name, "")).status == "ok":
                continue
            works = data.draw(st.booleans())
            rows.append(ok(name, row) if works else failed(name, f"run {number}"))
            row += works
            expected[name] = rows[-1]
        write_table(index_file(root, "set", number), rows, INDEX_SCHEMA)
    index = SetIndex(root, "set")
    assert dict(index) == expected
    works = [name for name, item in expected.items() if item.status == "ok"]
    assert sorted(index.clip_ids.to_pylist()) == sorted(works)
    assert index.values_of(works, "checksum") == [expected[name].checksum for name in works]
    assert [index.locate(name) for name in works] == [expected[name].row for name in works]
    assert index.locate("nowhere") is None
    assert set(index.failed) == set(expected) - set(works)


def test_joining_keeps_every_row_and_waits_for_gaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "JOIN", 4)
    folder = index_dir(tmp_path, "set")
    expected = {}
    for number in [*range(18), 20]:
        rows = [ok(f"{number}@{n}", 4 * number + n) for n in range(3)]
        write_table(index_file(tmp_path, "set", number), rows, INDEX_SCHEMA)
        join_index_files(folder)
        expected |= {row.clip_id: row for row in rows}
        assert dict(SetIndex(tmp_path, "set")) == expected
    names = [item.path.name for item in numbered_files(folder)]
    assert names == ["000000-000015.parquet", "000016.parquet", "000017.parquet", "000020.parquet"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert next_number(folder) == 21
    write_table(index_file(tmp_path, "set", 18), [ok("18@0", 72)], INDEX_SCHEMA)
    write_table(index_file(tmp_path, "set", 19), [ok("19@0", 76)], INDEX_SCHEMA)
    join_index_files(folder)
    assert [item.path.name for item in numbered_files(folder)][1:] == [
        "000016-000019.parquet",
        "000020.parquet",
    ]


def test_a_join_that_was_killed_shows_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "JOIN", 4)
    for number in range(4):
        write_table(index_file(tmp_path, "set", number), [ok(f"{number}@0", number)], INDEX_SCHEMA)
    parts = {path.name: path.read_bytes() for path in index_dir(tmp_path, "set").iterdir()}
    join_index_files(index_dir(tmp_path, "set"))
    for name, content in parts.items():
        (index_dir(tmp_path, "set") / name).write_bytes(content)
    assert len(SetIndex(tmp_path, "set")) == 4
    join_index_files(index_dir(tmp_path, "set"))
    assert [path.name for path in index_dir(tmp_path, "set").iterdir()] == ["000000-000003.parquet"]


@pytest.mark.parametrize("held_bytes", [kept.HELD_BYTES, 0], ids=["in memory", "by descriptor"])
def test_a_reader_sees_its_files_while_they_are_joined_and_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_bytes: int
) -> None:
    monkeypatch.setattr(index_module, "JOIN", 4)
    monkeypatch.setattr(kept, "HELD_BYTES", held_bytes)
    rows = [[failed(f"{number}@9", "why"), ok(f"{number}@0", 4 * number)] for number in range(4)]
    for number in (0, 1, 3):  # shards are sealed in any order
        write_table(index_file(tmp_path, "set", number), rows[number], INDEX_SCHEMA)
    readers = [SetIndex(tmp_path, "set") for _ in range(5)]
    write_table(index_file(tmp_path, "set", 2), rows[2], INDEX_SCHEMA)
    join_index_files(index_dir(tmp_path, "set"))
    assert readers[0]["3@0"] == ok("3@0", 12)
    assert readers[1].count_tokens(["3@0", "0@0"]).tolist() == [13, 1]
    assert readers[2].values_of(["3@0", "1@0"], "checksum") == ["0000000c", "00000004"]
    assert set(readers[3].failed) == {f"{number}@9" for number in (0, 1, 3)}
    assert set(SetIndex(tmp_path, "set").failed) == {f"{number}@9" for number in range(4)}
    joined = index_dir(tmp_path, "set") / "000000-000003.parquet"
    write_table(joined, [row for part in rows[1:] for row in part], INDEX_SCHEMA)  # 0@0 and 0@9 are removed
    assert readers[4].tokens_by_clip() == {"0@0": 1, "1@0": 5, "3@0": 13}
    assert readers[0]["0@0"] == ok("0@0", 0)
    assert SetIndex(tmp_path, "set").tokens_by_clip() == {"1@0": 5, "2@0": 9, "3@0": 13}
    with pytest.raises(CacheError, match="clip '0@0' has no features in set"):
        SetIndex(tmp_path, "set").count_tokens(["1@0", "0@0"])  # not those of another clip


def test_clip_rows_that_change_under_a_reader_are_read_as_they_were(
    tmp_path: Path, make_clip: Callable[..., ClipRow]
) -> None:
    path = clips_dir(tmp_path) / "000000.parquet"
    write_table(path, [make_clip("a@4"), make_clip("b@4")], CLIPS_SCHEMA)
    clips = ClipTable(tmp_path).all()
    write_table(path, [make_clip("b@4")], CLIPS_SCHEMA)
    assert list(clips) == [make_clip("a@4"), make_clip("b@4")]
    assert list(ClipTable(tmp_path).all()) == [make_clip("b@4")]


def test_a_damaged_index_file_is_named(tmp_path: Path) -> None:
    write_table(index_file(tmp_path, "set", 0), [ok("a@1", 0)], INDEX_SCHEMA)
    path = index_file(tmp_path, "set", 0)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CacheError, match=r"000000\.parquet"):
        SetIndex(tmp_path, "set")


def test_the_clip_table_keeps_the_newest_row_of_each_key(
    tmp_path: Path, make_clip: Callable[..., ClipRow]
) -> None:
    first = [make_clip(f"{n}@4") for n in range(5)]
    moved = replace(first[2], video="elsewhere.mp4")
    other = make_clip("2@4", thinker="u")
    write_table(clips_dir(tmp_path) / "000000.parquet", first, CLIPS_SCHEMA)
    write_table(clips_dir(tmp_path) / "000001.parquet", [moved, other], CLIPS_SCHEMA)
    table = ClipTable(tmp_path)
    everything = table.all()
    assert sorted(everything, key=lambda clip: (clip.clip_id, clip.thinker_sampling)) == [
        *first[:2],
        moved,
        other,
        *first[3:],
    ]
    usual = table.sampled("thinker", "t", within=everything).by_clip_id()
    assert list(usual) == [first[0], first[1], moved, first[3], first[4]]
    assert usual.values("video")[2] == "elsewhere.mp4"
    assert list(usual.only({"4@4", "0@4", "none"})) == [first[0], first[4]]
    assert usual[-1] == first[4]
    assert list(usual[1:3]) == [first[1], moved]
    assert table.find_all([other, make_clip("9@4"), first[2]]) == [other, None, moved]


def test_an_empty_cache_has_no_clips(tmp_path: Path) -> None:
    assert list(ClipTable(tmp_path).all().by_clip_id()) == []
    assert dict(SetIndex(tmp_path, "set")) == {}
