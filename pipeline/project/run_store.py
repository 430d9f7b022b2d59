"""Runs of all experiments in one folder, `runs_dir` of params.yaml, where they outlive DVC workspaces.

`dvc exp run --queue` and `--temp` check the project out again under PROJECT/.dvc/tmp/exps/, without the files
that git does not keep: videos, models, features, runs. So relative paths start from the project itself.

Training writes into RUNS_DIR/VARIANT-SEED-DIGEST. The digest covers everything that determines the run: an
experiment that was stopped continues there, and one with the same run finds it finished. The run's files are
then copied to the workspace, where DVC expects them.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from thinkjepa.cache import file_digest, fingerprint
from thinkjepa.cache.disk.files import link_or_copy, replace_file
from thinkjepa.pipeline.project.params import model_place
from thinkjepa.stages.data.partition import SplitRule
from thinkjepa.stages.data.tracked_files import Selection
from thinkjepa.stages.device import chosen_threads
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.extract.models.digests import weights_digest
from thinkjepa.stages.extract.models.weights import find_model
from thinkjepa.stages.train.init_from import WarmStart
from thinkjepa.stages.train.model.config import parse_source
from thinkjepa.stages.train.plan import library_versions, same_run
from thinkjepa.stages.train.settings import TrainSettings

HERE = Path()


def find_warm_start(settings: TrainSettings, project: Path = HERE) -> WarmStart | None:
    """The folder in `project` or the hub's snapshot, None where training starts at random.

    Raises StageError where there is no such checkpoint.
    """
    if not settings.starts_from_checkpoint:
        return None
    found = find_model(model_place(settings.init_from, project), revision="main", role="init-from")
    return WarmStart(path=found.path, digest=weights_digest(found))


DIGEST_HEX = 8

WEIGHTS = "checkpoints"


def kept_name(
    settings: TrainSettings,
    split: SplitRule,
    selection: Selection,
    warm_start: WarmStart | None,
    oracle_table: Path | None = None,
) -> str:
    """The folder of a run in `runs_dir`."""
    determines = {
        "settings": asdict(replace(settings, threads=0)),
        "split": asdict(split),
        "selection": _read_of(selection, settings),
        "init_from": warm_start.digest if warm_start else "",
        **({"oracle": file_digest(oracle_table)} if oracle_table and oracle_table.is_file() else {}),
        "threads": chosen_threads(settings.threads),
        "versions": library_versions(),
    }
    return f"{settings.variant}-{settings.seed}-{fingerprint(determines)[:DIGEST_HEX]}"


def _read_of(selection: Selection, settings: TrainSettings) -> dict[str, Any]:
    """The record of a selection, without the history in a run that is not guided by it."""
    record = asdict(selection)
    history = record.pop("history")
    reads_history = parse_source(settings.guidance_source)[0] == "history"
    return {**record, "history": history} if reads_history else record


def find_kept(runs_dir: Path, run: Path) -> Path:
    """The folder in `runs_dir` of the run that `run`/run.json speaks of, which may lack the weights.

    Raises StageError where there is none.
    """
    record = TrainedRun.open(run).record
    for path in sorted(runs_dir.glob(f"*/{record['checkpoint']['file']}")):
        folder = path.parents[1]
        if (folder / "run.json").is_file() and same_run(TrainedRun.open(folder).record, record):
            return folder
    raise StageError(
        f"{str(runs_dir)!r} does not hold the run of {str(run / 'run.json')!r}: it was removed; train again "
        "(dvc repro -f train)"
    )


def show_run(kept: Path, shown: Path) -> None:
    """Copy a run's files to `shown`; weights are linked where both are on one file system."""
    for path in kept.iterdir():
        if path.is_file() and not path.name.startswith("."):
            replace_file(shown / path.name, path.read_bytes())
    for path in (kept / WEIGHTS).glob("*.safetensors"):
        link_or_copy(path, shown / WEIGHTS / path.name)
