"""thinkjepa-stage: the steps of dvc.yaml, each from params.yaml to small files that DVC tracks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from thinkjepa.pipeline.cli.console import (
    EXIT_DONE,
    EXIT_FAILURES,
    counted,
    errors,
    new_app,
    print_text,
    run_app,
)
from thinkjepa.pipeline.cli.progress import TerminalProgress, TrainingBar
from thinkjepa.pipeline.project.params import read_params
from thinkjepa.stages.json_files import write_json

app = new_app("The steps of dvc.yaml. For work by hand there are thinkjepa-cache, -train and -eval.")

ParamsOption = Annotated[Path, typer.Option("--params", help="The pipeline's settings.")]

ACCEPT_BY = "execution.max_failures in params.yaml"

RETRY_BY = "execution.retry_failed: true in params.yaml, then `dvc repro -f extract`,"

DEFAULT_PARAMS = Path("params.yaml")

DIGESTS = Path(".dvc", "tmp", "thinkjepa-digests.json")
"""In the project's own folder, so that experiments share it; nothing that git or DVC keeps."""


@app.command("clips")
def clips_command(
    *,
    out: Annotated[Path, typer.Option(help="The manifest to write.")],
    tables: Annotated[
        Path | None, typer.Option(help="File for the digest of the oracle's table, if training reads one.")
    ] = None,
    params: ParamsOption = DEFAULT_PARAMS,
) -> None:
    """List the videos with the digests of their contents, so that any change of the folder is seen.

    Only files that changed since the last run are read: digests are remembered in .dvc/tmp of the project.
    """
    from thinkjepa.stages.data.tracked_files import folder_manifest, table_manifest
    from thinkjepa.stages.data.videos import DigestMemory

    settings = read_params(params)
    memory = DigestMemory(settings.project / DIGESTS)
    with TerminalProgress(errors) as progress:
        manifest = folder_manifest(
            settings.videos, progress=progress, memory=memory, clips_file=settings.clips_file
        )
    memory.save()
    write_json(out, manifest)
    if tables:
        training = settings.train.in_effect()  # the table counts only where a source reads it
        table = settings.project / training.oracle_table if training.oracle_table else None
        write_json(tables, table_manifest(table))


@app.command("extract")
def extract_command(
    *,
    out: Annotated[
        Path,
        typer.Option(help="Folder for a selection per variant, VARIANT.json: the clips and sets it reads."),
    ],
    params: ParamsOption = DEFAULT_PARAMS,
) -> int:
    """Extract what the cache misses and name the chosen features; fails beyond execution.max_failures."""
    from thinkjepa.pipeline.report.extraction import describe_report
    from thinkjepa.stages.data.tracked_files import make_selection, without_thinker, write_selection
    from thinkjepa.stages.extract.run import extract
    from thinkjepa.stages.train.model.config import WITHOUT_THINKER, Variant

    settings = read_params(params)
    with TerminalProgress(errors) as progress:
        report = extract(
            settings.videos,
            settings.cache_dir,
            clips=settings.clips,
            models=settings.models,
            execution=settings.execution,
            progress=progress,
            vllm=settings.vllm,
            clips_file=settings.clips_file,
        )
    print_text(describe_report(report, accept_by=ACCEPT_BY, retry_by=RETRY_BY))
    if report.too_many_failures:
        return EXIT_FAILURES
    selection = make_selection(
        settings.cache_dir,
        thinker_set=report.thinker_set,
        encoder_set=report.encoder_set,
        clip_ids=report.clip_ids,
        history_set=report.history_set,
    )
    encoder_alone = without_thinker(settings.cache_dir, selection)
    for variant in get_args(Variant):
        write_selection(out / f"{variant}.json", encoder_alone if variant in WITHOUT_THINKER else selection)
    return EXIT_DONE


@app.command("train")
def train_command(
    *,
    selection: Annotated[Path, typer.Option(help="The features to train on.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    variant: Annotated[str, typer.Option(help="thinkjepa, jepa, vlm or poses.")],
    seed: Annotated[int, typer.Option(help="Seed of initial weights and data order.")],
    params: ParamsOption = DEFAULT_PARAMS,
) -> None:
    """Train one cell of the matrix of variants and seeds."""
    from thinkjepa.pipeline.project.run_store import find_warm_start, kept_name, show_run
    from thinkjepa.pipeline.report.training import describe_metrics
    from thinkjepa.stages.data.tracked_files import read_selection
    from thinkjepa.stages.train.run import train

    settings = read_params(params)
    training = settings.training(variant=variant, seed=seed)
    warm_start, chosen = find_warm_start(training, settings.project), read_selection(selection)
    table = settings.project / training.oracle_table if training.oracle_table else None
    run: Path = out
    if settings.runs_dir:
        run = settings.runs_dir / kept_name(training, settings.split, chosen, warm_start, table)
    with TrainingBar(errors) as bar:
        metrics = train(
            settings.cache_dir,
            run,
            training,
            thinker_set=None,
            encoder_set=None,
            split=settings.split,
            oracle_table=table,
            progress=bar,
            selection=chosen,
            warm_start=warm_start,
            report=bar.report,
            owns_out_dir=True,
            on_wait=bar.report,  # another experiment may train the same run: it is then found finished
        )
    if run != out:
        show_run(run, out)
    print_text(describe_metrics(run, metrics))


@app.command("evaluate")
def evaluate_command(
    *,
    run: Annotated[Path, typer.Option(help="Folder of the run.")],
    mark: Annotated[Path, typer.Option(help="File that names the digests of what was written.")],
    params: ParamsOption = DEFAULT_PARAMS,
) -> None:
    """Measure a run on its test clips."""
    from thinkjepa.pipeline.project.run_store import find_kept, show_run
    from thinkjepa.pipeline.report.evaluation import evaluate_run, evaluation_digests

    settings = read_params(params)
    kept = find_kept(settings.runs_dir, run) if settings.runs_dir else run
    with TerminalProgress(errors) as progress:
        _, page = evaluate_run(
            kept,
            split="test",
            cache_dir=settings.cache_dir,
            device="auto",
            progress=progress,
            on_wait=progress.note,
        )
    if kept != run:
        show_run(kept, run)
    write_json(mark, evaluation_digests(run, split="test"))
    print_text(page)


@app.command("report")
def report_command(
    *,
    runs: Annotated[Path, typer.Option(help="Folder of the runs, named VARIANT-SEED.")],
    out: Annotated[Path, typer.Option(help="Folder of the comparison.")],
    params: ParamsOption = DEFAULT_PARAMS,
) -> None:
    """Compare all runs of the matrix on their test clips."""
    from thinkjepa.pipeline.report.evaluation import write_comparison
    from thinkjepa.stages.evaluate.runs import read_evaluations

    settings = read_params(params)
    chosen = [runs / f"{variant}-{seed}" for variant in settings.variants for seed in settings.seeds]
    write_comparison(out, read_evaluations(chosen, "test"))
    print_text(f"{counted(len(chosen), 'run')} compared: {out / 'comparison.md'}")


def main() -> None:
    run_app(app)
