"""A cache of the earlier rule of time, continued by this version: both rules side by side, never mixed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from thinkjepa.cache import ClipRow, FeatureCache, FeatureSet, fingerprint
from thinkjepa.stages.data import sampling
from thinkjepa.stages.data.decoding.client import VideoDecoder
from thinkjepa.stages.data.plan import ClipSettings
from thinkjepa.stages.data.sampling import UNSPACED, Frames, Times
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.report import ExtractReport
from thinkjepa.stages.extract.run import extract
from thinkjepa.stages.extract.settings import ExecutionSettings, ModelSettings
from thinkjepa.stages.predict.frames import SplitChoice, choose_frames
from thinkjepa.stages.progress import NoProgress
from thinkjepa.stages.train.data.features import build_features

CLIPS = ClipSettings(
    thinker_frames=4, observed_frames=4, future_frames=4, future_windows=2, dense_fps=10, stride_s=0.5
)
STEP = 3
"""Frames of a video of 30 a second from one dense frame to the next."""


@contextmanager
def earlier_version() -> Iterator[None]:
    """Frames and records as version 0.1 made them: all windows on one grid that starts at the split."""

    def future_frames(
        times_s: Times, split_frame: int, *, num_windows: int, num_frames: int, fps: float
    ) -> Frames:
        grid = sampling.window_from(times_s, split_frame, num_frames=num_windows * num_frames, fps=fps)
        return grid.reshape(num_windows, num_frames)

    def dense_sampling(self: ClipSettings) -> dict[str, object]:
        numbers = {"observed": self.observed_frames, "future": self.future_frames}
        record = {"rule": "window", **numbers, "windows": self.future_windows, "fps": self.fps}
        return {**record, "fingerprint": fingerprint(record)[:12]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "future_frames", future_frames)
        patch.setattr(ClipSettings, "dense_sampling", property(dense_sampling))
        yield


class Notes(NoProgress):
    """Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@dataclass(frozen=True)
class Continued:
    """A cache that the earlier version made and this one continued."""

    cache: FeatureCache
    times_s: Times
    earlier: FeatureSet
    ours: FeatureSet
    second: ExtractReport
    notes: list[str]

    def clips(self, item: FeatureSet) -> list[ClipRow]:
        return list(self.cache.select(item.name))


@pytest.fixture(scope="module")
def continued(
    tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path], tiny_models: Path
) -> Continued:
    root = tmp_path_factory.mktemp("rules")
    video = make_video(root / "videos" / "0.mp4", num_frames=90, fps=30)

    def run(progress: Notes) -> ExtractReport:
        return extract(
            root / "videos",
            root / "cache",
            clips=CLIPS,
            models=ModelSettings(
                thinker=str(tiny_models / "thinker"), encoder=str(tiny_models / "encoder"), max_new_tokens=4
            ),
            execution=ExecutionSettings(device="cpu"),
            progress=progress,
        )

    with earlier_version():
        first = run(Notes())
    progress = Notes()
    second = run(progress)
    assert first.failures == second.failures == []
    cache = FeatureCache.open(root / "cache")
    with VideoDecoder(timeout_s=60) as decoder:
        times_s = decoder.open(video).times_s
    sets = cache.feature_sets
    return Continued(
        cache, times_s, sets[first.encoder_set], sets[second.encoder_set], second, progress.notes
    )


def test_the_rules_have_encoder_sets_of_their_own_and_one_thinker_set(continued: Continued) -> None:
    assert continued.earlier.origin["sampling"]["rule"] == UNSPACED
    assert continued.ours.origin["sampling"]["rule"] == "spaced"
    assert len(continued.cache.feature_sets) == 3
    assert any("another encoder set" in note and "sampling.rule" in note for note in continued.notes)
    for item, start in ((continued.earlier, 1), (continued.ours, STEP)):
        clips = continued.clips(item)
        assert len(clips) >= 3
        for clip in clips:
            last = clip.observed_frames[-1]
            frames = [last + start + STEP * number for number in range(8)]
            assert sum(clip.future_frames, ()) == tuple(frames)


def test_what_is_observed_is_the_same_to_the_last_bit_and_the_future_is_not(continued: Continued) -> None:
    both = [clip.clip_id for clip in continued.clips(continued.ours)]
    observed, future = (
        [continued.cache.read(item.name, array, both) for item in (continued.earlier, continued.ours)]
        for array in ("observed", "future")
    )
    assert torch.equal(*observed)
    assert not torch.equal(*future)


def test_a_prediction_takes_the_frames_of_its_runs_rule(continued: Continued) -> None:
    for item in (continued.earlier, continued.ours):
        for clip in continued.clips(item):
            choice = SplitChoice(frame=clip.split_frame)
            chosen = choose_frames(continued.times_s, choice, encoder=item, thinker=None)
            assert chosen.observed == clip.observed_frames
            assert chosen.future == clip.future_frames[0]
            assert chosen.split_time_s == clip.split_time_s
        latest = choose_frames(continued.times_s, SplitChoice(), encoder=item, thinker=None)
        start = 1 if item is continued.earlier else STEP
        assert latest.future[0] - latest.observed[-1] == start
        assert len(latest.future) == 4
        assert latest.future[-1] == len(continued.times_s) - 1
        assert np.allclose(np.diff(latest.future_times_s), 0.1)


def test_later_windows_of_the_earlier_rule_are_not_taken_for_what_was_learned(continued: Continued) -> None:
    build_features(continued.cache, continued.earlier, None, windows=1)
    assert build_features(continued.cache, continued.ours, None, windows=2).windows == 2
    with pytest.raises(StageError, match=r"earlier version, .* starts 1 frame after .* others 3 frames"):
        build_features(continued.cache, continued.earlier, None, windows=2)
