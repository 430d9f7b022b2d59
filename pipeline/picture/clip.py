"""One clip as a figure: frames, latents, norms and words, from a `ClipContent`.

The page is laid out in inches, x from the left and y from the top, in sections of known height, so that
frames of any shape neither overlap nor leave gaps.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from matplotlib.ticker import MaxNLocator

from thinkjepa.pipeline.picture.clip_content import ClipContent, EncoderContent, ThinkerContent, WindowContent
from thinkjepa.pipeline.picture.page import (
    BODY_PT,
    BOX_WORDS,
    CONTENT_IN,
    HEADING_PT,
    LINE_HEIGHT,
    MARGIN_IN,
    MONO,
    MONO_ADVANCE,
    POINTS_PER_IN,
    SMALL_PT,
    TITLE_PT,
    WIDTH_IN,
    Page,
    lines_in,
    shortened,
    wrapped,
)
from thinkjepa.stages.data.framing import Box, Framing, seen_box
from thinkjepa.stages.data.sampling import clock_text, seconds_ahead
from thinkjepa.stages.picture_style import FUTURE, GREY, OBSERVED, ORANGE, picture_style

SECTION_GAP_IN = 0.22

CELL_GAP_IN = 0.04

SPLIT_GAP_IN = 0.24

MIN_COLUMNS = 8

MAX_CELL_HEIGHT_IN = 1.8

CHARTS_HEIGHT_IN = 1.75

THINKER = "#5b4b8a"

STREAM_STYLES = {
    "prompt": ("prompt", THINKER, "o", "-"),
    "visual": ("visual", THINKER, "v", ":"),
    "text": ("text after the frames", THINKER, "^", "-."),
    "last": ("last of the prompt", ORANGE, "D", ":"),
    "generated": ("reasoning and answer", ORANGE, "s", "--"),
}
"""Label, which names the token kinds of the stream, color, marker and line."""

MAX_LAYER_TICKS = 12

LOG_SCALE_FROM = 30.0
"""Ratio of the largest to the smallest norm above which the axis is logarithmic."""


def draw(content: ClipContent) -> bytes:
    """The picture of a clip as PNG. It does not depend on the user's matplotlib settings."""
    with picture_style():
        sections = _sections(content)
        page = Page(sum(section.height_in + SECTION_GAP_IN for section in sections) + MARGIN_IN)
        top = MARGIN_IN
        for section in sections:
            section.draw(page, top)
            top += section.height_in + SECTION_GAP_IN
        return page.png()


@dataclass(frozen=True, slots=True)
class Section:
    """A horizontal part of the page: its height, and what draws it from a given top on."""

    height_in: float
    draw: Callable[[Page, float], None]


def _sections(content: ClipContent) -> list[Section]:
    cell = _cell(content)
    sections = [_title(content)]
    if content.frames_note:
        sections.append(_note(f"Frames are not shown: {content.frames_note}."))
    if content.thinker:
        sections.append(_thinker_strip(content, content.thinker, cell))
    if content.encoder:
        sections.append(_windows(content, content.encoder, cell))
    else:
        sections.append(_note("No encoder features: observed and future window are not shown."))
    if content.thinker:
        sections.append(_charts(content.thinker))
    else:
        sections.append(_note("No thinker features: its frames, states and words are not shown."))
    return sections


@dataclass(frozen=True, slots=True)
class Cell:
    """The position of a frame on the page, inches; all are equal, and latents are as wide as frames."""

    width: float
    height: float
    frame_width: float
    """Less than the cell's where the height is limited."""

    def left(self, column: int) -> float:
        return MARGIN_IN + column * (self.width + CELL_GAP_IN)

    @property
    def inset(self) -> float:
        return (self.width - self.frame_width) / 2


def _cell(content: ClipContent) -> Cell:
    num_thinker = len(content.thinker.frames) if content.thinker else 0
    windows = [content.encoder.observed, content.encoder.future] if content.encoder else []
    columns = max(MIN_COLUMNS, num_thinker, sum(len(window.steps) for window in windows))
    width = (CONTENT_IN - SPLIT_GAP_IN + CELL_GAP_IN) / columns - CELL_GAP_IN
    if not content.thumbnails:
        return Cell(width, 0.0, width)
    height_px, width_px = next(iter(content.thumbnails.values())).shape[:2]
    height = min(width * height_px / width_px, MAX_CELL_HEIGHT_IN)
    return Cell(width, height, height * width_px / height_px)


def _title(content: ClipContent) -> Section:
    clip = content.clip
    last, last_s = clip.observed_frames[-1], clip.observed_times_s[-1]
    where = (
        f"clip {clip.clip_id}, split at frame {clip.split_frame}. Times count from the last observed frame, "
        f"{last}, at {last_s:.2f} s of the video"
    )

    def draw_title(page: Page, top: float) -> None:
        page.text(MARGIN_IN, top, shortened(clip.video, most=72), size=TITLE_PT, weight="bold")
        page.text(MARGIN_IN, top + lines_in(1, TITLE_PT), where, size=HEADING_PT, color=GREY)

    return Section(lines_in(1, TITLE_PT) + lines_in(1, HEADING_PT), draw_title)


def _note(text: str) -> Section:
    lines = textwrap.wrap(text, width=125)
    height = lines_in(len(lines), BODY_PT) + 0.14

    def draw_note(page: Page, top: float) -> None:
        page.box(MARGIN_IN, top, CONTENT_IN, height)
        page.text(MARGIN_IN + 0.1, top + 0.07, "\n".join(lines), color=GREY, linespacing=LINE_HEIGHT)

    return Section(height, draw_note)


def _thinker_strip(content: ClipContent, thinker: ThinkerContent, cell: Cell) -> Section:
    times_s = content.clip.thinker_times_s
    shown = _of(len(thinker.frames), thinker.num_frames, "frames")
    heading = f"Thinker: {shown}, {_span(content, times_s[0], times_s[-1])}"
    origin = f"{shortened(thinker.model, most=60)} ({thinker.set_name}), prompt {thinker.prompt!r}"
    strip_top = HEADING_IN + lines_in(1, SMALL_PT) + 0.03

    def draw_strip(page: Page, top: float) -> None:
        _heading(page, MARGIN_IN, top, CONTENT_IN, text=heading, color=THINKER)
        page.small_print(MARGIN_IN, top + HEADING_IN, shortened(origin, most=SMALL_PRINT_CHARACTERS))
        if content.thumbnails:
            lefts = _strip_lefts(cell, len(thinker.frames))
            _frames(page, content, cell, lefts, top + strip_top, shown=thinker, framing=thinker.view)

    return Section(strip_top + (cell.height + TIMES_IN if content.thumbnails else 0), draw_strip)


def _strip_lefts(cell: Cell, count: int) -> list[float]:
    """Left edges of a strip's frames: side by side, up to the right edge where they nearly reach it."""
    lefts = [cell.left(column) for column in range(count)]
    missing = MARGIN_IN + CONTENT_IN - (lefts[-1] + cell.width)
    if missing > cell.width:
        return lefts
    return [left + missing * index / (count - 1) for index, left in enumerate(lefts)]


@dataclass(frozen=True, slots=True)
class WindowRows:
    """Tops of a window's rows, inches below its heading's rule."""

    frames_top: float
    latents_top: float
    latents_height: float

    @property
    def bottom(self) -> float:
        return self.latents_top + self.latents_height


def _window_rows(encoder: EncoderContent, cell: Cell) -> WindowRows:
    frames_top = HEADING_IN + lines_in(1, SMALL_PT) + 0.03
    height, width = encoder.grid
    return WindowRows(frames_top, frames_top + cell.height + TIMES_IN, cell.frame_width * height / width)


def _windows(content: ClipContent, encoder: EncoderContent, cell: Cell) -> Section:
    """Past and future next to each other, with the split between them."""
    rows = _window_rows(encoder, cell)
    origin = f"{shortened(encoder.model, most=60)} ({encoder.set_name})"
    caption = [
        origin,
        *textwrap.wrap(
            _latents_caption(encoder, with_frames=bool(content.thumbnails)), width=SMALL_PRINT_CHARACTERS
        ),
    ]
    caption_top = rows.bottom + 0.06
    num_observed, num_future = len(encoder.observed.steps), len(encoder.future.steps)
    past = [cell.left(column) for column in range(num_observed)]
    future = [cell.left(num_observed + column) + SPLIT_GAP_IN for column in range(num_future)]

    def draw_windows(page: Page, top: float) -> None:
        observed = encoder.observed
        _window(page, content, cell, past, top, rows=rows, window=observed, name="Observed", color=OBSERVED)
        name = "Future" if encoder.num_windows == 1 else f"Future, window 1 of {encoder.num_windows}"
        _window(page, content, cell, future, top, rows=rows, window=encoder.future, name=name, color=FUTURE)
        split = (past[-1] + cell.width + future[0]) / 2
        page.text(split, top - 0.02, "split", size=SMALL_PT, ha="center")
        tops = [top + lines_in(1, SMALL_PT), top + rows.bottom]
        page.line([split, split], tops, color="black", linewidth=1.0)
        page.small_print(MARGIN_IN, top + caption_top, "\n".join(caption))

    return Section(caption_top + lines_in(len(caption), SMALL_PT), draw_windows)


def _window(
    page: Page,
    content: ClipContent,
    cell: Cell,
    lefts: Sequence[float],
    top: float,
    *,
    rows: WindowRows,
    window: WindowContent,
    name: str,
    color: str,
) -> None:
    """Frames of a window over their latents."""
    _heading(page, lefts[0], top, lefts[-1] + cell.width - lefts[0], text=name, color=color)
    page.small_print(lefts[0], top + HEADING_IN, _window_times(content, window))
    frames_top = top + rows.frames_top
    framing = content.encoder.framing if content.encoder else None
    _frames(page, content, cell, lefts, frames_top, shown=window, framing=framing)
    size = (cell.frame_width, rows.latents_height)
    for left, pixels in zip(lefts, window.colors, strict=True):
        page.image(pixels, left + cell.inset, top + rows.latents_top, *size, interpolation="nearest")


def _window_times(content: ClipContent, window: WindowContent) -> str:
    steps = _of(len(window.steps), window.num_steps, "latent steps")
    return f"{window.num_frames} frames, {_span(content, window.start_s, window.end_s)}; {steps}"


def _span(content: ClipContent, first_s: float, last_s: float) -> str:
    return f"{_clock(content, first_s).removesuffix(' s')} to {_clock(content, last_s)}"


def _clock(content: ClipContent, time_s: float) -> str:
    """A time of the video on the clip's clock."""
    return clock_text(float(seconds_ahead(time_s, observed_times_s=content.clip.observed_times_s)))


def _latents_caption(encoder: EncoderContent, *, with_frames: bool) -> str:
    height, width = encoder.grid
    shares = " + ".join(f"{share:.0%}" for share in encoder.explained)
    position = "under the first frame" if with_frames else "under the time of the first frame"
    seen = BOX_WORDS if encoder.framing else "The encoder sees the middle of a frame."
    return (
        f"Latents of {height} x {width} patches, each {position} of its step. Red, green and blue "
        f"are the first three principal components of both windows together ({shares} of the variance). "
        f"{seen if with_frames else ''}"
    ).rstrip()


def _heading(page: Page, left: float, top: float, width: float, *, text: str, color: str) -> None:
    """A colored rule with the heading below it."""
    page.line([left, left + width], [top, top], color=color, linewidth=1.6)
    page.text(left, top + 0.05, text, size=HEADING_PT, weight="bold", color=color)


def _frames(
    page: Page,
    content: ClipContent,
    cell: Cell,
    lefts: Sequence[float],
    top: float,
    *,
    shown: ThinkerContent | WindowContent,
    framing: Framing | None,
) -> None:
    """A strip of frames, where there are any, with their times below and the outline of what a model sees."""
    for left, frame, time_s in zip(lefts, shown.frames, shown.times_s, strict=True):
        if (pixels := content.thumbnails.get(frame)) is not None:
            page.image(pixels, left + cell.inset, top, cell.frame_width, cell.height)
            if framing:
                height_px, width_px = pixels.shape[:2]
                seen = seen_box(framing, width_px=width_px, height_px=height_px)
                _outline(page, left + cell.inset, top, seen.scaled(cell.height / height_px))
        caption = _clock(content, time_s)
        page.text(left + cell.width / 2, top + cell.height + 0.03, caption, size=SMALL_PT, ha="center")


def _outline(page: Page, left: float, top: float, seen: Box) -> None:
    """A white line with black edges around a part of the frame that begins at `left` and `top`."""
    xs = [left + seen.left + x for x in (0, seen.width, seen.width, 0, 0)]
    tops = [top + seen.top + y for y in (0, 0, seen.height, seen.height, 0)]
    for color, width in (("black", 1.5), ("white", 0.7)):
        page.line(xs, tops, color=color, linewidth=width)


def _charts(thinker: ThinkerContent) -> Section:
    """Norms, token counts and words side by side."""
    chart_top = HEADING_IN + 0.04
    chart_height = CHARTS_HEIGHT_IN - chart_top - 0.36  # tick labels and axis label are below

    def draw_charts(page: Page, top: float) -> None:
        lefts, widths = (MARGIN_IN, 3.35, 5.55), (2.85, 2.0, WIDTH_IN - MARGIN_IN - 5.55)
        headings = (
            "Norm of the mean hidden state",
            f"Tokens: {sum(thinker.token_counts.values()):,}",
            "Generated text",
        )
        for left, width, heading in zip(lefts, widths, headings, strict=True):
            _heading(page, left, top, width, text=heading, color=THINKER)
        _draw_norms(page.axes(lefts[0] + 0.4, top + chart_top, widths[0] - 0.4, chart_height), thinker)
        _draw_counts(page.axes(lefts[1] + 0.6, top + chart_top, widths[1] - 0.95, chart_height), thinker)
        _draw_words(page, lefts[2], top + chart_top, widths[2], text=thinker.generated_text)

    return Section(CHARTS_HEIGHT_IN, draw_charts)


def _draw_norms(axes: Any, thinker: ThinkerContent) -> None:
    for stream in thinker.norms:
        name, color, marker, line = STREAM_STYLES[stream]
        values = [math.nan if norm is None else norm for norm in thinker.norms[stream]]
        named = name if any(map(math.isfinite, values)) else f"{name}: none"
        style = {"color": color, "marker": marker, "linestyle": line, "markersize": 3, "linewidth": 1.1}
        axes.plot(thinker.layers, values, label=named, **style)
    norms = [norm for norm in chain(*thinker.norms.values()) if norm is not None]
    if norms and max(norms) > LOG_SCALE_FROM * min(norms):
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.1 * max(norms, default=1.0))
    axes.set_xlim(min(thinker.layers) - 0.5, max(thinker.layers) + 0.5)
    if len(thinker.layers) <= MAX_LAYER_TICKS:
        axes.set_xticks(thinker.layers)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=MAX_LAYER_TICKS, integer=True))
    axes.set_xlabel("layer", size=BODY_PT, labelpad=2)
    axes.set_ylabel("L2 norm", size=BODY_PT, labelpad=2)
    axes.grid(visible=True, axis="y")
    axes.legend(fontsize=SMALL_PT, loc="best")


def _draw_counts(axes: Any, thinker: ThinkerContent) -> None:
    kinds, counts = zip(*thinker.named_counts.items(), strict=True)
    bars = axes.barh(kinds, counts, height=0.6, color=THINKER)
    axes.bar_label(bars, [f"{count:,}" for count in counts], padding=3, fontsize=SMALL_PT)
    axes.set_xlim(0, max(1, *counts))
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=BODY_PT, length=0)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def _draw_words(page: Page, left: float, top: float, width: float, *, text: str) -> None:
    padding = 0.08
    height = CHARTS_HEIGHT_IN - HEADING_IN - 0.04
    page.box(left, top, width, height)
    columns = int((width - 2 * padding) * POINTS_PER_IN / (MONO_ADVANCE * SMALL_PT))
    rows = int((height - 2 * padding) / lines_in(1, SMALL_PT))
    words = "\n".join(wrapped(text, columns=columns, rows=rows)) or "(nothing)"
    page.text(left + padding, top + padding, words, size=SMALL_PT, family=MONO, linespacing=LINE_HEIGHT)


def _of(shown: int, total: int, things: str) -> str:
    return f"{total} {things}" if shown == total else f"{shown} of {total} {things} shown"


HEADING_IN = 0.05 + lines_in(1, HEADING_PT)

TIMES_IN = 0.05 + lines_in(1, SMALL_PT)

SMALL_PRINT_CHARACTERS = 180
"""Characters of a line over the whole width: 8.4 in at 6 points, 0.55 of a point size each."""
