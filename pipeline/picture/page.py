"""A sheet of fixed width for pictures with frames and text, and text in the characters that a font has.

Everything is placed in inches, x from the left and y from the top.
"""

from __future__ import annotations

import io
import textwrap
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import patheffects
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw

from thinkjepa.stages.data.framing import Box
from thinkjepa.stages.picture_style import GREY

DPI = 200

WIDTH_IN = 9.0

MARGIN_IN = 0.3

CONTENT_IN = WIDTH_IN - 2 * MARGIN_IN

TITLE_PT, HEADING_PT, BODY_PT, SMALL_PT = 11.0, 8.5, 7.0, 6.0

POINTS_PER_IN = 72

LINE_HEIGHT = 1.35  # of the font size

SANS, MONO = "DejaVu Sans", "DejaVu Sans Mono"  # matplotlib brings both

MONO_ADVANCE = 0.602  # of the font size: every glyph of DejaVu Sans Mono is as wide


class Page:
    """A figure of fixed width; everything is placed in inches from its top left corner."""

    def __init__(self, height_in: float) -> None:
        self.height_in = height_in
        self.figure = Figure(figsize=(WIDTH_IN, height_in))
        FigureCanvasAgg(self.figure)
        self._sheet = self.figure.add_axes((0, 0, 1, 1))
        self._sheet.set(xlim=(0, WIDTH_IN), ylim=(height_in, 0))
        self._sheet.set_axis_off()
        self._sheet.set_autoscale_on(False)

    def text(self, x: float, top: float, text: str, *, size: float = BODY_PT, **style: Any) -> None:
        """Characters as they are: no mathtext, no missing glyphs."""
        style = {"family": SANS, "va": "top", **style}
        shown = "\n".join(printable(line, family=style["family"]) for line in text.split("\n"))
        self._sheet.text(x, top, shown, size=size, parse_math=False, clip_on=True, **style)

    def small_print(self, x: float, top: float, text: str) -> None:
        self.text(x, top, text, size=SMALL_PT, color=GREY, linespacing=LINE_HEIGHT)

    def line(self, xs: Sequence[float], tops: Sequence[float], **style: Any) -> None:
        self._sheet.plot(xs, tops, solid_capstyle="butt", **style)

    def box(self, x: float, top: float, width: float, height: float) -> None:
        """A pale background."""
        xs, tops = [x, x + width, x + width, x], [top, top, top + height, top + height]
        self._sheet.fill(xs, tops, color="#f2f2f2", linewidth=0)

    def image(self, pixels: Any, x: float, top: float, width: float, height: float, **style: Any) -> None:
        extent = (x, x + width, top + height, top)
        self._sheet.imshow(pixels, extent=extent, aspect="auto", **style)

    def axes(self, x: float, top: float, width: float, height: float) -> Any:
        """A chart of its own; tick labels are outside."""
        bottom = 1 - (top + height) / self.height_in
        axes = self.figure.add_axes((x / WIDTH_IN, bottom, width / WIDTH_IN, height / self.height_in))
        axes.tick_params(labelsize=SMALL_PT, length=2.5, width=0.6)
        axes.grid(visible=False)  # most hold an image
        axes.spines[["left", "bottom"]].set_linewidth(0.6)
        return axes

    def png(self) -> bytes:
        content = io.BytesIO()
        self.figure.savefig(content, format="png", dpi=DPI)
        return content.getvalue()


def lines_in(count: int, size_pt: float) -> float:
    """Height of lines of text, inches."""
    return count * size_pt * LINE_HEIGHT / POINTS_PER_IN


def wrapped(text: str, *, columns: int, rows: int) -> list[str]:
    """Printable lines of at most `columns` characters; where `rows` are too few, the last one says so."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        escaped = printable(paragraph, family=MONO)
        lines += textwrap.wrap(escaped, columns, replace_whitespace=False) or [""]
        if len(lines) > rows:
            break
    while lines and not lines[-1]:
        lines.pop()
    if len(lines) <= rows:
        return lines
    return [*lines[: rows - 1], f"... ({len(text):,} characters in all)"]


def printable(text: str, *, family: str) -> str:
    """The text in characters that the font has: controls as escapes, what it lacks as a replacement mark."""
    return "".join(_printable(character, _characters(family)) for character in text)


def _printable(character: str, known: frozenset[int]) -> str:
    if unicodedata.category(character) in INVISIBLE:
        return character.encode("unicode_escape").decode()
    return character if ord(character) in known else UNKNOWN


INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories of controls, of what turns the direction or breaks a line, and of no characters."""

UNKNOWN = "\N{REPLACEMENT CHARACTER}"


@cache
def _characters(family: str) -> frozenset[int]:
    """The code points that a font family of matplotlib can draw."""
    return frozenset(get_font(findfont(family)).get_charmap())


def shortened(text: str, *, most: int) -> str:
    """The text with its middle left out where it is longer than `most` characters."""
    if len(text) <= most:
        return text
    kept = most - 3
    return f"{text[: kept // 2]}...{text[len(text) - (kept - kept // 2) :]}"


WHITE, DARK = (255, 255, 255), (0, 0, 0)

BOX_WORDS = "White box: what the encoder sees."


def outlined(image: npt.NDArray[np.uint8], box: Box) -> npt.NDArray[np.uint8]:
    """A copy of an image `(height, width, 3)` with the outline of a box in its pixels."""
    canvas = Image.fromarray(image)
    left, top, right, bottom = box.whole_px()
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((left, top, right - 1, bottom - 1), outline=DARK, width=3)
    draw.rectangle((left + 1, top + 1, right - 2, bottom - 2), outline=WHITE, width=1)
    return np.asarray(canvas)


def draw_box(axes: Any, box: Box, *, line_pt: float = 0.8) -> None:
    """Draw the outline over an image in matplotlib axes, whose data units are the image's pixels."""
    corner = (box.left - 0.5, box.top - 0.5)  # pixel centers are on whole numbers
    rim = [patheffects.withStroke(linewidth=line_pt + 0.8, foreground="black", alpha=0.7)]
    style: dict[str, Any] = {"fill": False, "edgecolor": "white", "linewidth": line_pt, "path_effects": rim}
    axes.add_patch(Rectangle(corner, box.width, box.height, **style))
