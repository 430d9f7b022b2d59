"""Evaluations that are there already: which runs a folder holds, and whether theirs still speak of them."""

from collections.abc import Sequence
from pathlib import Path

from thinkjepa.stages.data.tracked_files import labels_digest
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.groups import EvaluatedRun
from thinkjepa.stages.evaluate.metrics import VALIDATION_METRICS
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.evaluate.table import ClipTable, table_path
from thinkjepa.stages.json_files import read_json


def runs_beneath(folder: Path) -> list[Path]:
    """Folders of finished training runs at any depth, sorted. Raises StageError where there is none."""
    found = sorted(path.parent for path in folder.glob("**/run.json"))
    if not found:
        raise StageError(f"{str(folder)!r} holds no finished training run (a folder with run.json)")
    return found


def read_evaluations(run_dirs: Sequence[Path], side: str) -> list[EvaluatedRun]:
    """Evaluations of runs on one side; each run's name is its folder's, as short as tells them apart.

    Raises StageError where one is missing, or is not of the weights that the run has now.
    """
    names = _names(run_dirs)
    return [
        EvaluatedRun(name, _current_table(path, side), _validation(path))
        for name, path in zip(names, run_dirs, strict=True)
    ]


def is_evaluated(run_dir: Path, side: str, *, cache_dir: Path | None = None) -> bool:
    """Whether the run has an evaluation of its present weights and split, and of the labels there are now."""
    try:
        table = _current_table(run_dir, side)
    except StageError:
        return False
    if not table.record["joints"]:
        return True
    cache = TrainedRun.open(run_dir).cache(cache_dir)
    return bool(table.record["labels"] == labels_digest(cache, set(table.video_digests)))


def _current_table(run_dir: Path, side: str) -> ClipTable:
    run, table = TrainedRun.open(run_dir), ClipTable.read(table_path(run_dir, side))
    found = (table.record["checkpoint_sha256"], table.record["split_sha256"])
    if found != (run.record["checkpoint"]["sha256"], run.record["split_sha256"]):
        raise StageError(
            f"{str(table_path(run_dir, side))!r} is of an earlier training: run thinkjepa-eval --run "
            f"{run_dir} again"
        )
    return table


def _validation(run_dir: Path) -> dict[str, float]:
    metrics = read_json(run_dir / "metrics.json")
    return {name: metrics[name] for name in VALIDATION_METRICS if metrics.get(name) is not None}


def _names(run_dirs: Sequence[Path]) -> list[str]:
    names = [path.resolve().name for path in run_dirs]
    return names if len(set(names)) == len(names) else [str(path) for path in run_dirs]
