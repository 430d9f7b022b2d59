"""The table of clips: whole or not there, and its scores as they were written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.scores import Score
from thinkjepa.stages.evaluate.table import EVALUATION_SCHEMA, ClipTable, ClipTableWriter, lists, numbers
from thinkjepa.stages.intervals import Floats

RECORD = {"schema": EVALUATION_SCHEMA}


def part_of(first: int, number: int) -> dict[str, pa.Array]:
    scores = np.arange(first, first + number, dtype=np.float64)
    scores[scores == 1] = np.nan
    return {
        "clip_id": pa.array([f"clip {place}" for place in range(first, first + number)]),
        "model_l2": numbers(scores),
        "model_l2_by_step": lists(np.stack((scores, scores + 0.5), axis=1)),
    }


def curves(table: ClipTable) -> Floats:
    """L2 at both latent steps, `(clip, step)`."""
    return np.stack([table.scores[Score("model", "l2", step)] for step in (1, 2)], axis=1)


def test_scores_come_back_in_order_whatever_the_parts(tmp_path: Path) -> None:
    with ClipTableWriter(tmp_path / "t.parquet", RECORD) as table:
        for first in range(0, 600, 3):
            table.append(part_of(first, 3))
    found = ClipTable.read(tmp_path / "t.parquet")
    expected = np.arange(600.0)
    expected[1] = np.nan
    np.testing.assert_array_equal(found.scores[Score("model", "l2")], expected)
    np.testing.assert_array_equal(curves(found), np.stack((expected, expected + 0.5), axis=1))
    assert pq.ParquetFile(tmp_path / "t.parquet").num_row_groups == 3
    assert pq.read_table(tmp_path / "t.parquet")["model_l2"][1].as_py() is None


def test_clips_are_chosen_in_the_order_asked_for(tmp_path: Path) -> None:
    with ClipTableWriter(tmp_path / "t.parquet", RECORD) as table:
        table.append(part_of(2, 4))
    chosen = ClipTable.read(tmp_path / "t.parquet").only(["clip 5", "clip 3"])
    assert chosen.clip_ids == ["clip 5", "clip 3"]
    assert curves(chosen).tolist() == [[5.0, 5.5], [3.0, 3.5]]


def test_a_link_under_the_temporary_name_of_this_process_is_not_met(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / f".t.parquet.{os.getpid()}.tmp").symlink_to(tmp_path / "victim")
    with ClipTableWriter(tmp_path / "t.parquet", RECORD) as table:
        table.append(part_of(0, 2))
    assert (tmp_path / "victim").read_text() == "mine"
    assert ClipTable.read(tmp_path / "t.parquet").clip_ids == ["clip 0", "clip 1"]


def test_an_interrupted_evaluation_leaves_the_earlier_table_and_no_rest(tmp_path: Path) -> None:
    with ClipTableWriter(tmp_path / "t.parquet", RECORD) as table:
        table.append(part_of(0, 2))
    before = (tmp_path / "t.parquet").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        with ClipTableWriter(tmp_path / "t.parquet", RECORD) as table:
            table.append(part_of(0, 300))
            raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]
    assert (tmp_path / "t.parquet").read_bytes() == before


def test_files_that_are_no_evaluation_of_this_version_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="does not exist: run thinkjepa-eval on that run first"):
        ClipTable.read(tmp_path / "none.parquet")
    pq.write_table(pa.table({"clip_id": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(StageError, match="has schema None, this version reads"):
        ClipTable.read(tmp_path / "other.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(StageError, match=r"broken\.parquet.* cannot be read"):
        ClipTable.read(tmp_path / "broken.parquet")
