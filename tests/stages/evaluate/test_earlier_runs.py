"""Runs as earlier versions wrote them: read to the same figures, or refused in one clear line.

`earlier_runs.tar.xz` is kept as it was written: `cache` and `run`, which is guided by `oracle:moment` and
evaluated, before tables of clips had the errors of single joints and oracles several columns; `first` in the
first format of runs.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.compared.comparison import compare
from thinkjepa.stages.evaluate.evaluation import evaluate
from thinkjepa.stages.evaluate.rollout import evaluate_rollout
from thinkjepa.stages.evaluate.runs import TrainedRun, read_evaluations

ARCHIVE = Path(__file__).with_name("earlier_runs.tar.xz")


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_a_run_of_an_earlier_version_is_evaluated_to_the_same_figures(earlier: Path) -> None:
    run = earlier / "run"
    before = json.loads((run / "eval-test.json").read_text())
    (column,) = TrainedRun.open(run).guidance_source.columns
    assert (column.column, column.classes, len(column.class_of)) == ("moment", ("20", "8"), 10)
    (entry, *_) = compare(read_evaluations([run], "test"))["entries"]
    assert entry["metrics"]["ade_m"]["mean"] == pytest.approx(before["trajectory"]["model"]["ade_m"])
    assert "ade_m_by_joint" not in entry, "its table has none"

    after = evaluate(run)
    assert before["joints"] == after["joints"]
    for kind in ("latent", "trajectory"):
        assert before[kind].keys() == after[kind].keys()
        for method, figures in before[kind].items():
            assert after[kind][method] == pytest.approx(figures, rel=1e-4), method
    for joint, curve in before["ade_m_by_joint"]["model"].items():
        assert after["ade_m_by_joint"]["model"][joint] == pytest.approx(curve, rel=1e-4)
    (rolled,) = evaluate_rollout(run, horizons=[2])["horizons"]
    assert rolled["latent"]["model"]["l2"]["mean"] == pytest.approx(after["latent"]["model"]["l2"])


def test_a_run_of_the_first_format_is_refused_in_one_line(earlier: Path) -> None:
    with pytest.raises(StageError) as refused:
        TrainedRun.open(earlier / "first")
    assert str(refused.value).endswith(
        "has schema 'thinkjepa.run.v1', this version reads 'thinkjepa.run.v2': train again"
    )
    assert "\n" not in str(refused.value)
