"""Several runs side by side, as evaluated on their test clips."""

from __future__ import annotations

from pathlib import Path

from thinkjepa.pipeline.eval_markdown import comparison_markdown
from thinkjepa.stages.evaluate import compare
from thinkjepa.stages.evaluate.finished import read_evaluations, runs_beneath


def describe_runs(runs: Path) -> str:
    """The comparison of every evaluated run under a folder, as Markdown."""
    return comparison_markdown(compare(read_evaluations(runs_beneath(runs), "test"))).rstrip()
