"""thinkjepa-data: hand labels of videos, checked before anything is trained, and put into a cache."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from thinkjepa.pipeline.cli.console import (
    EXIT_DONE,
    EXIT_FAILURES,
    JsonOption,
    errors,
    new_app,
    print_result,
    run_app,
)
from thinkjepa.pipeline.cli.help import examples
from thinkjepa.pipeline.cli.progress import TerminalProgress

app = new_app("Check the hand labels of videos, and put them into a cache.")

DECODE_TIMEOUT_S = 60.0


@app.command(
    "check",
    epilog=examples(
        "thinkjepa-data check videos --plot labels.png",
        "thinkjepa-data check videos --cache-dir features",
    ),
)
def check_command(
    *,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of videos with their labels.")],
    plot: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Draw the hands of some videos over their frames.")
    ] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            help="Also report labels that this cache lacks or holds in another version, and draw the part of "
            "a frame that its encoder uses."
        ),
    ] = None,
    json: JsonOption = False,
) -> int:
    """Say what is wrong with the labels: counts, intrinsics, held samples, jumps, joints never known.

    Labels are looked for in a file next to each video, and in a table joints.parquet or joints.csv of its
    folder or above. A table's positions are in the camera's frame unless its column reference_frame says
    world.

    Exit status: 0 usable, perhaps with warnings; 3 some label files cannot be used; 2 wrong use.
    """
    from thinkjepa.cache import FeatureCache
    from thinkjepa.cache.disk.files import replace_file
    from thinkjepa.pipeline.picture.labels import draw, encoder_framing, labeled_videos
    from thinkjepa.pipeline.report.labels import describe_check
    from thinkjepa.stages.data.decoding.client import VideoDecoder
    from thinkjepa.stages.data.labels.check import check_folder
    from thinkjepa.stages.data.videos import find_videos

    cache = FeatureCache.open(cache_dir) if cache_dir else None
    files = find_videos(folder)
    with TerminalProgress(errors) as progress, VideoDecoder(timeout_s=DECODE_TIMEOUT_S) as decoder:
        check = check_folder(
            files, folder, decoder=decoder, progress=progress, cached=cache.labels if cache else None
        )
        if plot:
            framing, encoder = encoder_framing(cache)
            views = labeled_videos(check, folder, decoder=decoder, framing=framing)
            replace_file(plot, draw(views, check, encoder=encoder))
    print_result(
        json,
        {**check.to_json(), "picture": str(plot) if plot else None},
        describe_check(check) + (f"\npicture: {plot}" if plot else ""),
    )
    return EXIT_FAILURES if check.num_errors else EXIT_DONE


@app.command("import", epilog=examples("thinkjepa-data import --videos videos --cache-dir features"))
def import_command(
    *,
    videos: Annotated[Path, typer.Option("--videos", help="Folder of videos with their labels.")],
    cache_dir: Annotated[Path, typer.Option(help="Folder of a cache that has these videos' features.")],
    json: JsonOption = False,
) -> int:
    """Put labels that are new or changed into a cache; no model is run. Extraction does the same.

    Exit status: 0 done; 3 done, but some label files cannot be used; 2 wrong use.
    """
    from thinkjepa.pipeline.report.labels import describe_import
    from thinkjepa.stages.data.decoding.client import VideoDecoder
    from thinkjepa.stages.data.labels.storing import import_labels

    with TerminalProgress(errors) as progress, VideoDecoder(timeout_s=DECODE_TIMEOUT_S) as decoder:
        report = import_labels(videos, cache_dir, decoder=decoder, progress=progress)
    print_result(json, asdict(report), describe_import(report, cache_dir))
    return EXIT_FAILURES if report.failures else EXIT_DONE


def main() -> None:
    run_app(app)
