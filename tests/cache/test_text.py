"""Text that others chose: no character of it steers a terminal, and no address in it holds a password."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from thinkjepa.cache.disk.layout import holder_file
from thinkjepa.cache.disk.lock import WriteLock
from thinkjepa.cache.text import printable, without_passwords

HARMLESS = "a b\tc\n§ 中文 \u200d 👩\u200d💻 é \xa0 [red] \\u001b"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", "\\u001b]0;title\\u0007"),
        ("a\rb\x08\x7f\x00", "a\\u000db\\u0008\\u007f\\u0000"),
        ("\x9b2J", "\\u009b2J"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("one\u2028two\u2066", "one\\u2028two\\u2066"),
        ("not utf-8 \udcff", "not utf-8 \\udcff"),
        (HARMLESS, HARMLESS),
    ],
)
def test_control_characters_are_escaped_and_nothing_else(text: str, shown: str) -> None:
    assert printable(text) == shown
    printable(text).encode()


def test_json_has_the_same_value_after_it() -> None:
    value = {"name": "".join(map(chr, range(0x20))) + "\x7f\x9b\u202e\u2028"}
    written = printable(json.dumps(value, ensure_ascii=False))
    assert written.isprintable()
    assert json.loads(written) == value


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:secret@gpu7:8000/v1", "http://***@gpu7:8000/v1"),
        ("--vllm-url 'https://me:se@cr@et@gpu7'", "--vllm-url 'https://***@gpu7'"),
        ("http://secret@gpu7 and tls://a:secret@b", "http://***@gpu7 and tls://***@b"),
        ("http://gpu7:8000/a@b?c=d@e", "http://gpu7:8000/a@b?c=d@e"),
        ("cup.mp4@69 of me@home, tcp://head:8786", "cup.mp4@69 of me@home, tcp://head:8786"),
    ],
)
def test_an_address_keeps_all_but_its_login(text: str, shown: str) -> None:
    assert without_passwords(text) == shown


def test_the_record_next_to_a_lock_has_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["thinkjepa-cache", "--vllm-url", "http://me:secret@gpu7:8000"])
    with WriteLock(tmp_path, remedy="wait"):
        record = holder_file(tmp_path).read_text()
    assert "secret" not in record
    assert "http://***@gpu7:8000" in record
