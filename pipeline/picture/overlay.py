"""A prediction as a video: the hand drawn over the frames, the true one in a second panel where it is known.

Only drawing reads the future: its frames are decoded, and the camera's later poses move a joint that was
predicted in the frame of the last observed camera into each later picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, repeat

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageDraw, ImageFont

from thinkjepa.pipeline.picture.page import outlined
from thinkjepa.pipeline.picture.playback import prediction_mp4
from thinkjepa.stages.data.decoding.client import FrameStack, VideoDecoder
from thinkjepa.stages.data.framing import Framing, seen_box
from thinkjepa.stages.data.joints import Bone, hand_bones
from thinkjepa.stages.data.sampling import clock_text, seconds_ahead
from thinkjepa.stages.data.trajectories import Poses, Positions, project, to_camera, to_world
from thinkjepa.stages.display import MILLIMETERS
from thinkjepa.stages.picture_style import PREDICTED, TRUE
from thinkjepa.stages.predict.frames import ChosenFrames
from thinkjepa.stages.predict.prediction import PredictedHands, Prediction

PANEL_SHORT_SIDE_PX = 480

CAPTION_PX = 56

TRUE_RGB, PREDICTED_RGB = ImageColor.getrgb(TRUE), ImageColor.getrgb(PREDICTED)

GREY = (70, 70, 70)

GHOST_OPACITY = 0.6
"""Opacity of the true hand under the predicted one."""

VIDEO_ENDED = "the video has ended: its last frame stays"

OBSERVED_NOTE = "observed; hands are drawn from the split on"

Color = tuple[int, ...]

Pixels = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class DrawnFrame:
    """One frame of the overlay: the index of the video's frame, the hands on it, and its caption.

    A hand is None where it is not known or cannot be placed. Joints that are not drawn are NaN.
    """

    frame: int
    predicted: Pixels | None
    true: Pixels | None
    observed: bool
    caption: str
    note: str = ""
    """A remark on this frame's hands."""


def overlay_video(prediction: Prediction, hands: PredictedHands, *, decode_timeout_s: float) -> bytes:
    """An H.264 MP4: observed frames, then the future ones with the predicted hand (and the true one).

    `hands` are those of `prediction`.
    """
    shown_frames = list(drawn_frames(prediction.frames, hands))
    with VideoDecoder(timeout_s=decode_timeout_s) as decoder:
        frames = (
            frame
            for index, shown in groupby(shown_frames, key=lambda drawn: drawn.frame)
            for frame in repeat(decoder.frames(prediction.video, [index])[0], len(list(shown)))
        )
        bones, note = hand_bones(hands.joints), _note(prediction.frames, hands)
        pictures = (
            _picture(
                frame,
                drawn,
                bones,
                two_panels=hands.true_m is not None and _intrinsics(hands) is not None,
                note=note,
                framing=prediction.framing,
            )
            for frame, drawn in zip(frames, shown_frames, strict=True)
        )
        return prediction_mp4(pictures, prediction.frames)


def drawn_frames(frames: ChosenFrames, hands: PredictedHands) -> Iterator[DrawnFrame]:
    """All frames of the overlay, in order. Past the video's end its last frame stays."""
    observed_s = seconds_ahead(frames.observed_times_s, observed_times_s=frames.observed_times_s)
    ahead_s = seconds_ahead(frames.future_times_s, observed_times_s=frames.observed_times_s)
    for index, seconds in zip(frames.observed, observed_s, strict=True):
        yield DrawnFrame(index, None, None, True, f"observed  {clock_text(seconds)}")
    for step, seconds in enumerate(ahead_s):
        shown = (*frames.observed, *frames.future[: step + 1])[-1]
        true, distance = None, ""
        predicted = _pixels(hands, hands.positions_m[step], shown)
        behind = _behind({"predicted": predicted})
        if hands.true_m is not None and step < len(hands.true_m):
            assert hands.true_confidence is not None, "comes with the true joints"
            known = hands.true_confidence[step] > 0
            if known.any():
                true = _pixels(hands, hands.true_m[step], shown)
                behind = _behind({"predicted": predicted, "true": None if true is None else true[known]})
                apart_m = np.linalg.norm(hands.positions_m[step] - hands.true_m[step], axis=-1)
                distance = f"   {MILLIMETERS.amount(apart_m[known].mean())} apart"
            if true is not None:
                true[~known] = np.nan
        note = behind if step < len(frames.future) else behind or VIDEO_ENDED
        yield DrawnFrame(shown, predicted, true, False, f"future  {clock_text(seconds)}{distance}", note)


def _behind(hands: Mapping[str, Pixels | None]) -> str:
    """A remark on known joints that are behind the camera of their frame. Empty where there are none."""
    counts = {
        name: int(np.isnan(pixels).any(axis=1).sum()) for name, pixels in hands.items() if pixels is not None
    }
    named = " and ".join(f"{number} {name}" for name, number in counts.items() if number)
    return f"behind the camera, not drawn: {named} joints" if named else ""


def _pixels(hands: PredictedHands, positions_m: Positions, frame: int) -> Pixels | None:
    """Pixels of joints in a frame, `(joint, 2)`, NaN behind the camera. None where it is not known."""
    intrinsics = _intrinsics(hands)
    if intrinsics is None:
        return None
    labels, then = hands.labels, hands.camera_pose
    if then is not None and labels is not None and labels.camera_poses is not None:
        now = labels.camera_poses[min(frame, labels.num_frames - 1)]
        positions_m = to_camera(to_world(positions_m, then), now)
    return project(positions_m, intrinsics)


def _intrinsics(hands: PredictedHands) -> Poses | None:
    """Intrinsics of the camera in whose frame the joints are; None where they cannot be projected."""
    if hands.labels is None or hands.reference_frame != "camera":
        return None
    return hands.labels.intrinsics


def _note(frames: ChosenFrames, hands: PredictedHands) -> str:
    """A remark on how the joints were projected, for the viewer."""
    labels = hands.labels
    if labels is None or _intrinsics(hands) is None:
        return "camera unknown: hands cannot be placed and are not drawn"
    if hands.camera_pose is None:
        return "camera taken as still"
    if max(frames.future, default=0) >= labels.num_frames:
        return f"camera known up to frame {labels.num_frames - 1}, then taken as still"
    return ""


def _picture(
    frame: npt.NDArray[np.uint8],
    drawn: DrawnFrame,
    bones: Sequence[Bone],
    *,
    two_panels: bool,
    note: str,
    framing: Framing | None,
) -> Image.Image:
    """One frame of the overlay: a panel or two, and a caption under each."""
    size = panel_size(frame, short_side_px=PANEL_SHORT_SIDE_PX)
    shown = [("predicted", drawn.predicted, PREDICTED_RGB)]
    if two_panels:
        shown.append(("true", drawn.true, TRUE_RGB))
    canvas = Image.new("RGB", (size[0] * len(shown), size[1] + CAPTION_PX), GREY)
    for column, (title, pixels, color) in enumerate(shown):
        ghost = drawn.true if column == 0 else None
        panel = hand_panel(
            frame,
            size,
            bones,
            pixels=pixels,
            color=color,
            ghost=ghost,
            framed=not drawn.observed,
            seen=framing,
        )
        canvas.paste(panel, (column * size[0], 0))
        text = drawn.caption if column == 0 else ""
        small_print = drawn.note or note if column == 0 else ""
        if drawn.observed and column == len(shown) - 1:
            small_print = small_print or OBSERVED_NOTE
        _caption(canvas, column * size[0], size, title, color, text, small_print)
        if column == 0 and drawn.true is not None:
            _ghost_legend(canvas, size)
    return canvas


def panel_size(frame: FrameStack, *, short_side_px: int) -> tuple[int, int]:
    """Width and height in pixels, even, of a panel that shows a frame."""
    height, width = frame.shape[:2]
    scale = short_side_px / min(height, width)
    return _even(width * scale), _even(height * scale)


def hand_panel(
    frame: FrameStack,
    size: tuple[int, int],
    bones: Sequence[Bone],
    *,
    pixels: Pixels | None,
    color: Color,
    ghost: Pixels | None,
    framed: bool,
    seen: Framing | None,
) -> Image.Image:
    """A frame scaled to `size` with a hand over it, given in the frame's own pixels.

    `ghost` is the true hand, faint under it. A frame of the future is `framed` in the hand's color. The part
    `seen` by the encoder is outlined.
    """
    scale = min(size) / min(frame.shape[:2])
    scaled = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
    panel = Image.fromarray(scaled)
    if seen is not None:
        panel = Image.fromarray(outlined(scaled, seen_box(seen, width_px=size[0], height_px=size[1])))
    if ghost is not None:
        under = panel.copy()
        _draw_hand(under, ghost * scale, bones, TRUE_RGB)
        panel = Image.blend(panel, under, GHOST_OPACITY)
    if pixels is not None:
        _draw_hand(panel, pixels * scale, bones, color)
    if framed:
        ImageDraw.Draw(panel).rectangle((0, 0, size[0] - 1, size[1] - 1), outline=color, width=4)
    return panel


def _caption(
    canvas: Image.Image,
    left: int,
    size: tuple[int, int],
    label: str,
    color: Color,
    text: str,
    note: str,
) -> None:
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=20)
    draw.text((left + 10, size[1] + 6), text, font=font, fill="white")
    draw.rectangle((left + size[0] - 130, size[1] + 8, left + size[0] - 112, size[1] + 26), fill=color)
    draw.text((left + size[0] - 104, size[1] + 6), label, font=font, fill="white")
    if note:
        draw.text((left + 10, size[1] + 32), note, font=ImageFont.load_default(size=14), fill=(220, 220, 220))


def _ghost_legend(canvas: Image.Image, size: tuple[int, int]) -> None:
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    swatch = tuple(
        round(GHOST_OPACITY * one + (1 - GHOST_OPACITY) * gray)
        for one, gray in zip(TRUE_RGB, GREY, strict=True)
    )
    draw.rectangle((size[0] - 130, size[1] + 35, size[0] - 112, size[1] + 47), fill=swatch)
    draw.text((size[0] - 104, size[1] + 32), "faint: true", font=font, fill=(220, 220, 220))


def _draw_hand(
    panel: Image.Image,
    points: Pixels,
    bones: Sequence[Bone],
    color: Color,
) -> None:
    """Bones with a dark rim, so that they stand out on any picture, and joints as dots."""
    draw = ImageDraw.Draw(panel)
    for width, fill in ((7, (20, 20, 20)), (4, color)):
        for bone in bones:
            if np.isfinite(points[[bone.start, bone.end]]).all():
                draw.line([tuple(points[bone.start]), tuple(points[bone.end])], fill=fill, width=width)
    for x, y in points[np.isfinite(points).all(axis=1)]:
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=color, outline=(20, 20, 20))


def _even(value: float) -> int:
    return 2 * round(value / 2)
