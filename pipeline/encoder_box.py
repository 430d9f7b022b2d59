"""The outline of what an encoder sees of a frame, on images and in figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import patheffects
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw

from thinkjepa.stages.data.framing import Box

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
    corner = (box.left - 0.5, box.top - 0.5)  # pixel centers lie on whole numbers
    rim = [patheffects.withStroke(linewidth=line_pt + 0.8, foreground="black", alpha=0.7)]
    style: dict[str, Any] = {"fill": False, "edgecolor": "white", "linewidth": line_pt, "path_effects": rim}
    axes.add_patch(Rectangle(corner, box.width, box.height, **style))
