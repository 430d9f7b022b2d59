"""The part of a video's frame that an encoder sees: resized, then the middle cut out.

An encoder's feature set records its framing in `source["framing"]`:
`resize` is `{"shortest_edge": n}` or `{"height": h, "width": w}`, `crop` is `{"height": h, "width": w}`, in
pixels. Either is None where the encoder's processor leaves that step out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Framing = Mapping[str, Mapping[str, int] | None]

VJEPA2_FRAMING: Framing = {"resize": {"shortest_edge": 292}, "crop": {"height": 256, "width": 256}}
"""Of the released V-JEPA 2 of 256 px; those of 384 px crop the same share."""


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
    resized_width, resized_height = _resized(framing["resize"], width_px, height_px)
    crop = framing["crop"] or {"height": resized_height, "width": resized_width}
    width = width_px * min(crop["width"] / resized_width, 1.0)
    height = height_px * min(crop["height"] / resized_height, 1.0)
    return Box((width_px - width) / 2, (height_px - height) / 2, width, height)


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
