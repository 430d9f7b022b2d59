"""thinkjepa-eval: measure trained runs on clips that training has not touched, and compare them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from thinkjepa.pipeline.cli.console import JsonOption, errors, loading, new_single_app, print_result, run_app
from thinkjepa.pipeline.cli.help import examples
from thinkjepa.pipeline.cli.options import DeviceOption, RunCacheOption, ThreadsOption, with_settings
from thinkjepa.pipeline.cli.progress import TerminalProgress
from thinkjepa.stages.data.partition import SplitName
from thinkjepa.stages.device import torch_threads
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
    cache_dir: RunCacheOption = None,
    rollout: Annotated[
        str | None,
        typer.Option(
            "--rollout",
            metavar="STEPS",
            help="Roll the runs out instead, predictions becoming context, and measure over so many latent "
            "steps, e.g. 4,8,16,32. The cache needs as many future windows (extract --future-windows).",
        ),
    ] = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
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
    writes rollout-SPLIT.json, .md and .png. Brackets are 95 % intervals, for other groups and other seeds.
    """
    chosen = chosen_runs(run or [], runs)
    with loading():
        context.with_resource(torch_threads(threads))
    with TerminalProgress(errors) as progress:
        how = Measurement(split, cache_dir, device, progress)
        result, page = _measure(how, chosen, out, runs, rollout=rollout, again=again, sort_by=sort)
    print_result(json, result, page)


def chosen_runs(named: list[Path], beneath: Path | None) -> list[Path]:
    """The runs that are named and those beneath a folder, each once. Raises StageError for none."""
    from thinkjepa.stages.evaluate.runs import runs_under

    found = [*named, *(runs_under(beneath) if beneath else [])]
    if not found:
        raise StageError("no run given: name runs with --run, or a folder of runs with --runs")
    return list({path.resolve(): path for path in found}.values())


@dataclass(frozen=True, slots=True)
class Measurement:
    """Clips, cache, device and progress of a measurement. Each way to measure returns figures and a page."""

    split: SplitName
    cache_dir: Path | None
    device: str
    progress: Progress

    def evaluate(self, run: Path) -> tuple[dict[str, Any], str]:
        """Evaluate one run, into its folder."""
        from thinkjepa.pipeline.report.evaluation import evaluate_run

        return evaluate_run(
            run, split=self.split, cache_dir=self.cache_dir, device=self.device, progress=self.progress
        )

    def compare(
        self, runs: list[Path], out: Path | None, *, again: bool, sort_by: str | None
    ) -> tuple[dict[str, Any], str]:
        """Compare runs in `out`, those without an evaluation of their weights evaluated first, or all."""
        from thinkjepa.pipeline.report.evaluation import write_comparison
        from thinkjepa.stages.evaluate.runs import is_evaluated, read_evaluations

        if out is None:
            raise StageError(f"{len(runs)} runs to compare: name a folder for the comparison with --out")
        for path in runs:
            if again or not is_evaluated(path, self.split, cache_dir=self.cache_dir):
                self.evaluate(path)
        comparison, page = write_comparison(out, read_evaluations(runs, self.split), sort_by=sort_by)
        return dict(comparison), page

    def roll_out(self, runs: list[Path], horizons: str, out: Path | None) -> tuple[dict[str, Any], str]:
        """Roll runs out over horizons such as `4,8`, into their folders, and compare them in `out`."""
        from thinkjepa.pipeline.report.evaluation import parse_horizons, roll_out_runs

        return roll_out_runs(
            runs,
            horizons=parse_horizons(horizons),
            split=self.split,
            cache_dir=self.cache_dir,
            device=self.device,
            out=out,
            progress=self.progress,
        )


def _measure(
    how: Measurement,
    chosen: list[Path],
    out: Path | None,
    beneath: Path | None,
    *,
    rollout: str | None,
    again: bool,
    sort_by: str | None,
) -> tuple[dict[str, Any], str]:
    """Figures and page of what the flags ask for. Runs beneath a folder are compared there by default."""
    place = out or (beneath / COMPARISON if beneath else None)
    if rollout is not None:
        return how.roll_out(chosen, rollout, place)
    if len(chosen) == 1 and out is None:
        return how.evaluate(chosen[0])
    return how.compare(chosen, place, again=again, sort_by=sort_by)


def main() -> None:
    run_app(app)
