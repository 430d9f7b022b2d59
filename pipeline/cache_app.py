"""thinkjepa-cache: fill a feature cache and look at it.

The heavy imports (torch, transformers) happen inside the commands, so that --help answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thinkjepa.pipeline.console import (
    EXIT_DONE,
    EXIT_FAILURES,
    errors,
    new_app,
    print_json,
    print_text,
    run_app,
)
from thinkjepa.pipeline.options import with_settings
from thinkjepa.pipeline.reporting import TerminalProgress
from thinkjepa.stages.data.clips import ClipSettings
from thinkjepa.stages.extract.settings import ExecutionSettings, ModelSettings

app = new_app("Fill a feature cache with what two frozen models see in your videos, and look at it.")

VideosOption = Annotated[
    Path, typer.Option("--videos", help="Folder of videos (mp4, mkv, webm, avi, mov), searched recursively.")
]
CacheOption = Annotated[Path, typer.Option("--cache-dir", help="Folder of the cache; made if it is new.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


@app.command("extract")
@with_settings(clips=ClipSettings, models=ModelSettings, execution=ExecutionSettings)
def extract_command(
    *,
    videos: VideosOption,
    cache_dir: CacheOption,
    json: JsonOption = False,
    clips: ClipSettings,
    models: ModelSettings,
    execution: ExecutionSettings,
) -> int:
    """Run thinker and encoder once over every clip of a folder of videos.

    Run it again after adding videos, or after an interruption: what is there is skipped. Another prompt,
    thinker, encoder or dtype makes another feature set in the same cache.

    Exit status: 0 all done; 2 wrong use; 3 done, but more videos failed than --max-failures allows.
    """
    from thinkjepa.pipeline.extract_report import describe_report
    from thinkjepa.stages.extract.extraction import extract

    with TerminalProgress(errors) as progress:
        report = extract(
            videos, cache_dir, clips=clips, models=models, execution=execution, progress=progress
        )
    if json:
        print_json(report.to_json())
    else:
        print_text(describe_report(report))
    return EXIT_FAILURES if report.too_many_failures else EXIT_DONE


@app.command("info")
def info_command(
    *,
    cache: Annotated[Path, typer.Argument(metavar="CACHE", help="Folder of the cache.")],
    json: JsonOption = False,
) -> None:
    """Feature sets with what made them, clips, shapes, bytes on disk, failed videos."""
    from thinkjepa.pipeline.cache_info import cache_info, describe_info

    info = cache_info(cache)
    if json:
        print_json(info)
    else:
        print_text(describe_info(info))


@app.command("estimate")
@with_settings(clips=ClipSettings, models=ModelSettings, execution=ExecutionSettings)
def estimate_command(
    *,
    videos: VideosOption,
    json: JsonOption = False,
    tflops: Annotated[
        float | None,
        typer.Option(
            help="Peak of the machine that will extract, TFLOP/s in the dtype; default: measured here."
        ),
    ] = None,
    clips: ClipSettings,
    models: ModelSettings,
    execution: ExecutionSettings,
) -> None:
    """Clips, gigabytes and hours of an extraction, before anything is run."""
    from thinkjepa.pipeline.estimate_report import describe_estimate
    from thinkjepa.stages.extract.estimate import estimate

    with TerminalProgress(errors) as progress:
        figures = estimate(
            videos, clips=clips, models=models, execution=execution, tflops=tflops, progress=progress
        )
    if json:
        print_json(figures.to_json())
    else:
        print_text(describe_estimate(figures))


def main() -> None:
    run_app(app)
