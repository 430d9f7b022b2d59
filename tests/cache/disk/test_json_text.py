"""JSON from elsewhere: the value, or one error in words."""

from __future__ import annotations

import json

import pytest

from thinkjepa.cache.disk.json_text import MAX_DEPTH, parse_json
from thinkjepa.cache.disk.lines import checked_lines, encoded
from thinkjepa.cache.records import canonical_json

HOSTILE = {
    "NaN": (b'{"a": NaN}', "holds NaN"),
    "infinity": (b'{"a": -Infinity}', "holds -Infinity"),
    "too large a number": (b'{"a": 1e999}', "too large for a number"),
    "too many digits": (b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
    "deep": (b"[" * 100_000 + b"]" * 100_000, "nested more than"),
    "a little too deep": (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nested more than"),
    "deep between": (b'{"a":' * 70 + b"1" + b"}" * 70, "nested more than"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "Latin-1": ('{"a": "é"}'.encode("latin-1"), "not UTF-8"),
    "with a mark": (b'\xef\xbb\xbf{"a": 1}', "BOM"),
    "half a pair": (b'{"a": "\\ud800"}', "half of a surrogate pair"),
    "cut": (b'{"a": [1, 2', "Expecting"),
    "empty": (b"", "Expecting value"),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE)
def test_what_our_files_never_hold_is_one_error(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(content)


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.5, None, True, "é\u001b[31m", "\U0001f600"]},
        [[]] * 1000,
        json.loads("[" * 60 + "]" * 60),
        "text",
        7,
    ],
)
def test_every_other_value_comes_back(value: object) -> None:
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


def test_a_line_with_the_right_checksum_and_no_record_is_damaged() -> None:
    """As of a cache from elsewhere, whose lines were written by hand."""
    good = encoded([{"a": 1}])
    assert checked_lines(good) == ([{"a": 1}], [])
    for body in ("[1]", "NaN", '{"a": 1e999}', "[" * 5000 + "]" * 5000):
        content = good + _line(body)
        records, damage = checked_lines(content)
        assert records == [{"a": 1}]
        assert damage == ["line 2 is damaged (crc32c differs)"]


def _line(body: str) -> bytes:
    from thinkjepa.cache.disk.files import checksum

    return f"{checksum([body.encode()])} {body}\n".encode()


def test_our_own_writer_never_writes_such_numbers() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))
