"""Files of checked lines: whole records come back, torn and damaged lines do not."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from thinkjepa.cache import CacheError
from thinkjepa.cache.disk.lines import LineFile, checked_lines, read_lines

RECORDS = [{"number": number, "text": "é\n"} for number in range(3)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of three records."""
    with LineFile(tmp_path / "new" / "lines.jsonl") as file:
        file.append(RECORDS[:1])
        file.append(RECORDS[1:], durable=False)
    return tmp_path / "new" / "lines.jsonl"


def test_records_come_back_in_order(path: Path) -> None:
    assert read_lines(path) == RECORDS
    assert checked_lines(path.read_bytes()) == (RECORDS, [])
    assert path.read_bytes().count(b"\n") == len(RECORDS)
    assert read_lines(path.with_name("none.jsonl")) == []


@pytest.mark.parametrize("kept", [1, 8, 9, 20, -1])
def test_a_torn_line_is_no_damage_and_the_next_line_takes_its_place(path: Path, kept: int) -> None:
    *_, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(path.read_bytes()[: -len(last)] + last[:kept])
    assert read_lines(path) == RECORDS[:2]
    assert checked_lines(path.read_bytes()) == (RECORDS[:2], [])
    with LineFile(path) as file:
        file.append([{"number": 9}])
    assert read_lines(path) == [*RECORDS[:2], {"number": 9}]


@pytest.mark.parametrize("line", range(3))
@pytest.mark.parametrize("position", [0, 8, 12, -1])
def test_a_damaged_line_is_named_and_resuming_cuts_the_rest(path: Path, line: int, position: int) -> None:
    lines = [bytearray(content) for content in path.read_bytes().splitlines(keepends=True)]
    lines[line][position] ^= 4
    path.write_bytes(b"".join(lines))
    records, damage = checked_lines(path.read_bytes())
    assert damage == [f"line {line + 1} is damaged (crc32c differs)"]
    assert all(record in RECORDS for record in records)
    with LineFile(path) as file:
        assert file.resume() == RECORDS[:line]
    assert checked_lines(path.read_bytes()) == (RECORDS[:line], [])


def test_a_file_that_another_process_has_open_is_an_error_after_the_wait(path: Path) -> None:
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(CacheError, match=r"lines\.jsonl' is still being written by another process"):
            LineFile(path, patience_s=0)
    LineFile(path, patience_s=0).close()
