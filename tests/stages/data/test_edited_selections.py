"""Selections that somebody edited: nothing outside the cache is read because of one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from thinkjepa.stages.data.tracked_files import (
    SELECTION_SCHEMA,
    Selection,
    read_selection,
    selected_clip_ids,
    write_selection,
)
from thinkjepa.stages.errors import StageError

MADE = Selection(
    schema=SELECTION_SCHEMA,
    thinker="thinker-" + "0" * 12,
    encoder="encoder-" + "1" * 12,
    num_clips=2,
    clips="a" * 64,
    names="b" * 64,
)


@pytest.mark.parametrize("thinker", [MADE.thinker, ""])
def test_a_selection_comes_back(tmp_path: Path, thinker: str) -> None:
    made = Selection(**{**asdict(MADE), "thinker": thinker})
    write_selection(tmp_path / "selection.json", made)
    assert read_selection(tmp_path / "selection.json") == made


@pytest.mark.parametrize(
    "change",
    [
        {"clips": "../../../s"},
        {"clips": "/etc/passwd"},
        {"clips": 7},
        {"clips": "A" * 64},
        {"clips": "a" * 64 + "\n"},
        {"num_clips": "two"},
        {"num_clips": 2.5},
        {"encoder": "../encoder"},
        {"encoder": ["encoder-" + "1" * 12]},
        {"thinker": None},
        {"names": ""},
        {"another": 1},
        {"schema": "thinkjepa.selection.v0"},
    ],
    ids=str,
)
def test_an_edited_selection_is_refused_in_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "selection.json"
    path.write_text(json.dumps({**asdict(MADE), **change}))
    with pytest.raises(
        StageError, match=r"selection\.json' (is no selection|is damaged or was changed by hand)"
    ):
        read_selection(path)


@pytest.mark.parametrize("content", ["[]", '{"clip_ids": "all"}', '{"clip_ids": [1]}', "{}", "NaN", "["])
def test_an_edited_list_of_clips_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "selections" / f"{'a' * 12}.json"
    path.parent.mkdir()
    path.write_text('{"clip_ids": ["a@8", "b@8"]}')
    assert selected_clip_ids(tmp_path, MADE) == ["a@8", "b@8"]
    path.write_text(content)
    with pytest.raises(StageError, match=r"selections/a+\.json'"):
        selected_clip_ids(tmp_path, MADE)
