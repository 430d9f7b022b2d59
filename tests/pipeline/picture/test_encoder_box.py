"""The outline of what an encoder sees, in the pictures of labels and clips."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from thinkjepa.cache import FeatureCache, WriteSession, describe_set
from thinkjepa.pipeline.picture.labels import THUMBNAIL_PX, encoder_framing, labeled_videos
from thinkjepa.pipeline.picture.page import draw_box, outlined
from thinkjepa.stages.data.decoding.client import VideoDecoder
from thinkjepa.stages.data.framing import VJEPA2_FRAMING, Box
from thinkjepa.stages.data.labels.check import check_folder
from thinkjepa.stages.progress import NoProgress

GREY = 120


def test_an_image_is_outlined_at_the_box_and_left_alone_elsewhere() -> None:
    image = np.full((60, 100, 3), GREY, dtype=np.uint8)
    found = outlined(image, Box(20, 5, 50, 50))
    assert (image == GREY).all(), "the image itself is not drawn on"
    white = np.argwhere((found == 255).all(axis=-1))
    assert (white.min(axis=0).tolist(), white.max(axis=0).tolist()) == ([6, 21], [53, 68])
    inside, outside = found[8:52, 23:67], np.delete(found, slice(5, 55), axis=0)
    assert (inside == GREY).all()
    assert (outside == GREY).all()


def test_a_box_in_a_figure_lies_on_the_pixels_of_the_image() -> None:
    figure = Figure(figsize=(2, 1), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(np.full((100, 200, 3), GREY, dtype=np.uint8))
    axes.set_axis_off()
    draw_box(axes, Box(50, 0, 100, 100), line_pt=2)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    row = np.asarray(Image.open(content).convert("L"))[50].astype(int)
    bright = np.flatnonzero(row > 200)
    assert np.abs(bright[bright < 100] - 49.5).max() <= 2
    assert np.abs(bright[bright > 100] - 149.5).max() <= 2
    assert (row[60:140] == GREY).all()


def test_labels_of_a_wide_video_show_the_middle_square(
    tmp_path: Path, make_video: Callable[..., Path], write_egodex: Callable[..., Path]
) -> None:
    make_video(tmp_path / "0.mp4", num_frames=12, size=(1024, 576))
    write_egodex(tmp_path / "0.hdf5", 12, size=(1024, 576))
    with VideoDecoder(timeout_s=60) as decoder:
        check = check_folder([tmp_path / "0.mp4"], tmp_path, decoder=decoder, progress=NoProgress())
        (view,) = labeled_videos(check, tmp_path, decoder=decoder, framing=VJEPA2_FRAMING)
    tile = view.tiles[0]
    assert tile.pixels.shape[1] == THUMBNAIL_PX
    assert tile.box.width == pytest.approx(THUMBNAIL_PX * 576 / 1024 * 256 / 292, rel=0.01)
    assert tile.box.left == pytest.approx((THUMBNAIL_PX - tile.box.width) / 2)


def test_the_box_is_that_of_the_caches_own_encoder(tmp_path: Path) -> None:
    framing = {"resize": {"shortest_edge": 64}, "crop": {"height": 56, "width": 56}}
    assert encoder_framing(None) == (VJEPA2_FRAMING, "V-JEPA 2")
    for name, source in (("old", {"model": "a"}), ("new", {"model": "b", "framing": framing})):
        made = describe_set(
            "encoder", origin={}, source=source, arrays=(), shard_bytes=1, typical_clip_bytes=1
        )
        with WriteSession(tmp_path / name) as session:
            session.resolve(made)
    assert encoder_framing(FeatureCache.open(tmp_path / "old"))[1] == "V-JEPA 2"
    assert encoder_framing(FeatureCache.open(tmp_path / "new")) == (framing, "b")


def test_the_box_is_that_of_an_encoder_with_clips(tmp_path: Path, latent_cache: Callable[..., Path]) -> None:
    used = {"resize": {"shortest_edge": 64}, "crop": {"height": 56, "width": 56}}
    cache = latent_cache(num_videos=1, framing=used)
    empty = describe_set(
        "encoder",
        origin={"weights": "left by a run that failed"},
        source={
            "model": "other",
            "framing": {"resize": {"shortest_edge": 9}, "crop": {"height": 9, "width": 9}},
        },
        arrays=(),
        shard_bytes=1,
        typical_clip_bytes=1,
    )
    with WriteSession(cache) as session:
        session.resolve(empty)
    names = list(FeatureCache.open(cache).feature_sets)
    assert names[0] == empty.name, "the empty set comes first, so that the test can fail"
    assert encoder_framing(FeatureCache.open(cache)) == (used, "tiny")
