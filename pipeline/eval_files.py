"""The files of an evaluation for people: Markdown and pictures, beside the figures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from thinkjepa.cache.disk import replace_file
from thinkjepa.cache.holder import WAIT, WriteLock
from thinkjepa.pipeline.eval_markdown import comparison_markdown
from thinkjepa.pipeline.eval_page import comparison_files, comparison_page, run_files
from thinkjepa.pipeline.eval_plots import difference_picture, distance_picture, horizon_picture
from thinkjepa.stages.evaluate import EvaluatedRun, compare, evaluate
from thinkjepa.stages.evaluate.clip_table import table_path
from thinkjepa.stages.evaluate.finished import read_evaluations
from thinkjepa.stages.evaluate.trained_run import TrainedRun
from thinkjepa.stages.json_files import write_json
from thinkjepa.stages.progress import Progress


def evaluate_run(
    run_dir: Path,
    *,
    split: str,
    cache_dir: Path | None,
    device: str,
    progress: Progress,
    on_wait: Callable[[str], None] | None = None,
) -> tuple[dict[str, Any], str]:
    """Evaluate one run and write eval-<split>.json, .parquet, .md and .png into it.

    Returns the figures and a page for the terminal. `on_wait` as in `WriteLock`.
    """
    TrainedRun.open(run_dir)  # refused before anything is written there
    with WriteLock(run_dir, remedy=WAIT, on_wait=on_wait):
        result = evaluate(run_dir, split=split, cache_dir=cache_dir, device=device, progress=progress)
        comparison = compare(read_evaluations([run_dir], split))
        replace_file(run_dir / f"eval-{split}.md", comparison_markdown(comparison).encode())
        replace_file(run_dir / f"eval-{split}.png", horizon_picture(comparison))
    return result, comparison_page(comparison, run_files(run_dir, split))


def evaluation_digests(run_dir: Path, *, split: str) -> dict[str, str]:
    """sha256 of the files that a comparison stands on, by name: small, and changed when they are."""
    files = (run_dir / f"eval-{split}.json", table_path(run_dir, split))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write_comparison(
    out: Path, runs: Sequence[EvaluatedRun], *, sort_by: str | None = None
) -> tuple[Mapping[str, Any], str]:
    """Compare runs and write comparison.json, comparison.md and three pictures into `out`.

    Returns the comparison and a page for the terminal.
    """
    comparison = compare(runs, sort_by=sort_by)
    with WriteLock(out, remedy=WAIT):
        write_json(out / "comparison.json", comparison)
        replace_file(out / "comparison.md", comparison_markdown(comparison).encode())
        replace_file(out / "horizon.png", horizon_picture(comparison))
        replace_file(out / "distances.png", distance_picture(comparison))
        replace_file(out / "differences.png", difference_picture(comparison))
    return comparison, comparison_page(comparison, comparison_files(out))
