"""Predicted latents as a video: frames, true and predicted latents, errors, and the most similar step."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image, ImageDraw, ImageFont

from thinkjepa.pipeline.encoder_box import outlined
from thinkjepa.pipeline.latent_panels import LatentPanels, Panel
from thinkjepa.pipeline.playback import prediction_mp4
from thinkjepa.stages.data.clock import clock_text, seconds_ahead
from thinkjepa.stages.predict import Prediction

COLUMNS, ROWS = 3, 2
HEADING_PX, GAP_PX = 26, 4
BACKGROUND = (70, 70, 70)

Titled = tuple[str, Panel | None]
Moment = list[Titled]
"""One frame of the video: panels with their headings, row by row."""


def latent_video(prediction: Prediction, panels: LatentPanels) -> bytes:
    """An H.264 MP4 of the observed and then of the future frames."""
    pictures = (_picture(moment) for moment in _moments(prediction, panels))
    return prediction_mp4(pictures, prediction.frames)


def _moments(prediction: Prediction, panels: LatentPanels) -> Iterator[Moment]:
    frames, tubelet = prediction.frames, prediction.latents.tubelet
    observed_s = seconds_ahead(frames.observed_times_s, observed_times_s=frames.observed_times_s)
    ahead_s = seconds_ahead(frames.future_times_s, observed_times_s=frames.observed_times_s)
    for place, (index, seconds) in enumerate(zip(frames.observed, observed_s, strict=True)):
        latents = panels.observed(place // tubelet)
        first = (f"observed {clock_text(seconds)}", outlined(panels.frame(index), panels.box))
        yield [first, ("latents; prediction starts at the split", latents)]
    steps = panels.steps()
    for place, seconds in enumerate(ahead_s):
        step = steps[place // tubelet]
        shown = (
            outlined(panels.frame(frames.future[place]), panels.box) if place < len(frames.future) else None
        )
        errors: list[Titled] = [("", None), ("", None)]
        if step.mse is not None:
            errors[0] = (f"error {step.mse:.3f}", step.error)
            errors[1] = (f"persistence {step.persistence_mse:.3f}", step.persistence_error)
        yield [
            (f"future {clock_text(seconds)}", shown),
            ("true latents", step.true),
            ("predicted latents", step.predicted),
            (f"most similar: {clock_text(step.nearest_time_s)}", outlined(step.nearest, panels.box)),
            *errors,
        ]


def _picture(moment: Moment) -> Image.Image:
    """The panels on a canvas of COLUMNS x ROWS cells; fewer than a row are enlarged to its whole width."""
    height, width = next(panel for _, panel in moment if panel is not None).shape[:2]
    canvas_px = (COLUMNS * (width + GAP_PX), ROWS * (height + HEADING_PX + GAP_PX))
    columns, rows = min(COLUMNS, len(moment)), -(-len(moment) // COLUMNS)
    cell = (canvas_px[0] // columns, canvas_px[1] // rows)
    scale = min((cell[0] - GAP_PX) / width, (cell[1] - HEADING_PX - GAP_PX) / height)
    size = (int(scale * width), int(scale * height))
    canvas = Image.new("RGB", canvas_px, BACKGROUND)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=16)
    for place, (title, panel) in enumerate(moment):
        left = place % columns * cell[0] + (cell[0] - GAP_PX - size[0]) // 2
        top = place // columns * cell[1] + (cell[1] - HEADING_PX - GAP_PX - size[1]) // 2
        draw.text((left + 6, top + 4), title, font=font, fill="white")
        if panel is not None:
            canvas.paste(Image.fromarray(panel).resize(size), (left, top + HEADING_PX))
    return canvas
