"""Encoder features of the thinker's frames: what they are, and that nothing else of a cache changes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from thinkjepa.cache import STREAMS, FeatureCache
from thinkjepa.stages.data.decoding.client import VideoDecoder
from thinkjepa.stages.data.plan import ClipSettings
from thinkjepa.stages.extract.encoder.base import VideoEncoder, open_encoder
from thinkjepa.stages.extract.encoder.history import VISUAL_STREAMS
from thinkjepa.stages.extract.estimate import estimate
from thinkjepa.stages.extract.figures import Estimate
from thinkjepa.stages.extract.models.weights import find_model
from thinkjepa.stages.extract.settings import ExecutionSettings, ModelSettings
from thinkjepa.stages.progress import NoProgress

RunExtract = Callable[..., Any]
TreeDigest = Callable[[Path], dict[str, str]]


@pytest.fixture(scope="module")
def encoder(tiny_models: Path) -> VideoEncoder:
    found = find_model(str(tiny_models / "encoder"), revision="main", role="encoder")
    encoder = open_encoder(found, dtype="float32", device=torch.device("cpu"))
    encoder.load()
    return encoder


@pytest.fixture(scope="module")
def with_history(
    tmp_path_factory: pytest.TempPathFactory, extracted: Path, videos: Path, run_extract: RunExtract
) -> tuple[Path, dict[str, Any]]:
    """A copy of the cache with the history of its clips, and the report of the extraction that added it."""
    cache_dir = tmp_path_factory.mktemp("with_history") / "cache"
    shutil.copytree(extracted, cache_dir)
    outcome = run_extract(videos, cache_dir, "--keep-history")
    assert outcome.status == 0, outcome.stderr
    return cache_dir, outcome.json


def test_it_is_added_to_a_cache_and_leaves_the_other_sets_alone(
    with_history: tuple[Path, dict[str, Any]],
    extracted: Path,
    videos: Path,
    run_extract: RunExtract,
    tree_digest: TreeDigest,
) -> None:
    cache_dir, report = with_history
    before = FeatureCache.open(extracted)
    for name in before.feature_sets:
        for part in (Path("features.zarr", name), Path(name)):
            assert tree_digest(cache_dir / part) == tree_digest(extracted / part)
    cache = FeatureCache.open(cache_dir)
    (history,) = cache.filled_sets("history")
    assert report["history_set"] == history.name
    assert report["extracted"] == report["clips"] == len(cache.select(history.name, *before.feature_sets))
    again = run_extract(videos, cache_dir).json  # the cache remembers the flag
    assert (again["extracted"], again["history_set"]) == (0, history.name)
    fewer = run_extract(videos, cache_dir, "--keep", "pooled").json
    assert (fewer["extracted"], fewer["history_set"]) == (0, history.name), "it holds that, too"
    without = run_extract(videos, cache_dir, "--no-keep-history").json
    assert (without["extracted"], without["history_set"]) == (0, "")
    assert (without["thinker_set"], without["encoder_set"]) == (report["thinker_set"], report["encoder_set"])


def test_it_is_the_mean_of_the_latents_of_one_window_of_the_thinkers_frames(
    with_history: tuple[Path, dict[str, Any]], videos: Path, encoder: VideoEncoder
) -> None:
    cache = FeatureCache.open(with_history[0])
    (history,) = cache.filled_sets("history")
    clips = cache.select(history.name)
    with VideoDecoder(timeout_s=60) as decoder:
        for clip in clips[:3]:
            frames = encoder.preprocess(decoder.frames(videos / clip.video, clip.thinker_frames))
            with torch.inference_mode():
                pixels = encoder.scaled(frames[None])
                latents = encoder._model.get_vision_features(pixels).double()
            mean = latents.mean(dim=(0, 1))
            (pooled,) = cache.read(history.name, "pooled", [clip.clip_id])
            assert pooled.shape == (1, len(STREAMS), encoder.width)
            for stream, states in zip(STREAMS, pooled[0].double(), strict=True):
                wanted = mean if stream in VISUAL_STREAMS else torch.zeros_like(mean)
                assert (states - wanted).abs().max() <= 1e-5 * mean.abs().max(), stream
    first, last = cache.read(history.name, "pooled", [clips[0].clip_id, clips[-1].clip_id])
    assert not torch.equal(first, last)


def test_its_slots_are_places_over_time_and_steps_over_places(
    with_history: tuple[Path, dict[str, Any]], videos: Path, encoder: VideoEncoder
) -> None:
    """By hand: values, seconds before the split, and centers of the patches of the middle square."""
    cache = FeatureCache.open(with_history[0])
    (history,) = cache.filled_sets("history")
    rows, columns = encoder.grid
    share = encoder.frame_px[0] / encoder.framing["resize"]["shortest_edge"]  # type: ignore[index]
    with VideoDecoder(timeout_s=60) as decoder:
        for clip in cache.select(history.name)[:2]:
            raw = decoder.frames(videos / clip.video, clip.thinker_frames)
            (latents,) = encoder.encode([encoder.preprocess(raw)])
            row = cache.index(history.name)[clip.clip_id]
            assert row.slot_count == rows * columns + len(latents)
            assert (row.frame_width_px, row.frame_height_px) == (raw.shape[2], raw.shape[1])
            slots, positions = (
                cache.read(history.name, array, [clip.clip_id])[0] for array in ("slots", "slot_position")
            )
            wanted = torch.cat([latents.mean(dim=0), latents.mean(dim=1)])
            assert (slots[0, : row.slot_count] - wanted).abs().max() <= 1e-5 * wanted.abs().max()
            times_s, split_s = clip.thinker_times_s, clip.split_time_s
            short = min(raw.shape[1:3])
            for number in (0, columns + 1, rows * columns - 1):
                place = torch.tensor(divmod(number, columns)) + 0.5
                center_px = (place / rows - 0.5) * share * short + torch.tensor(raw.shape[1:3]) / 2
                middle_s, span_s = (times_s[0] + times_s[-1]) / 2, times_s[-1] - times_s[0]
                expected = [split_s - middle_s, span_s, *(center_px / torch.tensor(raw.shape[1:3])).tolist()]
                half_a_pixel = 0.5 / encoder.frame_px[0]  # sides are resized to whole pixels
                assert positions[number].tolist() == pytest.approx(expected, abs=half_a_pixel)
            last_s = split_s - (times_s[-2] + times_s[-1]) / 2
            expected = [last_s, times_s[-1] - times_s[-2]]
            assert positions[row.slot_count - 1, :2].tolist() == pytest.approx(expected, abs=1e-4)
            assert positions[rows * columns : row.slot_count, 2:].isnan().all()


def test_frames_that_are_no_window_of_the_encoder_are_refused(
    encoder: VideoEncoder, videos: Path, tmp_path: Path, run_extract: RunExtract
) -> None:
    assert encoder.longest_window is not None
    number = encoder.longest_window + 2
    outcome = run_extract(videos, tmp_path / "cache", "--keep-history", "--thinker-frames", number)
    assert outcome.status == 2
    assert f"--keep-history with --thinker-frames {number}: " in outcome.stderr
    assert len(outcome.stderr.splitlines()) == 1
    assert not (tmp_path / "cache" / "cache.json").exists(), "it is told before anything is planned"


def test_its_cost_is_estimated(videos: Path, tiny_models: Path, encoder: VideoEncoder) -> None:
    clips = ClipSettings(thinker_frames=8, observed_frames=8, future_frames=8, dense_fps=10)

    def estimated(*, keep_history: bool) -> Estimate:
        models = ModelSettings(
            thinker=str(tiny_models / "thinker"),
            encoder=str(tiny_models / "encoder"),
            keep_history=keep_history,
        )
        execution = ExecutionSettings(device="cpu")
        figures = estimate(
            videos, clips=clips, models=models, execution=execution, tflops=1.0, progress=NoProgress()
        )
        assert isinstance(figures, Estimate)
        return figures

    plain, kept = estimated(keep_history=False), estimated(keep_history=True)
    assert plain.history is None
    assert kept.history is not None
    assert kept.history.total_flops == plain.encoder.total_flops // 2, "one window of 8 frames next to two"
    assert kept.history.array_bytes["pooled"] >= kept.clips * len(STREAMS) * encoder.width * 4
    places = encoder.grid[0] * encoder.grid[1]
    assert kept.history.array_bytes["slots"] >= kept.clips * (places + 4) * encoder.width * 4
    assert kept.disk_bytes - plain.disk_bytes == kept.history.disk_bytes
    assert kept.model_hours > plain.model_hours
    assert kept.memory.weights_bytes == plain.memory.weights_bytes
    assert kept.memory.frame_bytes > plain.memory.frame_bytes
