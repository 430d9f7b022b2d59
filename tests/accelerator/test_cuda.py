"""Every command and every kernel on a GPU, against the CPU. Skipped where there is none.

`THINKJEPA_TEST_DEVICE=cpu` runs all but the compiled kernel without a GPU, to try the tests themselves.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from thinkjepa.cache import STREAMS, FeatureCache
from thinkjepa.stages.device import choose_device
from thinkjepa.stages.train.model.attention import attend, frame_causal_spans
from thinkjepa.stages.train.model.config import ModelShape
from thinkjepa.stages.train.model.flex_attention import flex_attend
from thinkjepa.stages.train.model.reading import GuidanceShape
from thinkjepa.stages.train.model.variants import build_forecaster

DEVICE = os.environ.get("THINKJEPA_TEST_DEVICE", "cuda")

pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="this machine has no CUDA GPU"
)

CLIPS = "--observed-frames 8 --future-frames 8 --thinker-frames 4 --max-new-tokens 8 --dense-fps 10"
TRAINING = "--epochs 2 --batch-size 4 --depth 2 --width 96 --heads 3 --group-by video"
GUIDANCE = ("film", "adaln", "cross")


def command(name: str, *arguments: object) -> dict[str, Any]:
    """The JSON that a command prints, run in a process of its own."""
    code = f"from thinkjepa.pipeline.cli.{name} import main; main()"
    line = [sys.executable, "-c", code, *map(str, arguments), "--json"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    command("sample", "videos", folder, "--force")
    return folder


@pytest.fixture(scope="module")
def extract(videos: Path, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that extracts on a device with a batch size, and returns the cache."""

    def run(device: str, *flags: str) -> Path:
        cache = tmp_path_factory.mktemp("cache") / "features"
        models = ("--thinker", tiny_models / "thinker", "--encoder", tiny_models / "encoder")
        place = ("--videos", videos, "--cache-dir", cache, *models)
        report = command("cache", "extract", *place, *CLIPS.split(), "--device", device, *flags)
        assert report["failed_clips"] == 0
        return cache

    return run


@pytest.fixture(scope="module")
def on_device(extract: Callable[..., Path]) -> Path:
    return extract(DEVICE, "--dtype", "float32", "--batch-size", "4")


def values(cache_dir: Path) -> dict[tuple[str, str], torch.Tensor]:
    """All features of a cache, by kind of set and array, in the order of clip ids."""
    cache = FeatureCache.open(cache_dir)
    found = {}
    for name, feature_set in cache.feature_sets.items():
        clip_ids = sorted(cache.index(name).clip_ids.to_pylist())
        for array in feature_set.arrays:
            found[feature_set.kind, array] = cache.read(name, array, clip_ids).float().nan_to_num(nan=-1.0)
    return found


def test_features_are_those_of_the_cpu_within_rounding(
    extract: Callable[..., Path], on_device: Path, record_property: Callable[[str, object], None]
) -> None:
    """But for what the thinker generates: rounding may turn a close choice of a token, and all after it."""
    ours, reference = values(on_device), values(extract("cpu", "--dtype", "float32"))
    assert ours.keys() == reference.keys()
    for features in (ours, reference):
        pooled = features.pop(("thinker", "pooled"))  # (clip, layer, stream, dim)
        for index, stream in enumerate(STREAMS):
            features["thinker", stream] = pooled[:, :, index]
    differences = {
        key: (ours[key] - expected).abs().flatten(1).amax(1) / expected.abs().max()
        for key, expected in reference.items()
    }
    same = differences["thinker", "generated"] < 2e-3
    record_property("clips with the same generated tokens", f"{same.sum()} of {len(same)}")
    assert same.float().mean() > 0.8
    for key, difference in differences.items():
        of_clips = (
            difference[same] if key in (("thinker", "generated"), ("thinker", "tokens")) else difference
        )
        record_property(f"{' '.join(key)}, largest difference by the largest value", float(of_clips.max()))
        assert of_clips.max() < 2e-3, key


def test_the_default_precision_works_and_differs_by_no_more_than_bfloat16(
    extract: Callable[..., Path], on_device: Path, record_property: Callable[[str, object], None]
) -> None:
    ours, reference = values(extract(DEVICE)), values(on_device)
    latents = [key for key in reference if key[0] == "encoder"]
    assert latents
    for key in latents:
        cosine = torch.nn.functional.cosine_similarity(ours[key].flatten(1), reference[key].flatten(1))
        record_property(f"{' '.join(key)}, smallest cosine with float32", float(cosine.min()))
        assert cosine.min() > 0.99, key


@pytest.mark.parametrize(
    "flags",
    ["--variant jepa", *(f"--variant thinkjepa --guidance {kind}" for kind in GUIDANCE), "--variant vlm"],
)
def test_training_evaluation_and_prediction_run_and_agree_with_the_cpu(
    flags: str, on_device: Path, videos: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    losses = {}
    for device in (DEVICE, "cpu"):
        run = tmp_path / f"run-{device}"
        fixed = ("--cache-dir", on_device, "--out", run, *TRAINING.split(), *flags.split())
        metrics = command("train", *fixed, "--precision", "fp32", "--device", device)
        scores = command("eval", "--run", run, "--device", device)
        losses[device] = metrics["last_validation_loss"]
        record_property(f"{flags}, validation loss on {device}", losses[device])
        assert scores
    assert losses[DEVICE] == pytest.approx(losses["cpu"], rel=1e-2)
    predicted = command(
        "predict", "--run", run, "--video", min(videos.rglob("*.mp4")), "--device", DEVICE,
        "-o", tmp_path / "future.png",
    )  # fmt: skip
    assert (tmp_path / "future.png").stat().st_size > 10_000
    assert predicted


def test_hands_from_hands_alone_train_and_agree_with_the_cpu(
    latent_cache: Callable[..., Path], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Variant poses reads hand labels and no frozen model, so that a cache without videos serves it."""
    cache = latent_cache(labelled=16)
    losses, distances = [], []
    for device in (DEVICE, "cpu"):
        run = tmp_path / f"run-{device}"
        fixed = ("--cache-dir", cache, "--out", run, *TRAINING.split(), "--variant", "poses")
        metrics = command("train", *fixed, "--precision", "fp32", "--device", device)
        scores = command("eval", "--run", run, "--device", device)
        losses.append(metrics["last_validation_loss"])
        distances.append(scores["trajectory"]["model"]["ade_m"])
        record_property(f"poses, validation loss and ADE (m) on {device}", (losses[-1], distances[-1]))
        assert not scores["latent"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert distances[0] == pytest.approx(distances[1], rel=1e-2)
    assert distances[1] > 0


def test_mixed_precision_trains(on_device: Path, tmp_path: Path) -> None:
    place = ("--cache-dir", on_device, "--out", tmp_path / "run", "--precision", "bf16", "--device", DEVICE)
    assert command("train", *place, *TRAINING.split())["last_validation_loss"] > 0


@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", GUIDANCE)
def test_shut_gates_equal_the_unguided_predictor_to_the_last_bit(
    kind: str, precision: str, model_shape: Callable[..., ModelShape]
) -> None:
    device = choose_device(DEVICE)
    guidance = GuidanceShape(kind=kind)  # type: ignore[arg-type]
    guided = build_forecaster(replace(model_shape("thinkjepa"), guidance=guidance), seed=3).to(device)
    alone = build_forecaster(model_shape("jepa"), seed=3).to(device)
    observed, pooled, tokens = thinker_inputs(device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        assert torch.equal(guided(observed, 1000 * pooled, tokens), alone(observed, None))


def thinker_inputs(device: torch.device) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Observed latents, pooled states and tokens of three clips."""
    from thinkjepa.stages.train.data.tokens import TokenBatch

    generator = torch.Generator().manual_seed(5)
    sizes = ((3, 3, 6, 8), (3, 3, 2, 10), (3, 3, 7, 10))
    observed, pooled, states = (torch.randn(*size, generator=generator).to(device) for size in sizes)
    return observed, pooled, TokenBatch(states, (7, 7, 7))


@torch.no_grad()
def test_no_step_depends_on_a_later_one(model_shape: Callable[..., ModelShape]) -> None:
    """Exactly: a change of the last observed step changes nothing before it."""
    device = choose_device(DEVICE)
    model = build_forecaster(model_shape("jepa"), seed=3).to(device)
    observed, _, _ = thinker_inputs(device)
    changed = observed.clone()
    changed[:, -1] += 100
    before, after = model.all_steps(observed, None), model.all_steps(changed, None)
    steps = observed.shape[1] - 1
    assert torch.equal(before[:, :steps], after[:, :steps])
    assert not torch.equal(before[:, steps:], after[:, steps:])


@pytest.mark.skipif(DEVICE == "cpu", reason="the compiled kernel has no backward on CPUs")
def test_the_compiled_kernel_agrees_with_the_blockwise_path_and_its_gradients() -> None:
    device = choose_device(DEVICE)
    spans = frame_causal_spans(num_steps=5, tokens_per_step=60)
    generator = torch.Generator().manual_seed(0)
    results = []
    for attention in (attend, flex_attend):
        generator.manual_seed(0)
        tensors = [
            torch.randn(2, 3, 300, 32, generator=generator).to(device).requires_grad_() for _ in range(3)
        ]
        output = attention(*tensors, spans)
        output.square().sum().backward()
        results.append([output.detach(), *(tensor.grad for tensor in tensors)])
    for ours, expected in zip(*results, strict=True):
        assert expected is not None
        torch.testing.assert_close(ours, expected, atol=5e-3, rtol=1e-2)


def test_a_gpu_that_is_not_there_is_one_line(on_device: Path, tmp_path: Path) -> None:
    code = "from thinkjepa.pipeline.cli.train import main; main()"
    flags = ["--cache-dir", str(on_device), "--out", str(tmp_path / "run"), "--device", "cuda:9"]
    done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--device 'cuda:9'" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
