"""Several runs side by side, as evaluated on their test clips."""

from __future__ import annotations

from pathlib import Path

from thinkjepa.pipeline.eval_page import comparison_files, comparison_page
from thinkjepa.stages.evaluate import compare
from thinkjepa.stages.evaluate.finished import read_evaluations, runs_beneath


def describe_runs(runs: Path, *, report: Path) -> str:
    """A page on every evaluated run under a folder; `report` is the folder of their comparison."""
    comparison = compare(read_evaluations(runs_beneath(runs), "test"))
    return comparison_page(comparison, comparison_files(report))
