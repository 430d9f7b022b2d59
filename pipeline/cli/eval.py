"""thinkjepa-eval: measure trained runs on clips that training has not touched, and compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from thinkjepa.pipeline.cli.console import JsonOption, errors, loading, new_single_app, print_result, run_app
from thinkjepa.pipeline.cli.help import examples
from thinkjepa.pipeline.cli.options import with_settings
from thinkjepa.pipeline.cli.progress import TerminalProgress
from thinkjepa.stages.data.partition import SplitName
from thinkjepa.stages.device import DEVICES, THREADS_HELP, torch_threads
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.progress import Progress

app = new_single_app()

COMPARISON = "comparison"


@app.command(
    epilog=examples(
        "thinkjepa-eval --run runs/thinkjepa-0",
        "thinkjepa-eval --runs runs --out comparison --sort ade_m",
        "thinkjepa-eval --run runs/thinkjepa-0 --rollout 4,8,16",
    )
)
@with_settings(keys={"device": "execution.device", "cache_dir": None})
def eval_command(
    *,
    context: typer.Context,
    run: Annotated[
        list[Path] | None,
        typer.Option("--run", help="Folder of a finished training run; several are compared."),
    ] = None,
    runs: Annotated[
        Path | None, typer.Option("--runs", help="A folder: compare all finished runs in it, at any depth.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder of the comparison. [default: comparison, in the folder that --runs names]"
        ),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort",
            metavar="METRIC",
            help="What the runs' table is sorted by: validation_distance_m, validation_latent_error, "
            "validation_loss, or a test metric such as ade_m. [default: the joints' distance, or the "
            "latents' error, on validation clips]",
        ),
    ] = None,
    split: Annotated[SplitName, typer.Option(help="Which of the run's clips are measured.")] = "test",
    cache_dir: Annotated[
        Path | None,
        typer.Option("--cache-dir", help="The cache, where it is no longer where the run found it."),
    ] = None,
    rollout: Annotated[
        str | None,
        typer.Option(
            "--rollout",
            metavar="STEPS",
            help="Roll the runs out instead, predictions becoming context, and measure over so many latent "
            "steps, e.g. 4,8,16,32. The cache needs as many future windows (extract --future-windows).",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help=f"Where to compute: {DEVICES}.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help=THREADS_HELP)] = 0,
    again: Annotated[
        bool, typer.Option("--again", help="Evaluate runs anew that have an evaluation of their weights.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Distances of predicted latents and hand joints, beside methods without training on the same clips.

    Prints a table, what the differences support in words, and where the rest is. One run: writes
    eval-SPLIT.json, .parquet (a row per clip: scores, predicted joints), .md, .png and SPLIT.json (the few
    numbers that fit a line) into the run. Several: evaluates those that are not evaluated yet and writes
    comparison.json, comparison.md, horizon.png, distances.png and differences.png to --out: a row per
    setting, the best on validation clips first, seeds aggregated, differences paired by clip. --rollout
    writes rollout-SPLIT.json, .md and .png. Brackets are 95 % intervals, for other groups of videos and other
    seeds.
    """
    chosen = chosen_runs(run or [], runs)
    with loading():
        context.with_resource(torch_threads(threads))
    with TerminalProgress(errors) as progress:
        if rollout is not None:
            place = out or (runs / COMPARISON if runs else None)
            result, page = _rolled_out(chosen, rollout, place, split, cache_dir, device, progress)
        elif len(chosen) == 1 and out is None:
            result, page = _one(chosen[0], split, cache_dir, device, progress)
        else:
            place = out or (runs / COMPARISON if runs else None)
            result, page = _several(
                chosen, place, split, cache_dir, device, progress, again=again, sort_by=sort
            )
    print_result(json, result, page)


def chosen_runs(named: list[Path], beneath: Path | None) -> list[Path]:
    """The runs that are named and those beneath a folder, each once. Raises StageError for none."""
    from thinkjepa.stages.evaluate.runs import runs_under

    found = [*named, *(runs_under(beneath) if beneath else [])]
    if not found:
        raise StageError("no run given: name runs with --run, or a folder of runs with --runs")
    return list({path.resolve(): path for path in found}.values())


def _one(
    run: Path, split: SplitName, cache_dir: Path | None, device: str, progress: Progress
) -> tuple[dict[str, Any], str]:
    from thinkjepa.pipeline.report.evaluation import evaluate_run

    return evaluate_run(run, split=split, cache_dir=cache_dir, device=device, progress=progress)


def _rolled_out(
    chosen: list[Path],
    horizons: str,
    out: Path | None,
    split: SplitName,
    cache_dir: Path | None,
    device: str,
    progress: Progress,
) -> tuple[dict[str, Any], str]:
    from thinkjepa.pipeline.report.evaluation import parse_horizons, roll_out_runs

    return roll_out_runs(
        chosen,
        horizons=parse_horizons(horizons),
        split=split,
        cache_dir=cache_dir,
        device=device,
        out=out,
        progress=progress,
    )


def _several(
    chosen: list[Path],
    out: Path | None,
    split: SplitName,
    cache_dir: Path | None,
    device: str,
    progress: Progress,
    *,
    again: bool,
    sort_by: str | None,
) -> tuple[dict[str, Any], str]:
    from thinkjepa.pipeline.report.evaluation import write_comparison
    from thinkjepa.stages.evaluate.runs import is_evaluated, read_evaluations

    if out is None:
        raise StageError(f"{len(chosen)} runs to compare: name a folder for the comparison with --out")
    for path in chosen:
        if again or not is_evaluated(path, split, cache_dir=cache_dir):
            _one(path, split, cache_dir, device, progress)
    comparison, page = write_comparison(out, read_evaluations(chosen, split), sort_by=sort_by)
    return dict(comparison), page


def main() -> None:
    run_app(app)
