"""The picture of a clip: what it gathers is what the cache and the video hold, and any clip can be drawn."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image

from thinkjepa.cache import (
    TOKEN_CHUNK,
    ArraySpec,
    CacheError,
    ClipFeatures,
    ClipRow,
    FeatureCache,
    FeatureSet,
    WriteSession,
    describe_set,
    file_digest,
)
from thinkjepa.pipeline.picture.clip import draw
from thinkjepa.pipeline.picture.clip_content import ClipContent, clip_content, evenly
from thinkjepa.pipeline.picture.latent_panels import LatentColors
from thinkjepa.pipeline.picture.page import MONO, Page, printable, wrapped
from thinkjepa.stages.errors import StageError

FPS, SPLIT, WINDOWS, TUBELET = 10.0, 24, 2, 2
OBSERVED_STEPS, FUTURE_STEPS = 10, 3
GRID, WIDTH = (2, 3), 5
LAYERS, THINKER_WIDTH, CAPACITY = (1, 5, 9), 6, 64
KINDS = (1, 1, 1, 2, 2, 3)  # of each token: three of text, two visual, one generated
TEXT = "A $5 bill_^ \\frac \x00\x1b[31m\n\u202eרז 中文 😀"

Latents = tuple[torch.Tensor, torch.Tensor]
View = Callable[..., ClipContent]


@pytest.fixture(scope="module")
def video(tmp_path_factory, make_video) -> Path:
    return make_video(tmp_path_factory.mktemp("videos") / "a" / "$1_{x.mp4", num_frames=40, fps=10)


@pytest.fixture(scope="module")
def videos(video) -> Path:
    """The folder of the one video."""
    return video.parents[1]


@pytest.fixture(scope="module")
def latents() -> Latents:
    generator = torch.Generator().manual_seed(0)
    patches = GRID[0] * GRID[1]
    observed = torch.randn(OBSERVED_STEPS, patches, WIDTH, generator=generator)
    return observed, torch.randn(WINDOWS, FUTURE_STEPS, patches, WIDTH, generator=generator)


@pytest.fixture(scope="module")
def pooled() -> torch.Tensor:
    return torch.randn(len(LAYERS), 2, THINKER_WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def thinker_set() -> FeatureSet:
    depth = len(LAYERS)
    return describe_set(
        "thinker",
        origin={"layers": list(LAYERS), "prompt": "Why?", "sampling": {"fingerprint": "t"}},
        source={"model": "some/thinker"},
        arrays=(
            ArraySpec(
                name="tokens",
                dims=("layer", "token", "dim"),
                shape=(depth, CAPACITY, THINKER_WIDTH),
                chunks=(1, TOKEN_CHUNK, THINKER_WIDTH),
                dtype="bfloat16",
            ),
            ArraySpec("token_kind", ("token",), (CAPACITY,), (CAPACITY,), "uint8"),
            ArraySpec(
                name="pooled",
                dims=("layer", "stream", "dim"),
                shape=(depth, 2, THINKER_WIDTH),
                chunks=(depth, 2, THINKER_WIDTH),
                dtype="float32",
            ),
        ),
        shard_bytes=4,
        typical_clip_bytes=1,
    )


@pytest.fixture(scope="module")
def encoder_set() -> FeatureSet:
    observed = (OBSERVED_STEPS, GRID[0] * GRID[1], WIDTH)
    future = (WINDOWS, FUTURE_STEPS, *observed[1:])
    return describe_set(
        "encoder",
        origin={"grid": list(GRID), "tubelet": TUBELET, "sampling": {"fingerprint": "d"}},
        source={"model": "some/encoder"},
        arrays=(
            ArraySpec("observed", ("time", "patch", "dim"), observed, observed, "bfloat16"),
            ArraySpec("future", ("window", "time", "patch", "dim"), future, (1, *future[1:]), "bfloat16"),
        ),
        shard_bytes=4,
        typical_clip_bytes=1,
    )


@pytest.fixture(scope="module")
def clip(video) -> ClipRow:
    digest = file_digest(video)
    span = TUBELET * FUTURE_STEPS
    observed = tuple(range(SPLIT - TUBELET * OBSERVED_STEPS, SPLIT))
    future = tuple(tuple(range(SPLIT + n * span, SPLIT + (n + 1) * span)) for n in range(WINDOWS))
    return ClipRow(
        clip_id=f"{digest[:16]}@{SPLIT}",
        video="a/$1_{x.mp4",
        video_digest=digest,
        thinker_sampling="t",
        dense_sampling="d",
        split_frame=SPLIT,
        split_time_s=SPLIT / FPS,
        thinker_frames=tuple(range(SPLIT)),
        thinker_times_s=tuple(frame / FPS for frame in range(SPLIT)),
        observed_frames=observed,
        observed_times_s=tuple(frame / FPS for frame in observed),
        future_frames=future,
        future_times_s=tuple(tuple(frame / FPS for frame in window) for window in future),
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory, clip, thinker_set, encoder_set, latents, pooled) -> FeatureCache:
    root = tmp_path_factory.mktemp("cache") / "cache"
    tokens = torch.zeros(len(LAYERS), len(KINDS), THINKER_WIDTH, dtype=torch.bfloat16)
    thought = {"tokens": tokens, "token_kind": torch.tensor(KINDS, dtype=torch.uint8), "pooled": pooled}
    observed, future = (values.bfloat16() for values in latents)
    features = (
        (thinker_set, ClipFeatures(clip.clip_id, thought, token_count=len(KINDS), generated_text=TEXT)),
        (encoder_set, ClipFeatures(clip.clip_id, {"observed": observed, "future": future})),
    )
    with WriteSession(root) as session:
        session.add_clips([clip])
        for feature_set, values in features:
            with session.writer(session.resolve(feature_set)) as writer:
                assert not writer.append([values])
    return FeatureCache.open(root)


@pytest.fixture(scope="module")
def view_of(cache, clip, thinker_set, encoder_set) -> View:
    """`clip_content` of the one clip, from both sets unless told otherwise."""

    def view(videos: Path | None = None, **changes: Any) -> ClipContent:
        sets = {"thinker_set": thinker_set.name, "encoder_set": encoder_set.name} | changes
        return clip_content(cache, clip, videos=videos, **sets)

    return view


@pytest.fixture(scope="module")
def view(view_of, videos) -> ClipContent:
    return view_of(videos)


def size_px(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        assert image.format == "PNG"
        return image.size


def test_frames_are_those_of_the_clip(view, read_frame_number):
    shown = {*view.thinker.frames, *view.encoder.observed.frames, *view.encoder.future.frames}
    assert set(view.thumbnails) == shown
    assert all(read_frame_number(pixels) == frame for frame, pixels in view.thumbnails.items())
    assert view.frames_note == ""


def test_long_strips_are_thinned_evenly_and_keep_their_ends(view):
    assert len(view.thinker.frames) == 16
    assert (view.thinker.frames[0], view.thinker.frames[-1]) == (0, SPLIT - 1)
    assert view.encoder.observed.steps == (0, 1, 3, 4, 5, 6, 8, 9)
    assert view.encoder.observed.frames == tuple(4 + TUBELET * step for step in (0, 1, 3, 4, 5, 6, 8, 9))
    assert view.encoder.observed.times_s[-1] == 2.2


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 12, 15, 16, 17, 64, 1000])
def test_evenly_gives_distinct_places_with_both_ends(count):
    places = evenly(count, most=8)
    assert len(set(places)) == len(places) == min(count, 8)
    assert list(places) == sorted(places)
    assert (places[0], places[-1]) == (0, count - 1)


def painted(latents):
    colors = LatentColors.fit(latents)
    return colors.paint(latents), colors.explained


def test_of_several_future_windows_the_first_is_shown(view, latents):
    observed, future = (values.bfloat16().float() for values in latents)
    colors, explained = painted(torch.cat([observed, future[0]]))
    colors = colors.reshape(-1, *GRID, 3)
    assert view.encoder.num_windows == WINDOWS
    assert view.encoder.future.frames == (SPLIT, SPLIT + 2, SPLIT + 4)
    np.testing.assert_array_equal(view.encoder.future.colors, colors[OBSERVED_STEPS:])
    np.testing.assert_array_equal(
        view.encoder.observed.colors, colors[:OBSERVED_STEPS][[*view.encoder.observed.steps]]
    )
    assert view.encoder.explained == explained


def test_norms_and_token_counts_are_those_of_the_cache(view, pooled):
    for place, stream in enumerate(("prompt", "generated")):
        expected = np.linalg.norm(pooled[:, place].double().numpy(), axis=-1)
        assert view.thinker.norms[stream] == pytest.approx(expected.tolist())
    assert view.thinker.layers == LAYERS
    assert view.thinker.token_counts == {"text": 3, "visual": 2, "generated": 1, "reasoning": 0}
    assert view.thinker.generated_text == TEXT


def test_the_two_kinds_of_generated_tokens_have_plain_names(view):
    assert view.thinker.named_counts == {"text": 3, "visual": 2, "answer": 1, "reasoning": 0}
    untold = replace(view.thinker, token_counts={"prompt": 5, "generated": 1})
    assert untold.named_counts == {"prompt": 5, "generated": 1}


def test_json_holds_numbers_and_text_but_no_pixels(view):
    record = json.loads(json.dumps(view.to_json(), allow_nan=False))
    assert record["split_frame"] == SPLIT
    assert record["frames_note"] is None
    assert record["thinker"]["pooled_norms"]["prompt"] == list(view.thinker.norms["prompt"])
    assert record["encoder"]["future_windows"] == WINDOWS
    assert record["encoder"]["future"]["shown"]["frames"] == [SPLIT, SPLIT + 2, SPLIT + 4]
    assert len(json.dumps(record)) < 10_000


def test_stream_without_tokens_has_no_norm(view):
    silent = replace(
        view.thinker, norms={"prompt": (1.0, 900.0, 3.0), "generated": (None,) * 3}, generated_text=""
    )
    changed = replace(view, thinker=silent)
    assert changed.to_json()["thinker"]["pooled_norms"]["generated"] == [None] * 3
    size_px(draw(changed))


@pytest.mark.parametrize("case", ["no folder", "moved", "changed", "undecodable", "a folder"])
def test_frames_are_replaced_by_a_note_where_the_video_is_not_there(
    case, tmp_path, view_of, clip, video, cache
):
    place = tmp_path / clip.video
    place.parent.mkdir()
    words = {
        "no folder": "--videos",
        "moved": "is not in",
        "changed": "its content differs",
        "undecodable": "cannot be decoded",
        "a folder": "is not in",
    }[case]
    if case == "changed":
        shutil.copy(video, place)
        place.write_bytes(place.read_bytes() + b"\0")
    if case == "a folder":
        place.mkdir()
    if case == "undecodable":
        place.write_bytes(b"no video")
        sets = {item.kind: name for name, item in cache.feature_sets.items()}
        row = replace(clip, video_digest=file_digest(place))
        view = clip_content(
            cache, row, thinker_set=sets["thinker"], encoder_set=sets["encoder"], videos=tmp_path
        )
    else:
        view = view_of(None if case == "no folder" else tmp_path)
    assert view.thumbnails == {}
    assert words in view.frames_note
    assert view.to_json()["frames_note"] == view.frames_note
    assert size_px(draw(view))[0] == 1800


def test_without_frames_nothing_is_said_of_them(view_of, videos, monkeypatch):
    words = []
    text = Page.text
    monkeypatch.setattr(Page, "text", lambda *args, **style: words.append(args[3]) or text(*args, **style))
    shown = {}
    for folder in (videos, None):
        words.clear()
        draw(view_of(folder))
        shown[folder] = list(words)
    assert "encoder sees" in " ".join(shown[videos])
    assert "encoder sees" not in " ".join(shown[None])
    times = [sum(word.endswith(" s") for word in found) for found in shown.values()]
    view = view_of(None)
    assert times[0] - times[1] == len(view.thinker.frames)


def test_each_set_may_be_absent(view_of, videos):
    thinker_only, encoder_only = view_of(videos, encoder_set=None), view_of(videos, thinker_set=None)
    assert thinker_only.to_json()["encoder"] is None
    assert encoder_only.to_json()["thinker"] is None
    assert set(thinker_only.thumbnails) == set(thinker_only.thinker.frames)
    both, neither = view_of(videos), view_of(videos, thinker_set=None, encoder_set=None)
    heights = [size_px(draw(view))[1] for view in (neither, thinker_only, both)]
    assert heights == sorted(heights)
    assert size_px(draw(encoder_only))[1] < heights[-1]


def test_row_of_another_sampling_is_refused(cache, clip, thinker_set, encoder_set):
    other = replace(clip, dense_sampling="other")
    with pytest.raises(StageError, match="has other frames"):
        clip_content(cache, other, thinker_set=None, encoder_set=encoder_set.name, videos=None)
    unaffected = clip_content(cache, other, thinker_set=thinker_set.name, encoder_set=None, videos=None)
    assert unaffected.thinker is not None


def test_clip_without_features_is_an_error_that_names_it(cache, clip, thinker_set):
    other = replace(clip, clip_id="0123456789abcdef@7")
    with pytest.raises(CacheError, match="0123456789abcdef@7"):
        clip_content(cache, other, thinker_set=thinker_set.name, encoder_set=None, videos=None)


def test_colors_separate_what_differs_most():
    """Three planted directions of falling strength come back as red, green and blue."""
    generator = torch.Generator().manual_seed(2)
    axes = torch.linalg.qr(torch.randn(12, 3, generator=generator)).Q.T
    weights = torch.rand(4, 50, 3, generator=generator) * torch.tensor([9.0, 5.0, 2.0])
    colors, explained = painted(weights @ axes + 100.0)
    assert sum(explained) == pytest.approx(1.0)
    assert list(explained) == sorted(explained, reverse=True)
    for place in range(3):
        planted = weights[..., place].flatten().numpy()
        assert abs(np.corrcoef(planted, colors[..., place].ravel())[0, 1]) > 0.95
    assert (colors.min(), colors.max()) == (0.0, 1.0)


def test_equal_latents_have_equal_colors_and_missing_components_are_grey():
    constant, explained = painted(torch.full((2, 4, 6), 3.0))
    np.testing.assert_array_equal(constant, 0.5)
    assert explained == (0.0, 0.0, 0.0)
    line, explained = painted(torch.arange(8.0).reshape(2, 4, 1))
    assert explained == (1.0, 0.0, 0.0)
    assert len(np.unique(line[..., 0])) == 8
    np.testing.assert_array_equal(line[..., 1:], 0.5)


@pytest.mark.parametrize("shape", [(120, 160), (160, 90), (40, 256), (256, 40)])
def test_frames_of_any_shape_are_drawn(shape, view):
    thumbnails = {frame: np.zeros((*shape, 3), dtype=np.uint8) for frame in view.thumbnails}
    width, height = size_px(draw(replace(view, thumbnails=thumbnails)))
    assert width == 1800
    assert 900 < height < 2400


def test_any_text_is_drawn_without_warnings(view):
    """filterwarnings = error: a missing glyph would warn, and mathtext would raise."""
    hostile = "".join(chr(code) for code in range(0, 0x20000, 37)) + "$\\frac{$" * 5
    thinker = replace(view.thinker, generated_text=hostile, prompt=hostile, model=hostile)
    clip = replace(view.clip, video=hostile)
    width, _ = size_px(draw(replace(view, clip=clip, thinker=thinker, thumbnails={}, frames_note=hostile)))
    assert width == 1800


def test_picture_does_not_depend_on_the_users_settings(view):
    expected = draw(view)
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "figure.autolayout": True}):
        assert draw(view) == expected


def test_controls_are_escaped_and_unknown_characters_replaced():
    assert printable("a\x00\t\u202e中é$", family=MONO) == "a\\x00\\t\\u202e\N{REPLACEMENT CHARACTER}é$"


def test_text_is_wrapped_and_says_what_is_left_out():
    assert wrapped("one two\n\nthree", columns=5, rows=9) == ["one", "two", "", "three"]
    assert wrapped("x" * 12 + "\n\n", columns=5, rows=3) == ["xxxxx", "xxxxx", "xx"]
    assert wrapped("x" * 1000, columns=5, rows=3) == ["xxxxx", "xxxxx", "... (1,000 characters in all)"]
    assert wrapped(" \n", columns=5, rows=3) == []
