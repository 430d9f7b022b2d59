"""One contract for encoders of every family: what a window's latents are, depend on, and do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BitImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

from thinkjepa.cache import FeatureCache
from thinkjepa.stages.data.decoding.client import VideoDecoder
from thinkjepa.stages.data.plan import ClipSettings
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.encoder.base import VideoEncoder, open_encoder
from thinkjepa.stages.extract.models.costs import count_parameters, encoder_costs
from thinkjepa.stages.extract.models.weights import find_model

FRAMES = 8
SIZES: dict[str, Any] = {
    "patch_size": 14,
    "image_size": 98,  # positions are interpolated from 7 x 7
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "mlp_ratio": 2,
    "initializer_range": 0.15,
}


def write_dinov2(folder: Path, *, registers: bool = False) -> Path:
    """A DINOv2 of 4 x 4 patches with random weights."""
    torch.manual_seed(0)
    if registers:
        model: Any = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES, num_register_tokens=4))
    else:
        model = Dinov2Model(Dinov2Config(**SIZES))
    for name, weight in model.named_parameters():
        if "lambda1" in name or "position" in name or "token" in name:
            torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}, resample=3
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["vjepa2", "dinov2", "dinov2-registers"])
def folder(request: Any, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "vjepa2":
        return tiny_models / "encoder"
    return write_dinov2(tmp_path_factory.mktemp("dinov2"), registers=request.param.endswith("registers"))


def opened(folder: Path, dtype: str = "float32") -> VideoEncoder:
    found = find_model(str(folder), revision="main", role="encoder")
    return open_encoder(found, dtype=dtype, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> VideoEncoder:
    encoder = opened(folder)
    encoder.load()
    return encoder


def frames(seed: int, *, height: int = 120, width: int = 160, number: int = FRAMES) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (number, height, width, 3), dtype=np.uint8)


def as_the_processor_does(encoder: VideoEncoder, window: Any) -> torch.Tensor:
    """Frames `(F, 3, height, width)` float32, in one call of the model's own processor."""
    video = list(torch.from_numpy(window).permute(0, 3, 1, 2))
    if encoder.tubelet == 1:
        return encoder._processor(images=video, return_tensors="pt")["pixel_values"]
    options = {"return_tensors": "pt", "do_sample_frames": False}
    return encoder._processor(videos=[torch.stack(video)], **options)["pixel_values_videos"][0]


def test_latents_are_the_patches_that_the_model_gives(encoder: VideoEncoder) -> None:
    window = encoder.preprocess(frames(0))
    assert (window.shape, window.dtype) == ((FRAMES, 3, *encoder.frame_px), torch.uint8)
    latents = encoder.encode([window])
    pixels = as_the_processor_does(encoder, frames(0))
    assert torch.equal(encoder.scaled(window), pixels)
    assert latents.shape == (1, FRAMES // encoder.tubelet, encoder.grid[0] * encoder.grid[1], encoder.width)
    with torch.inference_mode():
        if encoder.tubelet == 1:
            whole = encoder._model(pixels).last_hidden_state
            others = whole.shape[1] - encoder.grid[0] * encoder.grid[1]
            wanted = whole[:, others:]
            assert others == 1 + getattr(encoder.config, "num_register_tokens", 0)
        else:
            wanted = encoder._model.get_vision_features(pixels[None]).reshape(latents.shape[1:])
    assert torch.equal(latents[0], wanted)


def test_patches_are_row_major(encoder: VideoEncoder) -> None:
    """Blocks of white that move from patch to patch: the patch that changes most is where the block is."""
    height, width = encoder.grid
    side = encoder.frame_px[0] // height
    grey = torch.full((FRAMES, 3, *encoder.frame_px), 128, dtype=torch.uint8)
    plain = encoder.encode([grey])[0]
    for row, column in ((0, 0), (0, width - 1), (height - 1, 1)):
        lit = grey.clone()
        lit[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side] = 255
        change = (encoder.encode([lit])[0] - plain).norm(dim=-1).mean(0)
        assert int(change.argmax()) == row * width + column


def test_frames_are_preprocessed_each_by_itself(encoder: VideoEncoder) -> None:
    raw = frames(1, height=500, width=700)
    apart = torch.cat(
        [encoder.preprocess(raw[:3]), encoder.preprocess(raw[3:4]), encoder.preprocess(raw[4:])]
    )
    assert torch.equal(encoder.preprocess(raw), apart)


def test_a_window_depends_on_all_its_frames_and_on_nothing_else(encoder: VideoEncoder) -> None:
    """Exactly: neither the other windows of a forward, nor how many there are, change a bit."""
    ours, one, two = (encoder.preprocess(frames(seed)) for seed in range(3))
    together = encoder.encode([ours, one], batch_size=3)
    assert torch.equal(together[0], encoder.encode([ours, two], batch_size=3)[0])
    assert torch.equal(together[0], encoder.encode([ours], batch_size=3)[0])
    assert not torch.equal(together[1], encoder.encode([ours, two], batch_size=3)[1])
    alone = encoder.encode([ours])[0]
    assert (together[0] - alone).abs().max() <= 1e-5 * alone.abs().max()
    for frame in range(FRAMES):
        changed = ours.clone()
        changed[frame] ^= 64
        moved = (encoder.encode([changed])[0] - alone).abs().amax(dim=(1, 2))
        assert moved[frame // encoder.tubelet] > 1e-3
        if encoder.tubelet == 1:  # a frame sees only itself
            assert moved[torch.arange(FRAMES) != frame].max() == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near(folder: Path, encoder: VideoEncoder, dtype: str) -> None:
    half = opened(folder, dtype)
    half.load()
    pixels = encoder.preprocess(frames(0))
    exact, rounded = encoder.encode([pixels])[0], half.encode([pixels])[0]
    assert rounded.dtype == getattr(torch, dtype)
    assert (rounded.float() - exact).abs().max() < 0.1 * exact.abs().max()
    assert half.origin != encoder.origin


def test_what_it_costs_is_counted_from_the_configuration(encoder: VideoEncoder) -> None:
    costs = encoder_costs(encoder)
    assert costs.parameters == count_parameters(encoder._model)
    patches = encoder.grid[0] * encoder.grid[1]
    assert sum(encoder.sequences(FRAMES)) >= FRAMES // encoder.tubelet * patches


def test_a_missing_weight_is_refused(folder: Path, tmp_path: Path) -> None:
    def without(kept: Callable[[str], bool]) -> VideoEncoder:
        (tmp_path / "model").mkdir(exist_ok=True)
        for path in folder.iterdir():
            if path.suffix == ".json":
                (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
        weights = {
            name: value for name, value in load_file(folder / "model.safetensors").items() if kept(name)
        }
        save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
        return opened(tmp_path / "model")

    with pytest.raises(StageError, match=r"lacks \d+ weights, e\.g\. '.*layer\.1\."):
        without(lambda name: "layer.1." not in name).load()
    without(lambda name: not name.startswith("predictor.")).load()  # no latent depends on it


def test_a_processor_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for path in folder.iterdir():
        (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        path = tmp_path / "model" / name
        if path.exists():
            content = json.loads(path.read_text())
            path.write_text(json.dumps({**content, "crop_size": {"height": 60, "width": 60}}))
    with pytest.raises(StageError, match="use the processor that belongs to the model"):
        opened(tmp_path / "model").load()


def test_windows_that_the_model_was_not_made_for_are_refused(encoder: VideoEncoder) -> None:
    def arrays(number: int) -> Any:
        clips: Any = SimpleNamespace(observed_frames=number, future_frames=8, future_windows=1)
        return encoder.arrays(clips)

    if encoder.tubelet > 1:
        with pytest.raises(StageError, match="--observed-frames 7 is not a multiple"):
            arrays(7)
        with pytest.raises(StageError, match="made for windows of up to 64 frames"):
            arrays(66)
        assert arrays(64)
    else:
        assert arrays(7)[0].shape == (7, 16, 48)


def test_the_sample_encoder_takes_the_default_windows(tiny_models: Path) -> None:
    observed, future = opened(tiny_models / "encoder").arrays(ClipSettings())
    assert observed.shape == future.shape[1:] == (16, 16, 48)


def test_another_family_is_refused(tmp_path: Path) -> None:
    CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32
        )
    ).save_pretrained(tmp_path / "clip")
    with pytest.raises(
        StageError, match="is a 'clip_vision_model'; encoders are dinov2, dinov2_with_registers, vjepa2"
    ):
        opened(tmp_path / "clip")


def test_frame_latents_are_extracted_and_trained_on_by_the_commands(
    tmp_path: Path,
    make_video: Callable[..., Path],
    run_extract: Callable[..., Any],
    run_command: Callable[..., Any],
) -> None:
    folder = write_dinov2(tmp_path / "dinov2")
    for number in range(3):
        make_video(tmp_path / "videos" / f"{number}.mp4", num_frames=80 + number)
    done = run_extract(tmp_path / "videos", tmp_path / "cache", "--encoder", folder)
    assert (done.status, done.json["failed_clips"]) == (0, 0), done.stderr
    cache, encoder = FeatureCache.open(tmp_path / "cache"), opened(folder)
    encoder.load()
    with VideoDecoder(timeout_s=60) as decoder:
        for clip in cache.select(done.json["encoder_set"]):
            windows = (clip.observed_frames, *clip.future_frames)
            raw = [decoder.frames(tmp_path / "videos" / clip.video, window) for window in windows]
            wanted = encoder.encode([encoder.preprocess(window) for window in raw])
            for array, values in (("observed", wanted[0]), ("future", wanted[1:])):
                stored = cache.read(done.json["encoder_set"], array, [clip.clip_id])[0]
                assert (stored - values).abs().max() <= 1e-5 * values.abs().max()
    size = ("--width", 24, "--depth", 1, "--heads", 2, "--epochs", 1, "--batch-size", 2)
    trained = run_command(
        "thinkjepa-train", "--cache-dir", tmp_path / "cache", "--out", tmp_path / "run", *size, "--json"
    )
    assert trained.status == 0, trained.stderr
    assert (tmp_path / "run" / "run.json").exists()
