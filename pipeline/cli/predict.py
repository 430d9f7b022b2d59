"""thinkjepa-predict: predict the future of a new video, and draw it."""

from __future__ import annotations

import json as json_format
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thinkjepa.pipeline.cli.console import (
    JsonOption,
    errors,
    loading,
    new_single_app,
    print_result,
    run_app,
)
from thinkjepa.pipeline.cli.help import examples
from thinkjepa.pipeline.cli.options import (
    DeviceOption,
    RunCacheOption,
    ThreadsOption,
    parse_settings,
    setting_option,
    with_settings,
)
from thinkjepa.pipeline.cli.progress import TerminalProgress
from thinkjepa.stages.data.partition import SplitName
from thinkjepa.stages.device import torch_threads
from thinkjepa.stages.display import MILLIMETERS
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.settings import ExecutionSettings

if TYPE_CHECKING:
    from thinkjepa.stages.predict.prediction import PredictedHands, Prediction

app = new_single_app()

DECODE_TIMEOUT = setting_option(ExecutionSettings, "decode_timeout")

RowsOption = Annotated[
    Path | None,
    typer.Option(
        "--clips",
        metavar="FILE",
        help="Table of clips (csv or parquet) whose row of this video has the split and the segment that no "
        "frame leaves.",
    ),
]

RowOption = Annotated[
    int | None, typer.Option("--row", min=1, help="Row of --clips, from 1, where the video has several.")
]

SPLIT_NAME_WORDS: dict[SplitName | None, str] = {
    "train": "one of the run's training videos: the run was fitted to it",
    "validation": "one of the run's validation videos: the best epoch was chosen on them",
    "test": "one of the run's test videos: training has not touched it",
    None: "none of the run's training, validation or test videos",
}


@app.command(
    epilog=examples(
        "thinkjepa-predict --run runs/thinkjepa-0 --video pour.mp4 --out future.mp4",
        "thinkjepa-predict --run runs/thinkjepa-0 --video pour.mp4 --out future.mp4 --split-time 1.5",
        "thinkjepa-predict --run runs/latents-0 --video pour.mp4 --out future.png",
        "thinkjepa-predict --run runs/thinkjepa-0 --video day.mp4 --out future.mp4 --clips clips.csv --row 3",
    )
)
@with_settings(
    keys={"device": "execution.device", "decode_timeout": "execution.decode_timeout", "cache_dir": None}
)
def predict_command(
    *,
    context: typer.Context,
    run: Annotated[Path, typer.Option("--run", help="Folder of a finished training run.")],
    video: Annotated[Path, typer.Option("--video", help="The video file.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="What to write: a video (.mp4; hands where the run predicts them, else latents) or a "
            "picture of the latents (.png).",
        ),
    ],
    joints_out: Annotated[
        Path | None,
        typer.Option(
            "--joints-out", metavar="JSON", help="The figures to write, joints too; default: FILE with .json."
        ),
    ] = None,
    split_frame: Annotated[
        int | None, typer.Option(help="First frame of the future, counted from 0; default: see below.")
    ] = None,
    split_time: Annotated[
        float | None, typer.Option(help="Where the future begins, seconds from the video's start.")
    ] = None,
    clips_file: RowsOption = None,
    row: RowOption = None,
    cache_dir: RunCacheOption = None,
    thinker: Annotated[
        str | None, typer.Option(help="The thinker's folder or hub name, where it has moved.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="The encoder's folder or hub name, where it has moved.")
    ] = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    decode_timeout: Annotated[float, DECODE_TIMEOUT] = ExecutionSettings.decode_timeout,
    json: JsonOption = False,
) -> None:
    """Predict the future of one video: latents, and the hands' joints where the run was trained with labels.

    The models see frames before the split only. By default the split lies as late as the video still shows
    the whole future; in a shorter video it lies at the end. Where the run's cache has labels of the video, or
    a label file lies beside it, the true hand is drawn in a second panel and the distance is given. A run
    with --anchor last_pose needs such labels for its hands; a picture of the latents (.png) needs none.
    """
    if out.suffix not in (".mp4", ".png"):
        raise StageError(f"--out {str(out)!r}: give a name that ends in .mp4 or .png")
    execution = parse_settings(ExecutionSettings, {"device": device, "decode_timeout": decode_timeout})
    request = Request(run, video, split_frame, split_time, clips_file, row, cache_dir, thinker, encoder)
    _reserve(context, out, threads)
    prediction = request.predict(execution, need_hands=out.suffix == ".mp4")
    joints_file = joints_out or out.with_suffix(".json")
    record = _write(prediction, out, joints_file, decode_timeout_s=decode_timeout)
    print_result(json, {**record, "overlay": str(out)}, _described(prediction, out, joints_file))


@dataclass(frozen=True, slots=True)
class Request:
    """A video whose future is asked for, the run that predicts it, and where the run's parts have moved."""

    run: Path
    video: Path
    split_frame: int | None
    split_time_s: float | None
    clips_file: Path | None
    row: int | None
    cache_dir: Path | None
    thinker: str | None
    encoder: str | None

    def predict(self, execution: ExecutionSettings, *, need_hands: bool) -> Prediction:
        """The prediction. Its warnings are shown."""
        with loading():
            from thinkjepa.stages.data.cutting.reading import read_clip_file
            from thinkjepa.stages.predict.frames import SplitChoice
            from thinkjepa.stages.predict.prediction import predict

        if self.row is not None and self.clips_file is None:
            raise StageError("--row is a row of a table: name it with --clips")
        row = read_clip_file(self.clips_file).row_of(self.video, self.row) if self.clips_file else None
        with TerminalProgress(errors) as progress:
            prediction = predict(
                self.run,
                self.video,
                split=SplitChoice(frame=self.split_frame, time_s=self.split_time_s, row=row),
                places={"thinker": self.thinker, "encoder": self.encoder},
                cache_dir=self.cache_dir,
                device=execution.device,
                decode_timeout_s=execution.decode_timeout,
                progress=progress,
                need_hands=need_hands,
            )
            for warning in prediction.warnings:
                progress.note(f"warning: {warning}")
        return prediction


def _reserve(context: typer.Context, out: Path, threads: int) -> None:
    """Hold the file to write and set torch's threads until the command ends."""
    with loading():
        from thinkjepa.cache.disk.lock import WAIT, WriteLock

        context.with_resource(torch_threads(threads))
    context.with_resource(WriteLock(out.parent, file=out.name, remedy=f"{WAIT}, or choose another --out"))


def _write(
    prediction: Prediction, out: Path, joints_file: Path, *, decode_timeout_s: float
) -> dict[str, Any]:
    """Write the picture or video and the figures, which are returned."""
    from thinkjepa.cache.disk.files import replace_file

    record = prediction.to_json()
    with errors.status("drawing"):
        replace_file(out, _drawn(prediction, out.suffix, decode_timeout_s=decode_timeout_s))
    replace_file(joints_file, json_format.dumps(record, allow_nan=False).encode() + b"\n")
    return record


def _drawn(prediction: Prediction, suffix: str, *, decode_timeout_s: float) -> bytes:
    from thinkjepa.pipeline.picture.latent_panels import LatentPanels
    from thinkjepa.pipeline.picture.latents import latent_picture, latent_video
    from thinkjepa.pipeline.picture.overlay import overlay_video

    if suffix == ".mp4" and prediction.hands:
        return overlay_video(prediction, prediction.hands, decode_timeout_s=decode_timeout_s)
    panels = LatentPanels(prediction, decode_timeout_s=decode_timeout_s)
    draw = latent_video if suffix == ".mp4" else latent_picture
    return draw(prediction, panels)


def _described(prediction: Prediction, out: Path, figures: Path) -> str:
    from thinkjepa.pipeline.picture.latents import summary

    frames, hands = prediction.frames, prediction.hands
    lines = [f"{out}: {summary(prediction)}", SPLIT_NAME_WORDS[prediction.split_name]]
    if hands is None:
        return "\n".join([*lines, f"{figures}: the figures", f"no hands: {prediction.no_hands}"])
    num_frames = len(frames.future_times_s)
    apart = described_distance(hands, num_frames)
    lines.append(f"{len(hands.joints)} joints over {num_frames} frames{apart}")
    return "\n".join([*lines, f"{figures}: the joints, metres, and the figures"])


def described_distance(hands: PredictedHands, num_frames: int) -> str:
    """The distance to the true hand, and that of the true hand from where it was last observed.

    `num_frames` are those that were predicted. Empty where no true joint is known in them.
    """
    if hands.distance_m is None:
        return ""
    apart = f", {MILLIMETERS.amount(hands.distance_m)} from the true hand"
    if hands.still_distance_m is not None:
        apart += f", which is {MILLIMETERS.amount(hands.still_distance_m)} from where it was last observed"
    if hands.num_labelled_frames < num_frames:
        apart += f" (in the {hands.num_labelled_frames} frames with labels)"
    return apart


def main() -> None:
    run_app(app)
