"""Decoding, models and writing at once: in the right order, each frame decoded once, memory bounded."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from thinkjepa.cache import ClipFeatures, Failure, FeatureCache, OpenShard
from thinkjepa.stages.data.cutting.folder import plan_folder
from thinkjepa.stages.data.decoding.client import DecodeError, FrameStack, VideoDecoder
from thinkjepa.stages.data.plan import ClipSettings, PlannedFolder
from thinkjepa.stages.data.videos import find_videos
from thinkjepa.stages.extract.encoder.base import VideoEncoder
from thinkjepa.stages.extract.models.pair import FrozenModels
from thinkjepa.stages.extract.report import ExtractReport
from thinkjepa.stages.extract.run import extract
from thinkjepa.stages.extract.settings import ExecutionSettings, ModelSettings
from thinkjepa.stages.extract.thinker.hooks import HookedThinker
from thinkjepa.stages.extract.work import frames as clip_frames
from thinkjepa.stages.extract.work.frames import ClipDecoding
from thinkjepa.stages.progress import NoProgress

CLIPS = ClipSettings(
    thinker_frames=4, observed_frames=8, future_frames=8, future_windows=2, dense_fps=15.0, stride_s=0.2
)
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(2):
        make_video(folder / f"{number}.mp4", num_frames=90 + number, fps=30)
    return folder


@pytest.fixture(scope="module")
def planned(videos: Path) -> PlannedFolder:
    with VideoDecoder(timeout_s=60) as decoder:
        return plan_folder(find_videos(videos), videos, CLIPS, decoder=decoder, progress=NoProgress())


@pytest.fixture(scope="module")
def settings(tiny_models: Path) -> ModelSettings:
    return ModelSettings(thinker=str(tiny_models / "thinker"), encoder=str(tiny_models / "encoder"))


@pytest.fixture(scope="module")
def frozen(settings: ModelSettings) -> FrozenModels:
    """Described, with processors and without weights."""
    models = FrozenModels.find(settings, device="cpu")
    models.encoder.load_processor()
    return models


class CountingDecoder(VideoDecoder):
    """The real one, with how often each frame was asked for."""

    def __init__(self) -> None:
        super().__init__(timeout_s=60)
        self.asked: Counter[tuple[str, int]] = Counter()

    def stream(self, path: Path, indices: Sequence[int], *, at_once: int) -> Iterator[FrameStack]:
        self.asked.update((path.name, index) for index in indices)
        return super().stream(path, indices, at_once=at_once)


def needed_frames(planned: PlannedFolder) -> Counter[tuple[str, int]]:
    """Number of clips that show each frame to the encoder."""
    return Counter(
        (clip.video, index)
        for clip in planned.clips
        for index in {*clip.observed_frames, *(index for window in clip.future_frames for index in window)}
    )


def test_overlapping_windows_are_decoded_once(planned: PlannedFolder, frozen: FrozenModels) -> None:
    needed = needed_frames(planned)
    assert max(needed.values()) >= 4, "windows overlap"
    with CountingDecoder() as decoder:
        decoding = ClipDecoding(decoder, planned.videos)
        for clip in planned.clips:
            decoding.windows(clip, frozen.encoder)
        assert decoder.asked == Counter(dict.fromkeys(needed, 1))


def test_a_frame_that_both_models_see_is_decoded_once_and_is_the_right_one(
    planned: PlannedFolder, frozen: FrozenModels
) -> None:
    with CountingDecoder() as decoder, VideoDecoder(timeout_s=60) as other:
        decoding = ClipDecoding(decoder, planned.videos)
        shared = 0
        for clip in planned.clips:
            decoder.asked.clear()
            decoding.load(clip, [frozen.thinker, frozen.encoder])
            assert set(decoder.asked.values()) <= {1}
            shared += len({*clip.thinker_frames} & {*clip.observed_frames})
            (frames,) = decoding.windows(clip, frozen.thinker)
            windows = decoding.windows(clip, frozen.encoder)
            path = planned.videos[clip.video_digest].source.path
            assert torch.equal(frames, frozen.thinker.preprocess(other.frames(path, clip.thinker_frames)))
            for window, indices in zip(windows, (clip.observed_frames, *clip.future_frames), strict=True):
                assert torch.equal(window, frozen.encoder.preprocess(other.frames(path, indices)))
        assert shared >= len(planned.clips)


def test_a_video_that_could_not_be_opened_ahead_is_not_asked_again(
    videos: Path, planned: PlannedFolder, frozen: FrozenModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time-out would cost its seconds; the clip is told the reason."""
    clip = planned.clips[0]
    opened: list[Path] = []

    def hangs(self: VideoDecoder, path: Path) -> None:
        opened.append(path)
        raise DecodeError("no answer from the decoder")

    monkeypatch.setattr(VideoDecoder, "open", hangs)
    with VideoDecoder(timeout_s=60) as decoder:
        decoding = ClipDecoding(decoder, planned.videos)
        decoding.open(clip)
        with pytest.raises(DecodeError, match="no answer from the decoder"):
            decoding.windows(clip, frozen.encoder)
    assert opened == [videos / clip.video]


@pytest.mark.parametrize("kept_bytes", [0, 10**6])
def test_kept_frames_are_bounded(
    planned: PlannedFolder, frozen: FrozenModels, monkeypatch: pytest.MonkeyPatch, kept_bytes: int
) -> None:
    monkeypatch.setattr(clip_frames, "KEPT_BYTES", kept_bytes)
    with VideoDecoder(timeout_s=60) as decoder:
        decoding = ClipDecoding(decoder, planned.videos)
        for clip in planned.clips:
            windows = decoding.windows(clip, frozen.encoder)
            held = sum(frame.nbytes for frame in decoding._kept.values())
            assert held <= kept_bytes + sum(window.nbytes for window in windows)


def run(videos: Path, cache_dir: Path, settings: ModelSettings, **execution: Any) -> ExtractReport:
    chosen = ExecutionSettings(**{"shard_mb": 1, "batch_size": 2, **execution})
    return extract(
        videos, cache_dir, clips=CLIPS, models=settings, execution=chosen, progress=execution_notes
    )


class Notes(NoProgress):
    """Keeps the notes of a run."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


execution_notes = Notes()


def test_a_batch_is_decoded_and_another_written_while_one_is_in_the_models(
    tmp_path: Path, videos: Path, settings: ModelSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for another to have come as far: without overlap, across shards too, nothing would end."""
    changed = threading.Condition()
    counts = Counter[str]()
    num_batches = 0

    def came(name: str) -> None:
        with changed:
            counts[name] += 1
            changed.notify_all()

    def await_count(name: str, number: int) -> None:
        with changed:
            assert changed.wait_for(lambda: counts[name] >= min(number, num_batches), PATIENCE_S), name

    def decoded(self: ClipDecoding, clip: Any, models: Any) -> None:
        load(self, clip, models)
        came("decoded clips")

    def generated(self: HookedThinker, prompts: Any, **options: Any) -> Any:
        came("in the models")
        await_count("decoded batches", counts["in the models"] + 1)
        return generate(self, prompts, **options)

    def prepared(*arguments: Any) -> Any:
        done = prepare(*arguments)
        came("decoded batches")
        return done

    def appended(self: OpenShard, batch: Sequence[ClipFeatures], failures: Sequence[Failure] = ()) -> Any:
        if self.feature_set.kind == "thinker":
            came("written")
            await_count("in the models", counts["written"] + 1)
        return append(self, batch, failures)

    from thinkjepa.stages.extract.work import units as filling

    load, generate, append, prepare = (
        ClipDecoding.load,
        HookedThinker.generate,
        OpenShard.append,
        filling.prepare_batch,
    )
    monkeypatch.setattr(ClipDecoding, "load", decoded)
    monkeypatch.setattr(HookedThinker, "generate", generated)
    monkeypatch.setattr(OpenShard, "append", appended)
    monkeypatch.setattr(filling, "prepare_batch", prepared)
    with VideoDecoder(timeout_s=60) as decoder:
        clips = plan_folder(find_videos(videos), videos, CLIPS, decoder=decoder, progress=NoProgress()).clips
    num_batches = -(-len(clips) // 2)
    report = run(videos, tmp_path / "cache", settings)
    assert report.failed_clips == 0
    assert counts["written"] == counts["decoded batches"] == num_batches >= 6
    shards = {row.shard for row in FeatureCache.open(tmp_path / "cache").index(report.thinker_set).values()}
    assert len(shards) >= 3


@pytest.mark.parametrize("limit", [2, 0])
def test_a_forward_without_memory_is_made_in_parts(
    tmp_path: Path,
    videos: Path,
    settings: ModelSettings,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
) -> None:
    """The allocator's own error, by asking it for more than there is for forwards of more than some rows."""

    def greedy(self: VideoEncoder, windows: Sequence[torch.Tensor], rows: int) -> torch.Tensor:
        if rows > limit:
            torch.empty(2**50, dtype=torch.uint8)
        return forward(self, windows, rows)

    whole = run(videos, tmp_path / "whole", settings, batch_size=4)
    forward = VideoEncoder._forward
    monkeypatch.setattr(VideoEncoder, "_forward", greedy)
    execution_notes.lines.clear()
    report = run(videos, tmp_path / "parts", settings, batch_size=4)
    said = [line for line in execution_notes.lines if "out of memory" in line]
    assert len(said) == (1 if limit else 2), "told once for each halving, not for each batch"
    assert "with 4 clips in a forward of the encoder: going on with 2" in said[0]
    if not limit:
        assert report.failed_clips == report.clips
        assert all("even one clip at a time does not fit" in failure.reason for failure in report.failures)
        return
    assert report.failed_clips == 0
    one, other = FeatureCache.open(tmp_path / "whole"), FeatureCache.open(tmp_path / "parts")
    for array in ("observed", "future"):
        expected = one.read(whole.encoder_set, array, whole.clip_ids)
        read = other.read(report.encoder_set, array, whole.clip_ids)
        assert (read - expected).abs().max() < 1e-5 * expected.abs().max()
