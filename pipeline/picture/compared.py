"""Hands that several runs predict of one clip, as a video: a panel for each, the true hand faint under it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from thinkjepa.pipeline.picture.overlay import (
    GREY,
    PREDICTED_RGB,
    TRUE_RGB,
    DrawnFrame,
    drawn_frames,
    hand_panel,
    panel_size,
)
from thinkjepa.pipeline.picture.page import SANS, printable, shortened
from thinkjepa.pipeline.picture.playback import prediction_mp4
from thinkjepa.stages.data.decoding.client import FrameStack, VideoDecoder
from thinkjepa.stages.data.framing import Framing
from thinkjepa.stages.data.joints import Bone, hand_bones
from thinkjepa.stages.predict.frames import ChosenFrames
from thinkjepa.stages.predict.prediction import PredictedHands

PANEL_SHORT_SIDE_PX = 240

COLUMNS = 2
"""Panels side by side: more are too small on a phone."""

CAPTION_PX, MARGIN_PX, NAME_PX, TEXT_PX = 44, 8, 15, 13

CRF = 24
"""Constant rate factor of x264, for a page that holds several videos."""


def compared_video(
    video: Path,
    frames: ChosenFrames,
    hands: Mapping[str, PredictedHands],
    *,
    framing: Framing | None,
    decode_timeout_s: float,
) -> bytes:
    """An H.264 MP4: observed frames, then the future ones, a numbered panel for each named prediction.

    The predictions are of the same clip and the same joints. Raises DecodeError where a frame cannot be
    decoded.
    """
    moments = zip(*(drawn_frames(frames, found) for found in hands.values()), strict=True)
    bones = hand_bones(next(iter(hands.values())).joints)
    with VideoDecoder(timeout_s=decode_timeout_s) as decoder:
        pictures = (
            _picture(frame, dict(zip(hands, drawn, strict=True)), bones, framing)
            for frame, drawn in _with_frames(decoder, video, moments)
        )
        return prediction_mp4(pictures, frames, crf=CRF)


def _with_frames(
    decoder: VideoDecoder, video: Path, moments: Iterator[tuple[DrawnFrame, ...]]
) -> Iterator[tuple[FrameStack, tuple[DrawnFrame, ...]]]:
    """Each moment with its frame, which is decoded once where it repeats."""
    for index, same in groupby(moments, key=lambda drawn: drawn[0].frame):
        frame = decoder.frames(video, [index])[0]
        for drawn in same:
            yield frame, drawn


def _picture(
    frame: FrameStack, drawn: Mapping[str, DrawnFrame], bones: Sequence[Bone], framing: Framing | None
) -> Image.Image:
    """One moment: the panels in rows, a caption under each."""
    width, height = size = panel_size(frame, short_side_px=PANEL_SHORT_SIDE_PX)
    columns = min(COLUMNS, len(drawn))
    rows = -(-len(drawn) // columns)
    canvas = Image.new("RGB", (columns * width, rows * (height + CAPTION_PX)), GREY)
    for number, (name, moment) in enumerate(drawn.items()):
        left, top = number % columns * width, number // columns * (height + CAPTION_PX)
        panel = hand_panel(
            frame,
            size,
            bones,
            pixels=moment.predicted,
            color=PREDICTED_RGB,
            ghost=moment.true,
            framed=not moment.observed,
            seen=framing,
        )
        canvas.paste(panel, (left, top))
        _caption(canvas, left, top + height, width, name=f"{number + 1} {name}", moment=moment)
    return canvas


def _caption(canvas: Image.Image, left: int, top: int, width: int, *, name: str, moment: DrawnFrame) -> None:
    """The name of a prediction, and under it what is known of this moment."""
    draw = ImageDraw.Draw(canvas)
    color = TRUE_RGB if moment.observed else PREDICTED_RGB
    draw.rectangle((left + MARGIN_PX, top + 7, left + MARGIN_PX + 10, top + 17), fill=color)
    for text, size_px, beside, down in (
        (name, NAME_PX, MARGIN_PX + 16, 3),
        (moment.note or moment.caption, TEXT_PX, MARGIN_PX, 24),
    ):
        font = ImageFont.load_default(size=size_px)
        most = int((width - beside) / (0.55 * size_px))  # of the font's mean advance
        shown = shortened(printable(text, family=SANS), most=most)
        draw.text((left + beside, top + down), shown, font=font, fill="white")
