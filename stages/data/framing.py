"""The part of a video's frame that an encoder sees: resized and the middle cut out, or the whole of it.

An encoder's feature set records its framing in `source["framing"]`:
`resize` is `{"shortest_edge": n}` or `{"height": h, "width": w}`, `crop` is `{"height": h, "width": w}`, in
pixels. Either is None where the encoder's processor leaves that step out. With `--encoder-fit letterbox` both
are None, and `letterbox` is `{"height": h, "width": w}`: the whole frame is scaled into that size and padded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Framing = Mapping[str, Mapping[str, int] | None]

VJEPA2_FRAMING: Framing = {"resize": {"shortest_edge": 292}, "crop": {"height": 256, "width": 256}}
"""Of the released V-JEPA 2 of 256 px; those of 384 px crop the same share."""


ROUNDING = 1e-6
"""Pixels. Edges that are whole numbers but for rounding count as such."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels of a frame, x to the right and y down from its top left corner."""

    left: float
    top: float
    width: float
    height: float

    def scaled(self, factor: float) -> Box:
        """The same part of a frame that was resized by `factor`."""
        return Box(self.left * factor, self.top * factor, self.width * factor, self.height * factor)

    def inner_px(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the whole pixels inside, right and bottom exclusive."""
        left, top = math.ceil(self.left - ROUNDING), math.ceil(self.top - ROUNDING)
        right = math.floor(self.left + self.width + ROUNDING)
        bottom = math.floor(self.top + self.height + ROUNDING)
        return left, top, max(right, left + 1), max(bottom, top + 1)

    def whole_px(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom, rounded; right and bottom are exclusive."""
        left, top = round(self.left), round(self.top)
        return (
            left,
            top,
            max(round(self.left + self.width), left + 1),
            max(round(self.top + self.height), top + 1),
        )


def processor_framing(processor: Any) -> Framing:
    """The framing of an image or video processor of transformers."""
    resize = {name: int(value) for name, value in dict(processor.size).items() if value is not None}
    crop = processor.crop_size if processor.do_center_crop else None
    return {
        "resize": resize if processor.do_resize else None,
        "crop": None if crop is None else {"height": int(crop["height"]), "width": int(crop["width"])},
    }


def seen_box(framing: Framing, *, width_px: int, height_px: int) -> Box:
    """The part of a frame of `width_px` x `height_px` that an encoder sees, in the frame's own pixels."""
    if framing.get("letterbox"):
        return Box(0, 0, width_px, height_px)
    resized_width, resized_height = _resized(framing["resize"], width_px, height_px)
    crop = framing["crop"] or {"height": resized_height, "width": resized_width}
    width = width_px * min(crop["width"] / resized_width, 1.0)
    height = height_px * min(crop["height"] / resized_height, 1.0)
    return Box((width_px - width) / 2, (height_px - height) / 2, width, height)


def grid_box(framing: Framing, *, width_px: int, height_px: int) -> Box:
    """The part of the picture plane that an encoder's patches cover, in the frame's own pixels.

    That is what it sees, and with a letterbox the padding too, which is outside the frame.
    """
    square = framing.get("letterbox")
    if not square:
        return seen_box(framing, width_px=width_px, height_px=height_px)
    scale = min(square["width"] / width_px, square["height"] / height_px)
    width, height = square["width"] / scale, square["height"] / scale
    return Box((width_px - width) / 2, (height_px - height) / 2, width, height)


def inside_view(
    pixels: npt.NDArray[np.float64], framing: Framing, *, width_px: int, height_px: int
) -> npt.NDArray[np.bool_]:
    """True for each point that an encoder sees, given in pixels of the frame `(..., 2)`, right and down.

    Points in a camera's frame are projected first, by `trajectories.project`. What it gives no place in the
    picture, NaN, is not seen.
    """
    box = seen_box(framing, width_px=width_px, height_px=height_px)
    corner, size = np.array([box.left, box.top]), np.array([box.width, box.height])
    offsets = pixels - corner
    inside: npt.NDArray[np.bool_] = ((offsets >= 0) & (offsets < size)).all(axis=-1)
    return inside


def letterbox_framing(height_px: int, width_px: int) -> Framing:
    """The framing of whole frames that are scaled into this size and padded."""
    return {"resize": None, "crop": None, "letterbox": {"height": height_px, "width": width_px}}


def fitted_size(height: int, width: int, *, height_px: int, width_px: int) -> tuple[int, int]:
    """Height and width of a frame of `height_px` x `width_px` scaled into `height` x `width`, in pixels."""
    scale = min(height / height_px, width / width_px)
    return max(1, round(height_px * scale)), max(1, round(width_px * scale))


def describe_framing(framing: Framing) -> str:
    """The part of a frame that an encoder of this framing sees, in words."""
    if square := framing.get("letterbox"):
        return f"whole frames, padded to {square['width']} x {square['height']} px"
    crop, resize = framing["crop"], framing["resize"] or {}
    short_side_px = resize.get("shortest_edge")
    resized = f" resized to a short side of {short_side_px} px" if short_side_px else ""
    if crop is None:
        return f"whole frames{resized or ' stretched' if resize else ''}"
    return f"the middle {crop['width']} x {crop['height']} px of frames{resized}"


def set_framing(source: Mapping[str, Any]) -> Framing | None:
    """The framing that an encoder's feature set recorded; None in caches from before it was recorded."""
    framing: Framing | None = source.get("framing")
    return framing


def _resized(resize: Mapping[str, int] | None, width_px: int, height_px: int) -> tuple[int, int]:
    """Width and height of a resized frame."""
    if resize is None:
        return width_px, height_px
    if "shortest_edge" in resize:
        short_px = resize["shortest_edge"]
        scale = short_px / min(width_px, height_px)
        return max(int(width_px * scale), short_px), max(int(height_px * scale), short_px)
    return resize["width"], resize["height"]
