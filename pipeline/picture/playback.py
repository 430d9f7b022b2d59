"""A prediction's frames as an MP4: a timeline under each, a pause at the split, and a hold at the end."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import av
from PIL import Image, ImageColor, ImageDraw, ImageFont

from thinkjepa.stages.data.sampling import clock_text, seconds_ahead
from thinkjepa.stages.picture_style import PREDICTED
from thinkjepa.stages.predict.frames import ChosenFrames

SLOWEST_FPS, SHORTEST_S = 5, 4.0
"""Short predictions are played slowly, so that there is something to look at."""

SPLIT_PAUSE_S, END_HOLD_S = 0.6, 1.6

NEARLY_LOSSLESS = 18
"""Constant rate factor of x264: 6 more halve the file."""

TIMELINE_PX, MARGIN_PX = 44, 12

BAR_TOP_PX, BAR_PX, KNOB_PX = 9, 5, 6

BACKGROUND, OBSERVED_BAR, TEXT = (45, 45, 45), (215, 215, 215), (230, 230, 230)

FUTURE_BAR = ImageColor.getrgb(PREDICTED)

FONT_PX, WORD_GAP_PX = 13, 12


def prediction_mp4(
    pictures: Iterable[Image.Image], frames: ChosenFrames, *, crf: int = NEARLY_LOSSLESS
) -> bytes:
    """An H.264 MP4 of pictures, one for each observed and then each future frame.

    The last observed picture stays for SPLIT_PAUSE_S, the last one of all for END_HOLD_S.
    """
    times_s = [*frames.observed_times_s, *frames.future_times_s]
    seconds = seconds_ahead(times_s, observed_times_s=frames.observed_times_s).tolist()
    fps = playback_fps(frames, len(seconds))
    pause, hold = held_frames(fps)
    extra = {len(frames.observed) - 1: pause, len(seconds) - 1: hold}
    timeline = Timeline(tuple(seconds), speed=float(fps / _real_fps(frames)))
    shown = (
        timeline.below(picture, now_s, at_split=index == len(frames.observed) - 1)
        for index, picture in enumerate(pictures)
        for now_s in [seconds[index]] * (1 + extra.get(index, 0))
    )
    return _encoded(shown, fps=fps, crf=crf)


def playback_fps(frames: ChosenFrames, num_frames: int) -> Fraction:
    """Real time, or slower where there are few frames."""
    slow = Fraction(num_frames) / Fraction(SHORTEST_S)
    return min(_real_fps(frames), max(slow, Fraction(SLOWEST_FPS)))


def held_frames(fps: Fraction) -> tuple[int, int]:
    """Repetitions of the last observed and of the last picture."""
    return round(SPLIT_PAUSE_S * fps), round(END_HOLD_S * fps)


def _real_fps(frames: ChosenFrames) -> Fraction:
    return Fraction(frames.fps).limit_denominator(1000)


@dataclass(frozen=True, slots=True)
class Timeline:
    """A bar over all frames' times, seconds after the last observed one: observed, split, future."""

    seconds: tuple[float, ...]
    speed: float
    """Speed of the video, as a share of real time."""

    def below(self, picture: Image.Image, now_s: float, *, at_split: bool) -> Image.Image:
        """The picture with the timeline under it, the knob at `now_s`; words as many as there is room for."""
        width, height = picture.size
        canvas = Image.new("RGB", (width, height + TIMELINE_PX), BACKGROUND)
        canvas.paste(picture, (0, 0))
        draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=FONT_PX)
        first, split, last, now = (
            self._x(time_s, width) for time_s in (self.seconds[0], 0, self.seconds[-1], now_s)
        )
        top, words_top = height + BAR_TOP_PX, height + BAR_TOP_PX + BAR_PX + 8
        draw.rectangle((first, top, split, top + BAR_PX), fill=OBSERVED_BAR)
        draw.rectangle((split, top, last, top + BAR_PX), fill=FUTURE_BAR)
        draw.line((split, height + 2, split, words_top), fill="white", width=3)
        middle = top + BAR_PX / 2
        knob = (now - KNOB_PX, middle - KNOB_PX, now + KNOB_PX, middle + KNOB_PX)
        draw.ellipse(knob, fill="white", outline=BACKGROUND, width=2)
        begins, ends = clock_text(self.seconds[0]), clock_text(self.seconds[-1])
        draw.text((first, words_top), begins, font=font, fill=TEXT)
        room_from = first + font.getlength(begins) + WORD_GAP_PX
        for words, end in product(
            ("split: from here on predicted", "split") if at_split else ("split",),
            (f"{ends}, {speed_text(self.speed)}", ends),
        ):
            half = font.getlength(words) / 2
            room_to = last - font.getlength(end) - WORD_GAP_PX
            if room_to - room_from >= 2 * half:
                middle = min(max(split, room_from + half), room_to - half)
                draw.text((middle, words_top), words, font=font, fill="white", anchor="ma")
                break
        draw.text((last, words_top), end, font=font, fill=TEXT, anchor="ra")
        return canvas

    def _x(self, time_s: float, width: int) -> float:
        share = (time_s - self.seconds[0]) / (self.seconds[-1] - self.seconds[0])
        return MARGIN_PX + share * (width - 2 * MARGIN_PX)


def speed_text(speed: float) -> str:
    """`real speed`, `0.5 x real speed`."""
    return "real speed" if abs(speed - 1) < 0.01 else f"{speed:.2g} x real speed"


def _encoded(pictures: Iterator[Image.Image], *, fps: Fraction, crf: int) -> bytes:
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as container:
        stream = None
        for picture in pictures:
            if stream is None:
                stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf)})
                stream.width, stream.height = picture.size
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        if stream is not None:
            container.mux(stream.encode())
    return sink.getvalue()
