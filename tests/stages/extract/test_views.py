"""The part of a frame that each model sees: the middle, all of it in a padded square, or one as the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from new_videos import FPS, SIZE, lossless_video

from thinkjepa.cache import FeatureCache, FeatureSet, file_digest
from thinkjepa.pipeline.report.cache import cache_info, describe_info
from thinkjepa.stages.data.decoding.client import FrameStack, VideoDecoder
from thinkjepa.stages.data.framing import seen_box
from thinkjepa.stages.data.plan import ClipSettings
from thinkjepa.stages.extract.models.costs import given_size
from thinkjepa.stages.extract.models.pair import FrozenModels
from thinkjepa.stages.extract.remembered import remembered_settings
from thinkjepa.stages.extract.run import extract
from thinkjepa.stages.extract.settings import ExecutionSettings, ModelSettings
from thinkjepa.stages.predict.models import load_encoder, load_thinker
from thinkjepa.stages.progress import NoProgress

CLIPS = ClipSettings(thinker_frames=4, observed_frames=4, future_frames=4, dense_fps=FPS, stride_s=1.0)
SPLIT = 24
WIDE = (90, 160)
"""Height and width, 16:9."""


@pytest.fixture(scope="module")
def models(tiny_models: Path) -> Callable[..., FrozenModels]:
    def find(**changes: object) -> FrozenModels:
        found = FrozenModels.find(settings_of(tiny_models, **changes), device="cpu")
        found.encoder.load_processor()
        return found

    return find


def settings_of(tiny_models: Path, **changes: object) -> ModelSettings:
    names = {"thinker": str(tiny_models / "thinker"), "encoder": str(tiny_models / "encoder")}
    kept = {"keep": "pooled,slots,text,tokens", "max_new_tokens": 4}
    return ModelSettings(**{**names, **kept, **changes})


def noise(seed: int, *, height: int = WIDE[0], width: int = WIDE[1]) -> FrameStack:
    return np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(90, 160), (160, 90), (40, 300), (1080, 1920), (64, 64)])
def test_a_letterbox_holds_the_whole_frame_and_its_padding(
    models: Callable[..., FrozenModels], size: tuple[int, int]
) -> None:
    encoder = models(encoder_fit="letterbox").encoder
    height, width = size
    frames = np.zeros((2, height, width, 3), dtype=np.uint8)
    frames[..., 0] = np.linspace(0, 255, width).round()[None, :]
    frames[..., 1] = np.linspace(0, 255, height).round()[:, None]
    frames[..., 2] = 255
    pixels = encoder.preprocess(frames)
    side = encoder.frame_px[0]
    assert pixels.shape == (2, 3, side, side)
    scaled_height, scaled_width = (round(side * length / max(size)) for length in size)
    top, left = (side - scaled_height) // 2, (side - scaled_width) // 2
    inside = pixels[:, :, top : top + scaled_height, left : left + scaled_width]
    assert (inside[:, 2] == 255).all()
    assert inside[:, 0, :, 0].float().mean() < 255 / scaled_width + 1  # the frame's edges are there
    assert inside[:, 0, :, -1].float().mean() > 254 - 255 / scaled_width
    assert inside[:, 1, 0].float().mean() < 255 / scaled_height + 1
    padding = torch.ones(side, side, dtype=torch.bool)
    padding[top : top + scaled_height, left : left + scaled_width] = False
    assert padding.sum() == side * side - scaled_height * scaled_width
    for channel, value in enumerate(encoder.padding):
        assert (pixels[:, channel][:, padding] == value).all()
    assert (encoder.scaled(pixels)[..., padding].abs() < 0.01).all()  # half of 1 / 255, by the std


def test_the_edge_of_a_frame_reaches_a_letterboxed_encoder_alone(
    models: Callable[..., FrozenModels],
) -> None:
    plain, changed = noise(0), noise(0)
    changed[:, :, :8] = 255 - changed[:, :, :8]
    cropping, whole = models().encoder, models(encoder_fit="letterbox").encoder
    assert torch.equal(cropping.preprocess(plain), cropping.preprocess(changed))
    assert not torch.equal(whole.preprocess(plain), whole.preprocess(changed))


@pytest.mark.parametrize("size", [WIDE, (160, 90), (128, 160), (91, 333)])
def test_the_thinker_is_given_nothing_that_the_encoder_does_not_see(
    models: Callable[..., FrozenModels], size: tuple[int, int]
) -> None:
    frozen, full = models(thinker_view="encoder"), models()
    height, width = size
    box = seen_box(frozen.encoder.framing, width_px=width, height_px=height)
    outside = np.ones((height, width), dtype=bool)
    rows = slice(int(np.ceil(box.top)), int(box.top + box.height))
    outside[rows, int(np.ceil(box.left)) : int(box.left + box.width)] = False
    plain, changed, inner = (noise(1, height=height, width=width) for _ in range(3))
    changed[:, outside] = 255 - changed[:, outside]
    inner[:, ~outside] = 255 - inner[:, ~outside]
    given = frozen.thinker.preprocess(plain)
    assert torch.equal(given, frozen.thinker.preprocess(changed))
    assert not torch.equal(given, frozen.thinker.preprocess(inner))
    assert not torch.equal(full.thinker.preprocess(plain), full.thinker.preprocess(changed))
    assert given.shape[2] * given.shape[3] == (~outside).sum(), "all of what it sees, but for part of a pixel"
    assert given_size((width, height), frozen.thinker) == (given.shape[3], given.shape[2])


def test_a_letterboxed_encoder_sees_all_and_so_does_the_thinker(models: Callable[..., FrozenModels]) -> None:
    frozen = models(encoder_fit="letterbox", thinker_view="encoder")
    assert torch.equal(frozen.thinker.preprocess(noise(2)), models().thinker.preprocess(noise(2)))


def test_views_are_part_of_a_sets_name_and_the_defaults_are_not(models: Callable[..., FrozenModels]) -> None:
    plain, letterbox, narrow = models(), models(encoder_fit="letterbox"), models(thinker_view="encoder")
    assert plain.encoder.origin["preprocessing"].keys() == {"files"}  # as in version 0.1
    assert "view" not in plain.thinker.origin["preprocessing"]
    assert letterbox.encoder.origin != plain.encoder.origin == narrow.encoder.origin
    assert narrow.thinker.origin != plain.thinker.origin == letterbox.thinker.origin
    assert narrow.thinker.origin["preprocessing"]["view"] == plain.encoder.framing


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> dict[str, Path]:
    """Features of one video, and of the same with every pixel from the split on changed, with both views."""
    found = {}
    for name, change in (("plain", None), ("future", slice(SPLIT, None))):
        root = tmp_path_factory.mktemp(name)
        lossless_video(root / "0.mkv", change=change)
        for view in ({"encoder_fit": "letterbox"}, {"thinker_view": "encoder"}):
            extract(
                root,
                root / "cache",
                clips=CLIPS,
                models=settings_of(tiny_models, **view),
                execution=ExecutionSettings(device="cpu"),
                progress=NoProgress(),
            )
        found[name] = root / "cache"
    return found


THINKER_ARRAYS = (
    *("pooled", "slots", "slot_position", "text_tokens", "text_kind"),
    *("tokens", "token_kind", "token_position"),
)


def sets_with_views(cache: FeatureCache) -> dict[str, FeatureSet]:
    sets = {
        (item.kind, bool(item.origin["preprocessing"].keys() & {"view", "fit"})): item
        for item in cache.feature_sets.values()
    }
    assert len(sets) == 4
    return {"letterbox": sets["encoder", True], "narrow": sets["thinker", True]}


def test_the_future_changes_not_one_bit_of_what_is_observed_with_any_view(caches: dict[str, Path]) -> None:
    plain, other = (FeatureCache.open(caches[name]) for name in ("plain", "future"))
    for view, arrays in (("letterbox", ("observed",)), ("narrow", THINKER_ARRAYS)):
        item = sets_with_views(plain)[view]
        (one,) = [clip.clip_id for clip in plain.select(item.name) if clip.split_frame == SPLIT]
        (two,) = [clip.clip_id for clip in other.select(item.name) if clip.split_frame == SPLIT]
        for array in arrays:
            pair = (plain.read(item.name, array, [one]), other.read(item.name, array, [two]))
            assert torch.equal(*(values.nan_to_num(nan=-1.0) for values in pair)), array
    encoder = sets_with_views(plain)["letterbox"].name
    assert not torch.equal(plain.read(encoder, "future", [one]), other.read(encoder, "future", [two]))


def test_a_prediction_finds_models_of_the_same_views(caches: dict[str, Path]) -> None:
    cache, video = FeatureCache.open(caches["plain"]), caches["plain"].parent / "0.mkv"
    sets = sets_with_views(cache)
    (clip,) = [clip for clip in cache.select(sets["letterbox"].name) if clip.split_frame == SPLIT]
    assert clip.video_digest == file_digest(video)
    encoder = load_encoder(sets["letterbox"], cache.path, place=None, device="cpu")
    thinker = load_thinker(sets["narrow"], cache.path, place=None, device="cpu")
    with VideoDecoder(timeout_s=60) as decoder:
        decoder.open(video)
        observed = encoder.preprocess(decoder.frames(video, clip.observed_frames))
        history = thinker.preprocess(decoder.frames(video, clip.thinker_frames))
    stored = cache.read(sets["letterbox"].name, "observed", [clip.clip_id])
    assert torch.equal(encoder.encode([observed]), stored)
    prompt = thinker.prepare(clip, [history], frame_px=(128, 96))
    states = thinker.generate([prompt])[0].to_features(clip, thinker.kept)
    pooled = cache.read(sets["narrow"].name, "pooled", [clip.clip_id])[0]
    assert torch.equal(states.arrays["pooled"], pooled)


def test_a_cache_says_what_its_models_see_and_remembers_it(caches: dict[str, Path]) -> None:
    side = round(SIZE[1] * 0.5)
    text = describe_info(cache_info(caches["plain"]))
    assert f"  sees whole frames, padded to {side} x {side} px\n" in text
    assert f"  sees the middle {side} x {side} px of frames resized to a short side of" in text
    assert ", as the encoder\n" in text
    assert "  sees whole frames\n" in text
    assert "unlike the other encoder sets: preprocessing.fit 'letterbox', preprocessing.padding" in text
    remembered = remembered_settings(caches["plain"])["models"]
    assert (remembered["thinker_view"], remembered["encoder_fit"]) == ("encoder", "crop")
