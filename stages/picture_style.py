"""The look of every picture: fonts, grid, colors, markers and the file format.

A variant and a baseline have one look in all pictures. Lines differ in dashes, width and marker too, so that
they are told apart in grey, by color-blind readers, and where one lies on another.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

DPI = 120
PANEL_IN = (3.4, 3.0)
"""Width and height of a panel of curves, inches."""

TITLE_PT, TEXT_PT, SMALL_PT = 9.0, 8.0, 7.0

BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
ORANGE, SKY, BLACK, GREY = "#e69f00", "#56b4e9", "#000000", "#666666"
"""Okabe and Ito's palette, told apart with the common kinds of color blindness."""

OBSERVED, FUTURE = BLUE, VERMILION
"""Colors of the two parts of a clip."""
TRUE, PREDICTED = BLUE, ORANGE
"""Colors of the true future and of a prediction."""

SECONDS_AHEAD = "seconds after the last observed frame"
"""The clock of every picture and table that shows a future."""

LOG_FROM = 4.0
"""Ratio of the largest to the smallest value from which a logarithmic axis shows more than a linear one."""

_SOLID, _DASHED, _DOTTED = "-", (0, (5, 2)), (0, (1, 1.3))
_DASH_DOTTED, _LONG, _DASH_DOT_DOT = (0, (6, 2, 1, 2)), (0, (9, 3)), (0, (3, 1, 1, 1, 1, 1))

VARIANTS: dict[str, dict[str, Any]] = {
    "thinkjepa": {
        "color": BLUE,
        "linestyle": _SOLID,
        "linewidth": 2.2,
        "marker": "o",
        "markersize": 7.0,
        "zorder": 2.1,
    },
    "jepa": {
        "color": VERMILION,
        "linestyle": _DASHED,
        "linewidth": 1.7,
        "marker": "s",
        "markersize": 5.0,
        "zorder": 2.2,
    },
    "vlm": {
        "color": GREEN,
        "linestyle": _DASH_DOTTED,
        "linewidth": 1.4,
        "marker": "D",
        "markersize": 3.5,
        "zorder": 2.3,
    },
    "poses": {
        "color": PURPLE,
        "linestyle": _DOTTED,
        "linewidth": 1.6,
        "marker": "^",
        "markersize": 4.5,
        "zorder": 2.4,
    },
}
"""The wide solid line is below the others, in whatever order they are drawn."""

BASELINES: dict[str, dict[str, Any]] = {
    "latent_persistence": {"color": GREY, "linestyle": _DOTTED, "linewidth": 1.3},
    "mean_latent": {"color": GREY, "linestyle": (0, (2, 2)), "linewidth": 1.3},
    "ridge": {"color": GREY, "linestyle": _SOLID, "linewidth": 1.3},
    "constant_pose": {"color": GREY, "linestyle": _DASHED, "linewidth": 1.3},
    "constant_velocity": {"color": GREY, "linestyle": _DASH_DOT_DOT, "linewidth": 1.3},
    "damped_velocity": {"color": GREY, "linestyle": (0, (1, 3)), "linewidth": 1.3},
    "mean_displacement": {"color": GREY, "linestyle": (0, (9, 2, 3, 2)), "linewidth": 1.3},
    "mean_pose": {"color": GREY, "linestyle": _LONG, "linewidth": 1.3},
}
TRAINING: dict[str, Any] = {"color": BLUE, "linestyle": _SOLID, "linewidth": 1.4}
VALIDATION: dict[str, Any] = {"color": VERMILION, "linestyle": _DASHED, "linewidth": 1.7}
BEST: dict[str, Any] = {"color": BLACK, "marker": "*", "markersize": 10.0, "linestyle": "none", "zorder": 5}
"""The point whose weights are kept."""

_MORE_OF_A_VARIANT = ("^", "v", "P", "X", "<", ">", "h")
"""Markers of the second and later settings of a variant."""

_SHADES = (0.0, 0.5, -0.45, 0.25, -0.25)
"""Shares of white, or of black where negative, in the colors of a variant's settings.

They keep the hue and are told apart in grey.
"""

_DASHES = (
    (0, (4, 1)),
    (0, (2, 1)),
    (0, (7, 1, 1, 1)),
    (0, (4, 1, 2, 1)),
    (0, (8, 1.5)),
    (0, (2, 2)),
    (0, (5, 1, 1, 1, 1, 1)),
)
"""Lines of the second and later settings of a variant."""

_SETTINGS = {
    "font.family": "DejaVu Sans",  # matplotlib brings it
    "font.size": TEXT_PT,
    "axes.titlesize": TITLE_PT,
    "axes.labelsize": TEXT_PT,
    "xtick.labelsize": TEXT_PT,
    "ytick.labelsize": TEXT_PT,
    "legend.fontsize": TEXT_PT,
    "legend.frameon": False,
    "legend.handlelength": 3.2,  # long enough to show a dash pattern
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.markeredgewidth": 1.2,
}


@contextmanager
def picture_style() -> Iterator[None]:
    """Draw in the project's style, whatever the user's own matplotlib settings say."""
    with matplotlib.style.context(["default", _SETTINGS], after_reset=True):
        yield


def new_figure(width_in: float, height_in: float) -> Figure:
    """An empty figure that needs no display. Call it inside `picture_style`."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def variant_look(variant: str, *, nth: int = 0) -> dict[str, Any]:
    """Line and marker of a variant, as keywords of `Axes.plot`; `nth` counts settings of that variant from 0.

    Settings of a variant share its hue and differ in shade, dashes and marker. Markers are hollow, so that
    one shows inside another where values are equal.
    """
    look = {**VARIANTS[variant], "markerfacecolor": "none"}
    if nth:
        marker = _MORE_OF_A_VARIANT[(nth - 1) % len(_MORE_OF_A_VARIANT)]
        dashes = _DASHES[(nth - 1) % len(_DASHES)]
        look |= {"marker": marker, "markersize": 5.0, "linewidth": 1.4, "linestyle": dashes}
        look["color"] = _shaded(look["color"], _SHADES[nth % len(_SHADES)])
    return look


def _shaded(color: str, share: float) -> str:
    """A color with a share of white, or of black where it is negative."""
    mixed_in, weight = (1.0, share) if share > 0 else (0.0, -share)
    return to_hex([(1 - weight) * part + weight * mixed_in for part in to_rgb(color)])


def control_look(variant: str) -> dict[str, Any]:
    """A control that uses a variant's weights: its color, thin and dotted, with crosses."""
    color = VARIANTS[variant]["color"]
    return {"color": color, "linestyle": _DOTTED, "linewidth": 1.0, "marker": "x", "markersize": 4.5}


def legend_below(figure: Figure, panels: Iterable[Axes], *, columns: int = 3) -> None:
    """One legend under all panels, with what is drawn in any of them, each label once."""
    handles = {
        str(label): handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)


def scale_axis(axes: Axes, values: Sequence[float]) -> None:
    """Give a logarithmic axis where values differ by much, with plain numbers at 1, 2 and 5."""
    if min(values) <= 0 or max(values) < LOG_FROM * min(values):
        axes.set_yscale("linear")
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG. Equal figures give equal bytes."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    return content.getvalue()


def svg_bytes(figure: Figure) -> bytes:
    """The figure as SVG on no background, its text as text. Equal figures give equal bytes."""
    content = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "thinkjepa"}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return content.getvalue()
