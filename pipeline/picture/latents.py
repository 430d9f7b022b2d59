"""Predicted latents as one figure, a column for each step, and as a video.

The rows are the video, true and predicted latents, and the errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.colors import Normalize
from PIL import Image, ImageDraw, ImageFont

from thinkjepa.pipeline.picture.clip_content import evenly
from thinkjepa.pipeline.picture.latent_panels import ERROR_MAP, LatentPanels, Panel, StepPanels
from thinkjepa.pipeline.picture.page import BOX_WORDS, draw_box, outlined, shortened
from thinkjepa.pipeline.picture.playback import prediction_mp4
from thinkjepa.stages.data.framing import Box
from thinkjepa.stages.data.sampling import clock_text, seconds_ahead
from thinkjepa.stages.display import SQUARED
from thinkjepa.stages.picture_style import (
    GREEN,
    GREY,
    OBSERVED,
    PREDICTED,
    SMALL_PT,
    TEXT_PT,
    TITLE_PT,
    TRUE,
    VERMILION,
    new_figure,
    picture_style,
    png_bytes,
)
from thinkjepa.stages.predict.prediction import Prediction

MAX_STEPS = 8
"""More columns are too small to look at."""

WIDTH_IN = 11.0

LABEL_IN = 1.25

HEAD_IN, FOOT_IN, CAPTION_IN = 0.75, 0.85, 0.2


@dataclass(frozen=True, slots=True)
class Cell:
    """One image with the line below it; nothing is drawn where there is no image."""

    panel: Panel | None
    caption: str = ""
    color: str = GREY
    boxed: bool = False
    """Whether it is a frame, on which the encoder's box is drawn."""


@dataclass(frozen=True, slots=True)
class Row:
    """Images of all steps, the last observed one first."""

    label: str
    color: str
    observed: Cell
    steps: Sequence[Cell]


def latent_picture(prediction: Prediction, panels: LatentPanels) -> bytes:
    """The picture as PNG."""
    steps = panels.steps()
    shown = [steps[index] for index in evenly(len(steps), most=MAX_STEPS)]
    rows = _rows(prediction, panels, shown)
    with picture_style():
        height, width = steps[0].predicted.shape[:2]
        columns = 1 + len(shown)
        cell_in = (WIDTH_IN - LABEL_IN) / columns
        row_in = cell_in * height / width + CAPTION_IN
        height_in = HEAD_IN + row_in * len(rows) + FOOT_IN
        figure = new_figure(WIDTH_IN, height_in)
        figure.set_layout_engine("none")
        grid = figure.add_gridspec(
            len(rows),
            columns,
            left=LABEL_IN / WIDTH_IN,
            right=1 - 0.06 / WIDTH_IN,
            top=1 - HEAD_IN / height_in,
            bottom=FOOT_IN / height_in,
            wspace=0.05,
            hspace=CAPTION_IN / (row_in - CAPTION_IN),
        )
        for number, row in enumerate(rows):
            for column, cell in enumerate([row.observed, *row.steps]):
                axes = figure.add_subplot(grid[number, column])
                _draw(axes, cell, panels.box)
                if column == 0:
                    axes.set_ylabel(
                        row.label, size=TEXT_PT, rotation=0, ha="right", va="center", color=row.color
                    )
        _words(figure, prediction, panels, height_in)
        return png_bytes(figure)


def _rows(prediction: Prediction, panels: LatentPanels, shown: Sequence[StepPanels]) -> list[Row]:
    frames, last = prediction.frames, panels.num_observed - 1
    empty, compared = Cell(None), panels.latents.true is not None
    last_frame = Cell(panels.frame(frames.observed[-1]), "last observed", OBSERVED, boxed=True)
    future = [Cell(step.frame, clock_text(step.time_s), boxed=True) for step in shown]
    rows = [
        Row("video", "black", last_frame, future),
        Row(
            "true\nlatents" if compared else "latents",
            TRUE,
            Cell(panels.observed(last)),
            [Cell(step.true) for step in shown],
        ),
        Row("predicted\nlatents", PREDICTED, empty, [_predicted(step) for step in shown]),
        Row("most\nsimilar\nstep", PREDICTED, empty, [_nearest(step) for step in shown]),
    ]
    if compared:
        errors = [Cell(step.error, f"MSE {step.mse:.3f}") for step in shown]
        still = [Cell(step.persistence_error, f"MSE {step.persistence_mse:.3f}") for step in shown]
        rows += [
            Row("error", PREDICTED, empty, errors),
            Row("error of\npersistence", GREY, empty, still),
        ]
    return rows


def _predicted(step: StepPanels) -> Cell:
    """The predicted latents, with their time where no frame above has it."""
    return Cell(step.predicted, clock_text(step.time_s) if step.frame is None else "")


def _nearest(step: StepPanels) -> Cell:
    wrong = GREY if step.true is None else VERMILION
    color = GREEN if step.nearest_is_true else wrong
    return Cell(step.nearest, clock_text(step.nearest_time_s), color, boxed=True)


def _draw(axes: Any, cell: Cell, box: Box) -> None:
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    if cell.panel is None:
        return
    axes.imshow(cell.panel, aspect="equal")
    if cell.boxed:
        draw_box(axes, box)
    axes.set_xlabel(cell.caption, size=SMALL_PT, color=cell.color, labelpad=2)


def _words(figure: Any, prediction: Prediction, panels: LatentPanels, height_in: float) -> None:
    """Title, how to read it, and the scale of the errors."""
    frames = prediction.frames
    name = shortened(prediction.video.name, most=80)
    style: dict[str, Any] = {"va": "top", "parse_math": False, "linespacing": 1.35}
    figure.text(0.01, 1 - 0.08 / height_in, f"Predicted latents: {name}", size=TITLE_PT + 2, **style)
    figure.text(0.01, 1 - 0.33 / height_in, summary(prediction), size=TEXT_PT, color=GREY, **style)
    number = len(panels.latents.predicted)
    part = f" {MAX_STEPS} of {number} steps are shown." if number > MAX_STEPS else ""
    shares = " + ".join(f"{share:.0%}" for share in panels.colors.explained)
    text = (
        f"Times are seconds from the last observed frame ({frames.split_frame - 1}) to a step's first.{part} "
        f"{BOX_WORDS}\n"
        f"Colors: the first three principal components ({shares} of the variance) of this "
        "video's own latents, observed and true.\nMost similar step: of all steps of both windows, the one "
        "whose latents are nearest to the predicted ones; green where it is the true one."
    )
    figure.text(0.01, (FOOT_IN - 0.12) / height_in, text, size=SMALL_PT, color=GREY, **style)
    if panels.latents.true is not None:
        position = (0.76, (FOOT_IN - 0.3) / height_in, 0.22, 0.1 / height_in)
        axes = figure.add_axes(position)
        scale = mpl.cm.ScalarMappable(Normalize(0, panels.error_limit), ERROR_MAP)
        bar = figure.colorbar(scale, cax=axes, orientation="horizontal")
        bar.set_label("squared error of a patch, mean over dims", size=SMALL_PT)
        bar.ax.tick_params(labelsize=SMALL_PT)


def summary(prediction: Prediction) -> str:
    """The figures of a prediction in one line, those of its latents where it has any."""
    latents, frames = prediction.latents, prediction.frames
    seconds = frames.future_times_s[-1] - frames.observed_times_s[-1]
    text = f"{len(frames.future_times_s)} frames, up to {seconds:.2f} s ahead"
    if latents is None:
        return text
    number = len(latents.predicted)
    text = f"{number} latent steps, {text}"
    if latents.errors is None or latents.persistence_errors is None:
        return f"{text}; the video ends before that: nothing to compare with"
    mse, still = float(latents.errors.mean()), float(latents.persistence_errors.mean())
    share = SQUARED.share(mse - still, still)
    apart = f" ({'+' if mse > still else '-'}{share})" if share else ""
    return (
        f"{text}: MSE {SQUARED.number(mse)}, persistence {SQUARED.number(still)}{apart}; the most similar "
        f"step is the true one in {latents.num_found} of {number}"
    )


COLUMNS, ROWS = 3, 2

HEADING_PX, GAP_PX = 26, 4

BACKGROUND = (70, 70, 70)

TitledPanel = tuple[str, Panel | None]

TitledPanels = list[TitledPanel]
"""One frame of the video: panels with their headings, row by row."""


def latent_video(prediction: Prediction, panels: LatentPanels) -> bytes:
    """An H.264 MP4 of the observed and then of the future frames."""
    pictures = (_picture(titled) for titled in _panels_by_frame(prediction, panels))
    return prediction_mp4(pictures, prediction.frames)


def _panels_by_frame(prediction: Prediction, panels: LatentPanels) -> Iterator[TitledPanels]:
    frames, tubelet = prediction.frames, panels.latents.tubelet
    observed_s = seconds_ahead(frames.observed_times_s, observed_times_s=frames.observed_times_s)
    ahead_s = seconds_ahead(frames.future_times_s, observed_times_s=frames.observed_times_s)
    for number, (frame, seconds) in enumerate(zip(frames.observed, observed_s, strict=True)):
        latents = panels.observed(number // tubelet)
        first = (f"observed {clock_text(seconds)}", outlined(panels.frame(frame), panels.box))
        yield [first, ("latents; prediction starts at the split", latents)]
    steps = panels.steps()
    for number, seconds in enumerate(ahead_s):
        step = steps[number // tubelet]
        shown = (
            outlined(panels.frame(frames.future[number]), panels.box) if number < len(frames.future) else None
        )
        errors: list[TitledPanel] = [("", None), ("", None)]
        if step.mse is not None:
            errors[0] = (f"MSE {step.mse:.3f}", step.error)
            errors[1] = (f"persistence, MSE {step.persistence_mse:.3f}", step.persistence_error)
        yield [
            (f"future {clock_text(seconds)}", shown),
            ("true latents", step.true),
            ("predicted latents", step.predicted),
            (f"most similar: {clock_text(step.nearest_time_s)}", outlined(step.nearest, panels.box)),
            *errors,
        ]


def _picture(titled: TitledPanels) -> Image.Image:
    """The panels on a canvas of COLUMNS x ROWS cells; fewer than a row are enlarged to its whole width."""
    height, width = next(panel for _, panel in titled if panel is not None).shape[:2]
    canvas_px = (COLUMNS * (width + GAP_PX), ROWS * (height + HEADING_PX + GAP_PX))
    columns, rows = min(COLUMNS, len(titled)), -(-len(titled) // COLUMNS)
    cell = (canvas_px[0] // columns, canvas_px[1] // rows)
    scale = min((cell[0] - GAP_PX) / width, (cell[1] - HEADING_PX - GAP_PX) / height)
    size = (int(scale * width), int(scale * height))
    canvas = Image.new("RGB", canvas_px, BACKGROUND)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=16)
    for index, (title, panel) in enumerate(titled):
        left = index % columns * cell[0] + (cell[0] - GAP_PX - size[0]) // 2
        top = index // columns * cell[1] + (cell[1] - HEADING_PX - GAP_PX - size[1]) // 2
        draw.text((left + 6, top + 4), title, font=font, fill="white")
        if panel is not None:
            canvas.paste(Image.fromarray(panel).resize(size), (left, top + HEADING_PX))
    return canvas
