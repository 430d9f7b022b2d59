"""Hand labels as a figure: a row of frames for each video, hands drawn over them, and how sure they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import patheffects

from thinkjepa.pipeline.encoder_box import draw_box
from thinkjepa.pipeline.label_view import TILES, LabelView, Tile
from thinkjepa.pipeline.page import (
    BODY_PT,
    CONTENT_IN,
    HEADING_PT,
    MARGIN_IN,
    SMALL_PT,
    TITLE_PT,
    Page,
    shortened,
)
from thinkjepa.pipeline.units import counted
from thinkjepa.stages.data.joints import hand_bones
from thinkjepa.stages.data.labels.findings import BINS
from thinkjepa.stages.data.labels.folder_check import FolderCheck
from thinkjepa.stages.picture_style import BLUE, GREY, picture_style

COLORS = {
    "Thumb": "#ffb000",
    "Index": "#ff6a1f",
    "Middle": "#e8308c",
    "Ring": "#8f6bff",
    "Little": "#39a0ff",
    "Arm": "#f5f5f5",
}
"""Told apart also with the common kinds of colour blindness; IBM's palette, lightened for dark frames."""

GAP_IN = 0.06
TITLE_IN = 0.5
HEADING_IN = 0.36
ROW_GAP_IN = 0.16
FOOTER_IN = 1.15
TILE_IN = (CONTENT_IN - (TILES - 1) * GAP_IN) / TILES
MAX_TILE_HEIGHT_IN = 2.6
BONE_PT, JOINT_PT = 1.5, 1.9
DARK = "#10131a"


def draw(views: Sequence[LabelView], check: FolderCheck, *, encoder: str) -> bytes:
    """The picture as PNG. It does not depend on the user's matplotlib settings.

    `encoder` names the one whose box is drawn.
    """
    with picture_style():
        heights = [_tile_height(view) for view in views]
        body = sum(height + HEADING_IN + ROW_GAP_IN for height in heights)
        page = Page(2 * MARGIN_IN + TITLE_IN + body + FOOTER_IN)
        _title(page, check)
        top = MARGIN_IN + TITLE_IN
        for view, height in zip(views, heights, strict=True):
            _video(page, top, view, height)
            top += height + HEADING_IN + ROW_GAP_IN
        _legend(page, top, views, encoder)
        _confidences(page, top, check)
        return page.png()


def _title(page: Page, check: FolderCheck) -> None:
    page.text(MARGIN_IN, MARGIN_IN, f"Hand labels of {shortened(check.folder, most=80)}", size=TITLE_PT)
    counts = (
        f"{counted(len(check.videos), 'video')}, {len(check.usable)} with usable labels; "
        f"{counted(check.num_errors, 'error')}, {counted(check.num_warnings, 'warning')}"
    )
    page.text(MARGIN_IN, MARGIN_IN + 0.23, counts, size=BODY_PT, color=GREY)


def _tile_height(view: LabelView) -> float:
    """In inches: frames keep their shape, very tall ones become narrower."""
    if not view.tiles:
        return 0.3
    height, width = view.tiles[0].pixels.shape[:2]
    return float(min(TILE_IN * height / width, MAX_TILE_HEIGHT_IN))


def _video(page: Page, top: float, view: LabelView, height_in: float) -> None:
    page.text(MARGIN_IN, top, shortened(view.video, most=60), size=HEADING_PT, weight="bold")
    words = shortened(" ".join(view.description.split()), most=130) or "no description"
    page.text(MARGIN_IN, top + 0.17, words, size=BODY_PT, color=GREY, style="italic")
    if not view.tiles:
        page.text(MARGIN_IN, top + HEADING_IN, shortened(view.note, most=150), size=BODY_PT)
    for place, tile in enumerate(view.tiles):
        x = MARGIN_IN + place * (TILE_IN + GAP_IN)
        axes = page.axes(x, top + HEADING_IN, TILE_IN, height_in)
        _frame(axes, tile)
        draw_box(axes, tile.box)
        _hands(axes, tile, view.joint_names)
        _caption(axes, f"frame {tile.frame}  {tile.time_s:.2f} s", 0.03, 0.05, va="bottom")
        if view.note:
            _caption(axes, view.note, 0.5, 0.5, ha="center", va="center")


def _frame(axes: Any, tile: Tile) -> None:
    height, width = tile.pixels.shape[:2]
    axes.imshow(tile.pixels, aspect="equal", alpha=0.7)
    axes.set_facecolor(DARK)  # dims the frame, so that hands stand out
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_autoscale_on(False)


def _hands(axes: Any, tile: Tile, names: Sequence[str]) -> None:
    """Trails below, bones, then joints; what is unsure is faint."""
    places = {name: place for place, name in enumerate(names)}
    for trail in tile.trails:
        _trail(axes, trail)
    halo = [patheffects.withStroke(linewidth=BONE_PT + 1.1, foreground=DARK, alpha=0.6)]
    drawn: set[int] = set()
    for bone in hand_bones(names):
        ends = [bone.start, bone.end]
        (xs, ys), alpha = tile.points[ends].T, _alpha(tile.confidences[ends].min())
        style = {"color": COLORS[bone.part], "alpha": alpha, "path_effects": halo}
        axes.plot(xs, ys, linewidth=BONE_PT, solid_capstyle="round", **style)
        axes.plot(xs[1:], ys[1:], "o", ms=JOINT_PT, mew=0, color=COLORS[bone.part], alpha=alpha)
        drawn |= set(ends)
    for place in sorted(set(places.values()) - drawn):
        if not any(part in names[place] for part in ("spine", "neck", "hip")):
            style = {"mec": DARK, "mew": 0.4, "alpha": _alpha(tile.confidences[place])}
            axes.plot(*tile.points[place], "o", ms=JOINT_PT + 1.2, color=COLORS["Index"], **style)
    for side, letter in (("right", "R"), ("left", "L")):
        wrist = places.get(f"{side}Hand")
        if wrist is not None and np.isfinite(tile.points[wrist]).all():
            x, y = tile.points[wrist]
            style = {"ha": "center", "va": "center", "size": 5.0, "weight": "bold", "color": DARK}
            axes.plot(x, y, "o", ms=6.0, color="white", mew=0)
            axes.text(x, y, letter, clip_on=True, **style)


def _trail(axes: Any, trail: Any) -> None:
    """Where a wrist came from: fading into the past."""
    for step in range(len(trail) - 1):
        age = (step + 1) / len(trail)
        axes.plot(*trail[step : step + 2].T, color="white", linewidth=0.4 + 1.2 * age, alpha=0.75 * age**1.5)


def _alpha(confidence: float) -> float:
    return 0.25 + 0.75 * float(confidence)


def _caption(axes: Any, text: str, x: float, y: float, **style: Any) -> None:
    box = {"facecolor": DARK, "alpha": 0.65, "pad": 1.5, "linewidth": 0}
    place = {"transform": axes.transAxes, "bbox": box, "parse_math": False, "clip_on": True}
    axes.text(x, y, text, size=SMALL_PT, color="white", **place, **style)


def _legend(page: Page, top: float, views: Sequence[LabelView], encoder: str) -> None:
    """The parts of hands that are drawn in any tile, and what else is."""
    parts = _drawn_parts(views)
    shown = {part: color for part, color in COLORS.items() if part in parts}
    if shown:
        page.text(MARGIN_IN, top + 0.05, "Fingers", size=HEADING_PT)
    for place, (part, color) in enumerate(shown.items()):
        x, middle = MARGIN_IN + (place % 3) * 1.05, top + 0.36 + (place // 3) * 0.2
        style = {"color": color if part != "Arm" else "#b8bcc4", "linewidth": 2.4}
        page.line([x, x + 0.22], [middle, middle], **style)
        page.text(x + 0.29, middle, "Forearm (white)" if part == "Arm" else part, va="center")
    words = [f"White box: what {encoder} sees of a frame. Seconds are those of the video."]
    if any(np.isfinite(trail).any() for view in views for tile in view.tiles for trail in tile.trails):
        words.append("Fading white lines: the wrists' last half second, seen by this frame's camera.")
    if shown:
        words.append("Faint: low confidence.")
    page.small_print(MARGIN_IN, top + 0.7, "\n".join(words))


def _drawn_parts(views: Sequence[LabelView]) -> set[str]:
    """Parts of hands with a bone whose joints are both known in some tile."""
    return {
        bone.part
        for view in views
        for bone in hand_bones(view.joint_names)
        for tile in view.tiles
        if np.isfinite(tile.points[[bone.start, bone.end]]).all()
    }


def _confidences(page: Page, top: float, check: FolderCheck) -> None:
    """How many samples are how sure, over all usable labels."""
    left, width = MARGIN_IN + CONTENT_IN / 2, CONTENT_IN / 2
    page.text(left, top + 0.05, "Confidence of joints, 0 to 1: share of all samples", size=HEADING_PT)
    counts = np.array(check.confidence_histogram, dtype=float)
    axes = page.axes(left, top + 0.28, width, 0.55)
    shares = counts / max(counts.sum(), 1)
    centres = (np.arange(BINS) + 0.5) / BINS
    axes.bar(centres, shares, width=0.9 / BINS, color=BLUE, alpha=0.9)
    for centre, share in zip(centres, shares, strict=True):
        if share >= 0.005:
            axes.text(centre, share, f"{share:.0%}", size=SMALL_PT, ha="center", va="bottom")
    axes.set(xlim=(0, 1), ylim=(0, max(float(shares.max()), 0.01) * 1.35), yticks=[])
    axes.spines["left"].set_visible(False)
