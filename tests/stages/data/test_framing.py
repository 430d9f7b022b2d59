"""The box that an encoder sees, in pixels of the video's frames."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import BitImageProcessor, VJEPA2VideoProcessor

from thinkjepa.stages.data.framing import (
    VJEPA2_FRAMING,
    Box,
    Framing,
    describe_framing,
    grid_box,
    inside_view,
    letterbox_framing,
    processor_framing,
    seen_box,
)


def processors() -> dict[str, object]:
    dino = {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}}
    return {
        "vjepa2": VJEPA2VideoProcessor(),
        "dinov2": BitImageProcessor(**dino),
        "stretched": BitImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False),
    }


def edges_seen(processor: object, width: int, height: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what is left of a frame whose pixels hold their own coordinates."""
    x, y = np.linspace(0, 255, width), np.linspace(0, 255, height)
    frame = np.zeros((height, width, 3), dtype=np.float32)
    frame[..., 0], frame[..., 1] = x[None], y[:, None]
    frame = frame.round().astype(np.uint8)
    plain = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
    if isinstance(processor, VJEPA2VideoProcessor):
        video = frame.transpose(2, 0, 1)[None]
        pixels = processor(videos=[video], do_sample_frames=False, **plain)["pixel_values_videos"][0, 0]
    else:
        pixels = processor(images=[frame], **plain)["pixel_values"][0]  # type: ignore[operator]
    pixels = np.asarray(pixels, dtype=np.float64)
    across, down = pixels[0] / 255 * width, pixels[1] / 255 * height
    return across[:, 0].mean(), down[0].mean(), across[:, -1].mean(), down[-1].mean()


@pytest.mark.parametrize("size", [(1920, 1080), (320, 180), (160, 128), (240, 426)])
@pytest.mark.parametrize("name", ["vjepa2", "dinov2", "stretched"])
def test_the_box_holds_what_the_processor_leaves_of_a_frame(name: str, size: tuple[int, int]) -> None:
    processor = processors()[name]
    width, height = size
    box = seen_box(processor_framing(processor), width_px=width, height_px=height)
    found = edges_seen(processor, width, height)
    expected = (box.left, box.top, box.left + box.width, box.top + box.height)
    for axis, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one == pytest.approx(other, abs=0.02 * size[axis % 2])


def test_the_encoder_sees_the_middle_square_of_a_wide_frame() -> None:
    box = seen_box(VJEPA2_FRAMING, width_px=1920, height_px=1080)
    assert (box.width, box.height) == pytest.approx((947.4, 946.8), abs=1)
    assert box.left == pytest.approx((1920 - box.width) / 2)
    assert box.scaled(0.5).whole_px() == (243, 33, 717, 507)


def test_the_released_vjepa2_has_the_framing_that_is_assumed_of_it() -> None:
    assert processor_framing(VJEPA2VideoProcessor()) == VJEPA2_FRAMING


def test_a_processor_that_neither_resizes_nor_crops_leaves_the_frame() -> None:
    whole: Framing = {"resize": None, "crop": None}
    assert seen_box(whole, width_px=320, height_px=180) == Box(0, 0, 320, 180)


@pytest.mark.parametrize("size", [(1920, 1080), (1080, 1920), (333, 91)])
def test_a_letterboxed_frame_is_seen_whole_and_its_patches_cover_more(size: tuple[int, int]) -> None:
    width, height = size
    framing = letterbox_framing(256, 256)
    assert seen_box(framing, width_px=width, height_px=height) == Box(0, 0, width, height)
    grid = grid_box(framing, width_px=width, height_px=height)
    assert grid.width == pytest.approx(grid.height) == pytest.approx(max(size))
    assert grid.left == pytest.approx((width - max(size)) / 2)
    assert grid.top == pytest.approx((height - max(size)) / 2)
    cropped = {"framing": VJEPA2_FRAMING, "width_px": width, "height_px": height}
    assert grid_box(**cropped) == seen_box(**cropped)


def test_points_are_inside_the_view_or_not() -> None:
    box = seen_box(VJEPA2_FRAMING, width_px=1920, height_px=1080)
    right, bottom = box.left + box.width, box.top + box.height
    points = np.array(
        [
            [(960, 540), (box.left + 0.1, box.top + 0.1), (right - 0.1, bottom - 0.1)],
            [(box.left - 0.1, 540), (right + 0.1, 540), (960, bottom + 0.1)],
            [(np.nan, np.nan), (-5, 540), (960, 2000)],
        ]
    )
    inside = inside_view(points, VJEPA2_FRAMING, width_px=1920, height_px=1080)
    assert inside.tolist() == [[True] * 3, [False] * 3, [False] * 3]
    whole = inside_view(points, letterbox_framing(256, 256), width_px=1920, height_px=1080)
    assert whole.tolist() == [[True] * 3, [True] * 3, [False] * 3]


def test_whole_pixels_inside_a_box() -> None:
    assert Box(1.2, 2.0, 3.5, 4.0).inner_px() == (2, 2, 4, 6)
    assert Box(0.3, 0.3, 0.2, 0.2).inner_px() == (1, 1, 2, 2)  # one at least


def test_framings_in_words() -> None:
    short = "a short side of 292 px"
    assert describe_framing(VJEPA2_FRAMING) == f"the middle 256 x 256 px of frames resized to {short}"
    assert describe_framing(letterbox_framing(256, 256)) == "whole frames, padded to 256 x 256 px"
    assert describe_framing({"resize": None, "crop": None}) == "whole frames"
    assert describe_framing({"resize": {"height": 8, "width": 8}, "crop": None}) == "whole frames stretched"
