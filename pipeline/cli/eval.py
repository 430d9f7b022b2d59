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

RolloutOption = Annotated[
    str | None,
    typer.Option(
        "--rollout",
        metavar="STEPS",
        help="Roll the runs out instead, predictions becoming context, and measure over so many latent "
        "steps, e.g. 4,8,16,32. The cache needs as many future windows (extract --future-windows).",
    ),
]

ReportOption = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="DIR",
        help="Write the comparison as one HTML page too, DIR/index.html: answer, figures, and clips with "
        "their videos. It needs no network.",
    ),
]

ReportClipsOption = Annotated[
    str | None,
    typer.Option(
        "--report-clips",
        metavar="ID,...",
        help="Clips that the report shows: ids or VIDEO@FRAME. [default: the best, the median and the worst "
        "of the best run]",
    ),
]

ReportMegabytesOption = Annotated[
    float,
    typer.Option("--report-mb", min=0, help="Megabytes that videos and frames of the report may take."),
]

VideosOption = Annotated[
    Path | None, typer.Option("--videos", help="Folder of the videos, of which the report shows frames.")
]


@app.command(
    epilog=examples(
        "thinkjepa-eval --run runs/thinkjepa-0",
        "thinkjepa-eval --runs runs --out comparison --sort ade_m",
        "thinkjepa-eval --run runs/thinkjepa-0 --rollout 4,8,16",
        "thinkjepa-eval --runs runs --report report --videos videos",
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
    rollout: RolloutOption = None,
    report: ReportOption = None,
    report_clips: ReportClipsOption = None,
    report_mb: ReportMegabytesOption = 20.0,
    videos: VideosOption = None,
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
    writes rollout-SPLIT.json, .md and .png; a later --report shows those in --out. Brackets are 95 %
    intervals, for other groups and other seeds.
    """
    chosen = chosen_runs(run or [], runs)
    wanted = _wanted_report(report, report_clips, videos, report_mb)
    with loading():
        context.with_resource(torch_threads(threads))
    with TerminalProgress(errors) as progress:
        how = Measurement(split, cache_dir, device, progress)
        result, page = _measure(
            how, chosen, out, runs, rollout=rollout, again=again, sort_by=sort, report=wanted
        )
    print_result(json, result, page)


def _wanted_report(
    folder: Path | None, clips: str | None, videos: Path | None, limit_mb: float
) -> WantedReport | None:
    """The report that the flags ask for. Raises StageError for its clips without its folder."""
    if folder is None:
        if clips is not None:
            raise StageError("--report-clips are clips of the report: name its folder with --report")
        return None
    named = tuple(filter(None, map(str.strip, (clips or "").split(","))))
    return WantedReport(folder, named, videos, limit_mb)


def chosen_runs(named: list[Path], beneath: Path | None) -> list[Path]:
    """The runs that are named and those beneath a folder, each once. Raises StageError for none."""
    from thinkjepa.stages.evaluate.runs import runs_under

    found = [*named, *(runs_under(beneath) if beneath else [])]
    if not found:
        raise StageError("no run given: name runs with --run, or a folder of runs with --runs")
    return list({path.resolve(): path for path in found}.values())


@dataclass(frozen=True, slots=True)
class WantedReport:
    """The page that is asked for: its folder, its clips (empty: the usual ones), videos and size limit."""

    folder: Path
    clips: tuple[str, ...]
    videos: Path | None
    limit_mb: float


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
        self,
        runs: list[Path],
        out: Path | None,
        *,
        again: bool,
        sort_by: str | None,
        report: WantedReport | None = None,
    ) -> tuple[dict[str, Any], str]:
        """Compare runs in `out`, those without an evaluation of their weights evaluated first, or all.

        Writes the report of the comparison too where one is asked for.
        """
        from thinkjepa.pipeline.report.evaluation import write_comparison
        from thinkjepa.stages.evaluate.runs import is_evaluated, read_evaluations

        if out is None:
            raise StageError(f"{len(runs)} runs to compare: name a folder for the comparison with --out")
        for path in runs:
            if again or not is_evaluated(path, self.split, cache_dir=self.cache_dir):
                self.evaluate(path)
        evaluated = read_evaluations(runs, self.split)
        comparison, page = write_comparison(out, evaluated, sort_by=sort_by)
        if report is None:
            return dict(comparison), page
        from thinkjepa.pipeline.report.page.build import PageSettings, write_page

        settings = PageSettings(report.clips, report.videos, report.limit_mb, self.cache_dir, self.device)
        written = write_page(
            report.folder,
            comparison,
            evaluated,
            runs,
            settings=settings,
            rollouts=out,
            progress=self.progress,
        )
        return {**comparison, "report": str(written)}, f"{page}\nreport: {written}"

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
    report: WantedReport | None,
) -> tuple[dict[str, Any], str]:
    """Figures and page of what the flags ask for.

    Runs beneath a folder are compared there by default, named ones in the folder of their report.
    """
    place = out or (beneath / COMPARISON if beneath else None)
    if rollout is not None:
        if report is not None:
            raise StageError("--rollout and --report are two steps: roll out first, then write the report")
        return how.roll_out(chosen, rollout, place)
    if len(chosen) == 1 and out is None and report is None:
        return how.evaluate(chosen[0])
    place = place or (report.folder if report else None)
    return how.compare(chosen, place, again=again, sort_by=sort_by, report=report)


def main() -> None:
    run_app(app)
