"""thinkjepa-predict: read the hands' future off a new video, and draw it."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

import typer

from thinkjepa.pipeline.console import JsonOption, errors, new_single_app, print_json, print_text, run_app
from thinkjepa.pipeline.help_page import examples
from thinkjepa.pipeline.options import with_settings
from thinkjepa.pipeline.reporting import TerminalProgress
from thinkjepa.stages.device import DEVICES
from thinkjepa.stages.threads import THREADS_HELP, torch_threads

app = new_single_app()


@app.command(
    epilog=examples(
        "thinkjepa-predict --run runs/thinkjepa-0 --video pour.mp4 --out future.mp4",
        "thinkjepa-predict --run runs/thinkjepa-0 --video pour.mp4 --out future.mp4 --split-time 1.5",
    )
)
@with_settings(keys={"device": "execution.device", "decode_timeout": "execution.decode_timeout"})
def predict_command(
    *,
    context: typer.Context,
    run: Annotated[Path, typer.Option("--run", help="Folder of a finished training run.")],
    video: Annotated[Path, typer.Option("--video", help="The video file.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="MP4", help="The overlay to write: H.264 in MP4.")
    ],
    joints_out: Annotated[
        Path | None,
        typer.Option(
            "--joints-out", metavar="JSON", help="The joints to write; default: beside the overlay."
        ),
    ] = None,
    split_frame: Annotated[
        int | None, typer.Option(help="First frame of the future, counted from 0; default: see below.")
    ] = None,
    split_time: Annotated[
        float | None, typer.Option(help="Where the future begins, seconds from the video's start.")
    ] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option("--cache-dir", help="The run's cache, where it is no longer where the run found it."),
    ] = None,
    thinker: Annotated[
        str | None, typer.Option(help="The thinker's folder or hub name, where it has moved.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="The encoder's folder or hub name, where it has moved.")
    ] = None,
    device: Annotated[str, typer.Option(help=f"Where to compute: {DEVICES}.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help=THREADS_HELP)] = 0,
    decode_timeout: Annotated[
        float, typer.Option(help="Seconds without an answer after which the decoder is ended.")
    ] = 60.0,
    json: JsonOption = False,
) -> None:
    """Predict the hands' joints over the future of one video.

    The models see frames before the split only. By default the split lies as late as the video still shows
    the whole future; in a shorter video it lies at the end. Where the run's cache has labels of the video, or
    a label file lies beside it, the true hand is drawn in a second panel and the distance is given.
    """
    from thinkjepa.cache.disk import replace_file
    from thinkjepa.cache.holder import WAIT, WriteLock
    from thinkjepa.pipeline.overlay import overlay_video
    from thinkjepa.stages.data.clock import clock_text, seconds_ahead
    from thinkjepa.stages.predict import SplitChoice, predict

    context.with_resource(WriteLock(out.parent, file=out.name, remedy=f"{WAIT}, or choose another --out"))
    context.with_resource(torch_threads(threads))
    with TerminalProgress(errors) as progress:
        prediction = predict(
            run,
            video,
            split=SplitChoice(frame=split_frame, time_s=split_time),
            places={"thinker": thinker, "encoder": encoder},
            cache_dir=cache_dir,
            device=device,
            decode_timeout_s=decode_timeout,
            progress=progress,
        )
        for warning in prediction.warnings:
            progress.note(f"warning: {warning}")
    record = prediction.to_json()
    joints_file = joints_out or out.with_suffix(".json")
    with errors.status("drawing"):
        replace_file(out, overlay_video(prediction, decode_timeout_s=decode_timeout))
    replace_file(joints_file, json_format.dumps(record, allow_nan=False).encode() + b"\n")
    if json:
        print_json({**record, "overlay": str(out)})
        return
    frames = prediction.frames
    ahead_s = seconds_ahead(frames.future_times_s, observed_times_s=frames.observed_times_s)
    apart = (
        "" if prediction.distance_m is None else f", {1000 * prediction.distance_m:.1f} mm from the true one"
    )
    print_text(
        f"{out}: {len(prediction.joints)} joints over {len(frames.future_times_s)} frames, "
        f"up to {clock_text(ahead_s[-1])} after the last observed one{apart}\n"
        f"{joints_file}: the joints, metres"
    )


def main() -> None:
    run_app(app)
