"""The estimate against what really happens: the same videos extracted, the same forwards counted."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from thinkjepa.cache import FeatureCache
from thinkjepa.cache.disk.layout import array_dir
from thinkjepa.cache.shards.format import stored_bytes
from thinkjepa.cache.shards.identity import read_identity
from thinkjepa.pipeline.cli.console import human_bytes
from thinkjepa.pipeline.report.extraction import describe_estimate
from thinkjepa.stages.data.plan import ClipSettings
from thinkjepa.stages.data.short_videos import ShortVideo
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.encoder.base import VideoEncoder, open_encoder
from thinkjepa.stages.extract.estimate import estimate
from thinkjepa.stages.extract.figures import Estimate
from thinkjepa.stages.extract.models.costs import (
    count_parameters,
    encoder_costs,
    multiplied_weights,
    prompt_size,
    thinker_costs,
)
from thinkjepa.stages.extract.models.weights import find_model
from thinkjepa.stages.extract.settings import ExecutionSettings, ModelSettings
from thinkjepa.stages.extract.thinker.contract import TimedFrames
from thinkjepa.stages.extract.thinker.hooks import HookedThinker
from thinkjepa.stages.extract.thinker.kept import Kept
from thinkjepa.stages.extract.thinker.layout import WHOLE, VisualLayout
from thinkjepa.stages.progress import NoProgress

CPU = torch.device("cpu")
SMALL_CLIPS = ClipSettings(thinker_frames=8, observed_frames=8, future_frames=8, dense_fps=10)
SMALL_FLAGS = ("--thinker-frames", 8, "--observed-frames", 8, "--future-frames", 8, "--dense-fps", 10)
NEW_TOKENS = 4


@pytest.fixture(scope="module")
def videos(
    tmp_path_factory: pytest.TempPathFactory,
    make_video: Callable[..., Path],
    write_egodex: Callable[..., Path],
) -> Path:
    """Three frame sizes, one file twice, one that is no video, and hand labels of one."""
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "a.mp4", num_frames=130)
    make_video(folder / "b.mp4", num_frames=200, size=(320, 192))
    make_video(folder / "c.mp4", num_frames=120, fps=24, size=(128, 160))
    shutil.copy(folder / "a.mp4", folder / "again.mp4")
    (folder / "broken.mp4").write_bytes(b"no video")
    write_egodex(folder / "b.hdf5", 200, seed=0)
    return folder


@pytest.fixture(scope="module")
def described_models(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny models' small files, without weights."""
    folder = tmp_path_factory.mktemp("described")
    ignored = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(tiny_models, folder, ignore=ignored, dirs_exist_ok=True)
    return folder


def estimated(videos: Path, models: Path, *, clips: ClipSettings = SMALL_CLIPS, **settings: Any) -> Estimate:
    chosen = ModelSettings(thinker=str(models / "thinker"), encoder=str(models / "encoder"), **settings)
    figures = estimate(
        videos, clips=clips, models=chosen, execution=ExecutionSettings(), tflops=1.0, progress=NoProgress()
    )
    assert isinstance(figures, Estimate)
    return figures


@pytest.fixture(scope="module")
def figures(videos: Path, described_models: Path) -> Estimate:
    return estimated(videos, described_models)


def loaded_thinker(tiny_models: Path) -> HookedThinker:
    folder = find_model(str(tiny_models / "thinker"), revision="main", role="thinker")
    settings = ModelSettings(max_new_tokens=NEW_TOKENS)
    thinker = HookedThinker(folder, settings, dtype="float32", device=CPU)
    thinker.load()
    return thinker


def loaded_encoder(tiny_models: Path) -> VideoEncoder:
    folder = find_model(str(tiny_models / "encoder"), revision="main", role="encoder")
    encoder = open_encoder(folder, dtype="float32", device=CPU)
    encoder.load()
    return encoder


def counted_flops(work: Callable[[], object], model: Any) -> int:
    """FLOPs by torch's counter, in eager attention, as it does not know the CPU's fused kernel."""
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def _identity_bytes(path: Path, index_bytes: int) -> int:
    identity = read_identity(np.fromfile(path, dtype=np.uint8)[:-index_bytes])
    assert identity is not None
    return len(identity.encoded())


def test_clips_tokens_and_bytes_equal_those_of_the_extraction(
    figures: Estimate, videos: Path, tmp_path: Path, run_extract: Callable[..., Any]
) -> None:
    outcome = run_extract(videos, tmp_path / "cache", "--keep", "pooled,slots,text")
    assert outcome.status == 3, outcome.stderr
    assert figures.clips == outcome.json["extracted"] >= 5
    assert figures.videos == outcome.json["videos"] == 5
    assert figures.failed_videos == outcome.json["failed_videos"] == 1
    assert [failure.video for failure in figures.failures] == ["broken.mp4"]
    assert figures.repeats == [("again.mp4", "a.mp4")]
    cache = FeatureCache.open(tmp_path / "cache")
    for feature_set in cache.feature_sets.values():
        predicted = figures.thinker if feature_set.kind == "thinker" else figures.encoder
        rows = cache.index(feature_set.name).values()
        if feature_set.kind == "thinker":
            lengths = [row.token_count for row in rows]
            assert predicted.tokens_per_clip == [min(lengths), max(lengths)]
            assert min(lengths) < max(lengths)
        for name, spec in feature_set.arrays.items():
            shards = array_dir(cache.path, feature_set.name, name).rglob("c/**/*")
            files = [path for path in shards if path.is_file()]
            index_bytes = 16 * feature_set.rows_per_shard * math.prod(spec.chunk_grid) + 4
            payload = sum(path.stat().st_size - index_bytes for path in files)
            payload -= sum(_identity_bytes(path, index_bytes) for path in files)
            assert payload > 0
            assert predicted.array_bytes[name] == pytest.approx(payload, rel=0.02)
    shards = [path for path in cache.path.glob("features.zarr/*/*/c/**/*") if path.is_file()]
    labels = list((cache.path / "labels").iterdir())
    assert figures.label_bytes == pytest.approx(sum(path.stat().st_size for path in labels), rel=0.03)
    of_models = figures.thinker.disk_bytes + figures.encoder.disk_bytes
    assert of_models == pytest.approx(sum(path.stat().st_size for path in shards), rel=0.01)
    assert figures.disk_bytes == of_models + figures.label_bytes
    assert describe_estimate(figures).startswith("5 videos, 1 repeat another's content, 3 with clips, ")


def test_parameters_equal_those_of_the_loaded_models(figures: Estimate, tiny_models: Path) -> None:
    thinker, encoder = loaded_thinker(tiny_models), loaded_encoder(tiny_models)
    assert figures.thinker.parameters == count_parameters(thinker._model)
    assert figures.encoder.parameters == count_parameters(encoder._model)
    assert figures.thinker.weights_bytes == 4 * figures.thinker.parameters
    assert figures.memory.weights_bytes == figures.thinker.weights_bytes + figures.encoder.weights_bytes


@pytest.mark.parametrize("size", [(96, 128), (256, 256)])
def test_thinker_flops_agree_with_the_counter(tiny_models: Path, size: tuple[int, int]) -> None:
    thinker = loaded_thinker(tiny_models)
    frames = TimedFrames(torch.zeros((8, 3, *size), dtype=torch.uint8), [0.5 * i for i in range(8)])
    counted = counted_flops(lambda: thinker.hidden_states([frames]), thinker._model)
    predicted = thinker_costs(thinker).flops(
        prompt_size(thinker, thinker.prompt(frames)), new_tokens=NEW_TOKENS
    )
    assert predicted == pytest.approx(counted, rel=0.15)


def test_encoder_flops_agree_with_the_counter(tiny_models: Path) -> None:
    encoder = loaded_encoder(tiny_models)
    window = encoder.preprocess(np.zeros((8, 96, 128, 3), dtype=np.uint8))
    counted = counted_flops(lambda: encoder.encode([window]), encoder._model)
    num_tokens = 8 // encoder.tubelet * encoder.grid[0] * encoder.grid[1]
    assert encoder_costs(encoder).flops(num_tokens) == pytest.approx(counted, rel=0.15)


def test_only_the_experts_in_use_count() -> None:
    model = torch.nn.ModuleDict({"gate": torch.nn.Linear(4, 8), "experts": torch.nn.Linear(4, 80)})
    assert multiplied_weights(model.named_modules(), experts_used=0.25) == 4 * 8 + 80


@pytest.mark.parametrize(("num_tokens", "chunks"), [(1, 1), (64, 1), (65, 2), (1166, 19)])
def test_tokens_are_stored_in_whole_chunks_with_a_checksum(num_tokens: int, chunks: int) -> None:
    kept = Kept(slot_segments=0, text=False, tokens=True)
    pooled, tokens, kind, position = kept.arrays((1, 5), width=32, dtype="bfloat16")
    lengths = {"token": num_tokens}
    assert stored_bytes(tokens, lengths) == 2 * chunks * (64 * 32 * 2 + 4)
    assert stored_bytes(kind, lengths) == 4096 + 4
    assert stored_bytes(pooled, lengths) == 2 * 5 * 32 * 4 + 4
    assert stored_bytes(position, lengths) == -(-num_tokens // 256) * (256 * 4 * 4 + 4)


@pytest.mark.parametrize(("columns", "most_bytes"), [(8, 4_000_000), (14, 5_500_000)])
def test_the_default_keeps_few_bytes_of_the_papers_thinker(columns: int, most_bytes: int) -> None:
    """Square videos and 16:9 at --thinker-size 256: 8 layers of 2048, 16 frames, 12 + 15 text tokens."""
    kept = Kept.of(ModelSettings(keep="pooled,slots,text"))
    layout = VisualLayout((8 * columns,) * 8, ((0.0, 0.1),) * 8, (8, columns), WHOLE)
    lengths = {"slot": layout.num_slots(kept.slot_segments), "text": 12 + 15}
    arrays = kept.arrays(tuple(range(8)), width=2048, dtype="bfloat16")
    assert sum(stored_bytes(spec, lengths) for spec in arrays) <= most_bytes
    assert sum(spec.name in ("slots", "text_tokens", "pooled") for spec in arrays) == 3


def test_hours_follow_from_flops_peak_and_decoding(figures: Estimate) -> None:
    flops = figures.thinker.total_flops + figures.encoder.total_flops
    assert figures.model_hours == pytest.approx(flops / (1e12 * figures.utilisation) / 3600)
    assert figures.decode_hours > 0
    assert figures.decode_clips == 3
    assert figures.hours == max(figures.model_hours, figures.decode_hours)
    here = replace(figures, tflops_measured=True)
    assert here.hours == here.model_hours + here.decode_hours


def test_larger_batches_need_more_memory_and_the_same_work(videos: Path, described_models: Path) -> None:
    models = ModelSettings(
        thinker=str(described_models / "thinker"), encoder=str(described_models / "encoder")
    )
    small, large = (
        estimate(
            videos,
            clips=SMALL_CLIPS,
            models=models,
            execution=ExecutionSettings(batch_size=batch_size),
            tflops=1.0,
            progress=NoProgress(),
        )
        for batch_size in (1, 4)
    )
    assert large.memory.activation_bytes == 4 * small.memory.activation_bytes
    assert large.memory.weights_bytes == small.memory.weights_bytes
    assert large.model_hours == small.model_hours


def test_clips_with_too_many_tokens_are_named_with_the_remedy(
    tmp_path: Path, described_models: Path, make_video: Callable[..., Path]
) -> None:
    make_video(tmp_path / "long.mp4", num_frames=300)
    clips = ClipSettings(thinker_frames=640, observed_frames=8, future_frames=8, dense_fps=10)
    kept = "pooled,slots,text,tokens"
    figures = estimated(tmp_path, described_models, clips=clips, keep=kept)
    assert figures.thinker.tokens_per_clip is not None
    assert figures.thinker.tokens_per_clip[1] > 4096
    assert figures.thinker.disk_bytes == 0
    warning = next(text for text in figures.warnings if "at most 4096" in text)
    assert warning.startswith(f"{figures.clips} clips of 160x128 px will fail")
    assert "--thinker-frames" in warning


def test_a_folder_without_a_usable_video_gives_zero_clips(tmp_path: Path, described_models: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    figures = estimated(tmp_path, described_models)
    assert (figures.clips, figures.disk_bytes, figures.hours) == (0, 0, 0)
    assert figures.thinker.tokens_per_clip is None
    text = describe_estimate(figures)
    assert "0 clips" in text
    assert "'broken.mp4' fails [open]" in text
    assert text.endswith("nothing to extract: no video gives a clip")
    assert "parameters" not in text
    short = ShortVideo("short.mp4", "", duration_s=1.0, needed="1.50 s")
    text = describe_estimate(replace(figures, too_short=[short]))
    assert "\nfewer --observed-frames and --future-frames, or a higher --dense-fps, " in text


def test_extraction_still_needs_weights(described_models: Path) -> None:
    with pytest.raises(StageError, match=r"no \.safetensors weights"):
        find_model(str(described_models / "thinker"), revision="main", role="thinker")


def test_command_prints_documented_keys_and_measures_the_peak(
    run_command: Callable[..., Any], videos: Path, described_models: Path
) -> None:
    models = ("--thinker", described_models / "thinker", "--encoder", described_models / "encoder")
    outcome = run_command("thinkjepa-cache", "estimate", "--videos", videos, *models, *SMALL_FLAGS, "--json")
    assert outcome.status == 0, outcome.stderr
    found = outcome.json
    assert {*Estimate.__dataclass_fields__, "hours"} == set(found)
    assert set(found["thinker"]) == set(found["encoder"])
    assert {"device_bytes", "host_bytes", "weights_bytes"} <= set(found["memory"])
    assert found["tflops_measured"]
    assert found["tflops"] > 0


def test_command_prints_a_table_with_warnings_and_assumptions(
    run_command: Callable[..., Any], videos: Path, described_models: Path
) -> None:
    models = ("--thinker", described_models / "thinker", "--encoder", described_models / "encoder")
    outcome = run_command(
        "thinkjepa-cache", "estimate", "--videos", videos, *models, *SMALL_FLAGS, "--tflops", 2
    )
    assert outcome.status == 0, outcome.stderr
    for expected in ("tokens per clip", "2 TFLOP/s given", "per 1,000 clips", "assumed: ", "--max-failures"):
        assert expected in outcome.stdout
    assert "give --dtype bfloat16" in outcome.stdout


def test_models_out_of_reach_leave_clips_frames_and_gigabytes(
    run_command: Callable[..., Any], videos: Path, figures: Estimate
) -> None:
    """The default names, which tests cannot reach."""
    flags = ("--videos", videos, *SMALL_FLAGS, "--dtype", "bfloat16")
    outcome = run_command("thinkjepa-cache", "estimate", *flags, "--json")
    assert outcome.status == 0, outcome.stderr
    found = outcome.json
    assert set(found) == set(figures.to_json())
    for name in ("clips", "videos", "failed_videos", "dense_fps", "thinker_frames", "encoder_windows"):
        assert found[name] == getattr(figures, name), name
    assert found["encoder_frames"] == 8 * found["encoder_windows"] == 16 * found["clips"]
    slots, text = 3 * 24, 32
    states = 8 * (slots + text) * 2048 * 2 + 8 * 5 * 2048 * 4  # layers, entries, width; streams
    latents = 8 * 256 * 1024 * 2  # steps, patches, width
    assert found["disk_bytes"] / found["clips"] == pytest.approx(states + latents, rel=0.01)
    assert found["hours"] is found["thinker"] is found["memory"] is None
    assert "'Qwen/Qwen3-VL-2B-Thinking' is no local folder, and HF_HOME" in found["warnings"][-1]
    others = run_command(
        "thinkjepa-cache", "estimate", *flags, "--thinker", "some/thinker", "--tflops", 400, timeout_s=300
    )
    assert others.status == 0, others.stderr
    assert f"{figures.clips} clips at 10 fps, bfloat16" in others.stdout
    assert f"{found['encoder_windows']} windows" in others.stdout
    assert "disk  " not in others.stdout
    assert "warning: tokens, memory and hours need the models: --thinker 'some/thinker'" in others.stdout


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"layers": "1,99"}, "layer 99 is out of range"),
        ({"encoder": "not/there/at/all"}, "neither a folder nor a hub name"),
    ],
)
def test_wrong_models_are_explained(
    videos: Path, described_models: Path, settings: dict[str, str], said: str
) -> None:
    places = {name: str(described_models / name) for name in ("thinker", "encoder")}
    with pytest.raises(StageError, match=said):
        estimate(
            videos,
            clips=SMALL_CLIPS,
            models=ModelSettings(**{**places, **settings}),  # type: ignore[arg-type]
            execution=ExecutionSettings(),
            tflops=1.0,
            progress=NoProgress(),
        )


@pytest.mark.parametrize("peak", [0.0, -3.0, math.nan, math.inf])
def test_a_peak_that_is_none_is_refused(videos: Path, described_models: Path, peak: float) -> None:
    with pytest.raises(StageError, match="give a number above 0"):
        estimate(
            videos,
            clips=SMALL_CLIPS,
            models=ModelSettings(),
            execution=ExecutionSettings(),
            tflops=peak,
            progress=NoProgress(),
        )


def test_wrong_use_is_one_line(run_command: Callable[..., Any], tmp_path: Path) -> None:
    outcome = run_command("thinkjepa-cache", "estimate", "--videos", tmp_path / "missing")
    assert outcome.status == 2
    assert outcome.stdout == ""
    assert outcome.stderr.count("\n") == 1
    assert "No such file or directory" in outcome.stderr


def test_the_table_shows_what_each_kept_array_takes(figures: Estimate) -> None:
    lines = describe_estimate(figures).splitlines()
    for name, size in figures.thinker.array_bytes.items():
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert human_bytes(size / figures.clips) in line
