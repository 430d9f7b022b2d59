"""Seconds of video before a clip's split: planned, asked for, counted from the plan and from the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkjepa.cache import FeatureCache, WriteSession
from thinkjepa.stages.data.cutting.folder import plan_folder
from thinkjepa.stages.data.decoding.client import VideoDecoder
from thinkjepa.stages.data.history import (
    describe_histories,
    earlier_s,
    history_s,
    planned_histories,
    stored_histories,
)
from thinkjepa.stages.data.partition import SplitRule
from thinkjepa.stages.data.partitioned_clips import partition_clips
from thinkjepa.stages.data.plan import ClipSettings, PlannedFolder
from thinkjepa.stages.data.sampling import TOLERANCE_S, window_splits
from thinkjepa.stages.data.videos import find_videos
from thinkjepa.stages.progress import NoProgress
from thinkjepa.stages.settings import SettingsError

MakeVideo = Callable[..., Path]


def settings(**changes: object) -> ClipSettings:
    return ClipSettings(
        **{"thinker_frames": 4, "observed_frames": 8, "future_frames": 8, "stride_s": 1.0, **changes}
    )


def planned(folder: Path, settings: ClipSettings) -> PlannedFolder:
    with VideoDecoder(timeout_s=120) as decoder:
        return plan_folder(find_videos(folder), folder, settings, decoder=decoder, progress=NoProgress())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_video: MakeVideo) -> Path:
    folder = tmp_path_factory.mktemp("histories")
    make_video(folder / "long.mp4", num_frames=50, fps=10)
    make_video(folder / "ntsc.mkv", num_frames=130, fps=Fraction(30000, 1001))
    make_video(folder / "short.mp4", num_frames=18, fps=10)
    return folder


def test_the_first_split_of_every_video_has_no_history_beyond_the_observed_window(folder: Path) -> None:
    clips = planned(folder, settings()).clips
    first = {clip.video: clip for clip in reversed(clips)}
    assert len(first) == 3 < len(clips)
    for clip in clips:
        is_first = clip is first[clip.video]
        assert (earlier_s(clip) < 0.1 - 1e-3) == is_first
        assert history_s(clip) == pytest.approx(clip.observed_times_s[-1], abs=1e-9)  # all begin at 0
    found = planned_histories(clips)
    assert (found.clips, found.of_clips) == (3, len(clips))
    assert found.observed_s == pytest.approx(0.7, abs=0.04)
    line = describe_histories(found)
    assert line.startswith(f"3 of {len(clips)} clips ({3 / len(clips):.0%}) have no history beyond")
    assert f"--min-history-s above {found.observed_s:.2f} cuts later clips" in line
    assert describe_histories(replace(found, clips=1)).startswith(f"1 of {len(clips)} clips (")
    assert ") has no history beyond" in describe_histories(replace(found, clips=1))


def test_clips_have_the_history_that_is_asked_for(folder: Path) -> None:
    plan = planned(folder, settings(min_history_s=2.0))
    assert {clip.video for clip in plan.clips} == {"long.mp4", "ntsc.mkv"}
    for video in ("long.mp4", "ntsc.mkv"):
        first, *later = [history_s(clip) for clip in plan.clips if clip.video == video]
        assert 2.0 - TOLERANCE_S <= first < 2.0 + 1 / 10  # as early as it can be
        assert np.allclose(np.diff([first, *later]), 1.0, atol=0.04)
    assert plan.histories.clips == 0
    assert describe_histories(plan.histories) == ""
    (short,) = plan.too_short
    assert short.video == "short.mp4"
    assert "2.80 s (8 + 8 frames at 10 fps, a history of 2 s)" in short.record.reason


def test_the_default_cuts_the_clips_that_it_always_did(folder: Path) -> None:
    plain = planned(folder, settings()).clips
    assert planned(folder, settings(min_history_s=0.5)).clips == plain  # less than the observed window
    assert settings(min_history_s=3.0, dense_fps=10).dense_sampling == settings(dense_fps=10).dense_sampling
    assert settings(min_history_s=3.0).thinker_sampling == settings().thinker_sampling


def test_a_cache_counts_as_the_plan_does(tmp_path: Path, folder: Path) -> None:
    plan = planned(folder, settings())
    with WriteSession(tmp_path) as session:
        session.add_clips(plan.clips)
    clips = FeatureCache.open(tmp_path).clips.all()
    assert stored_histories(clips) == plan.histories
    divided = partition_clips(clips, tmp_path, SplitRule(group_by="video"))
    assert divided.histories == plan.histories
    assert describe_histories(planned_histories([])) == ""


def test_where_no_clip_has_more_history_the_line_says_so(folder: Path) -> None:
    found = planned(folder, settings(preset="release")).histories
    assert found.clips == found.of_clips == 3
    assert describe_histories(found).startswith("no clip has a history beyond the observed window")


@given(
    gaps_s=st.lists(st.floats(0.01, 0.2), min_size=50, max_size=300),
    min_history_s=st.floats(0.0, 12.0),
    fps=st.sampled_from([4.0, 10.0, 30.0]),
)
def test_no_split_is_earlier_and_none_that_fits_is_left_out_at_the_beginning(
    gaps_s: list[float], min_history_s: float, fps: float
) -> None:
    times_s = np.concatenate([[0.0], np.cumsum(gaps_s)])
    sizes = {"num_observed": 4, "num_future": 4, "num_windows": 1, "fps": fps, "stride_s": 0.5}
    splits = window_splits(times_s, min_history_s=min_history_s, **sizes)
    wanted_s = max(min_history_s, 3 / fps) - TOLERANCE_S
    assert all(times_s[split - 1] >= wanted_s for split in splits)
    if splits:
        assert splits[0] < 2 or times_s[splits[0] - 2] < wanted_s


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_history_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(SettingsError, match=r"--min-history-s"):
        settings(min_history_s=value)


def test_the_release_preset_takes_no_history() -> None:
    with pytest.raises(SettingsError, match=r"leave --min-history-s at 0"):
        ClipSettings(preset="release", min_history_s=1.0)
