"""Planning videos of several rates: the rate that `auto` comes to, and frames that repeat."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from thinkjepa.cache import Failure, FeatureCache, WriteSession
from thinkjepa.stages.data.cutting.folder import plan_folder
from thinkjepa.stages.data.decoding.client import VideoDecoder
from thinkjepa.stages.data.plan import ClipSettings, PlannedFolder
from thinkjepa.stages.data.repeated_frames import describe_repeats, planned_repeats, stored_repeats
from thinkjepa.stages.data.videos import find_videos

MakeVideo = Callable[..., Path]

NTSC = Fraction(30000, 1001)
AUTO = ClipSettings(thinker_frames=4, observed_frames=8, future_frames=8, stride_s=0.5)
AT_30 = ClipSettings(thinker_frames=4, observed_frames=8, future_frames=8, stride_s=0.5, dense_fps=30)


class Notes:
    """Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def begin(self, task: str, *, total: int, unit: str) -> None:
        return

    def advance(self, count: int) -> None:
        return

    def failed(self, failure: Failure) -> None:
        self.notes.append(f"failed: {failure.reason}")

    def note(self, text: str) -> None:
        self.notes.append(text)


def planned(folder: Path, settings: ClipSettings) -> tuple[PlannedFolder, list[str]]:
    progress = Notes()
    with VideoDecoder(timeout_s=120) as decoder:
        return plan_folder(
            find_videos(folder), folder, settings, decoder=decoder, progress=progress
        ), progress.notes


@pytest.mark.parametrize(
    ("fps", "suffix", "found"),
    [
        (10, ".mp4", 10.0),
        (25, ".mkv", 25.0),
        (NTSC, ".mp4", 29.97),
        (NTSC, ".mkv", 29.97),
        (30, ".avi", 30.0),
    ],
)
def test_auto_takes_every_frame_of_videos_of_one_rate(
    tmp_path: Path, make_video: MakeVideo, fps: Fraction | int, suffix: str, found: float
) -> None:
    codec = "mpeg4" if suffix == ".avi" else "libx264"
    for number in range(2):
        make_video(tmp_path / f"{number}{suffix}", num_frames=70 + number, fps=fps, codec=codec)
    folder, notes = planned(tmp_path, AUTO)
    assert folder.settings.dense_fps == folder.fps == found
    assert notes == [f"--dense-fps auto: {found:g} frames a second, the rate of the videos"]
    for clip in folder.clips:
        windows = (*clip.observed_frames, *clip.future_frames[0])
        assert windows == tuple(range(windows[0], windows[0] + 16))
    assert folder.repeated_frames.frames == 0


def test_auto_takes_the_slowest_rate_and_says_whose_it_is(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "slow.mp4", num_frames=40, fps=10)
    make_video(tmp_path / "quick.mp4", num_frames=150, fps=30)
    make_video(tmp_path / "ntsc.mkv", num_frames=150, fps=NTSC)
    make_video(tmp_path / "scrap.mp4", num_frames=3, fps=2)
    folder, notes = planned(tmp_path, AUTO)
    assert folder.fps == 10
    assert notes[0].startswith(
        "--dense-fps auto: 10 frames a second, the rate of 'slow.mp4'; 2 of 3 videos are faster, up to 30,"
    )
    assert "; 'scrap.mp4' is slower but too short for a clip at that rate: at 2 it takes 7.5 s" in notes[0]
    assert {clip.video for clip in folder.clips} == {"slow.mp4", "quick.mp4", "ntsc.mkv"}
    assert (folder.repeated_frames.frames, folder.repeated_frames.slowest_video) == (0, "")


def test_what_the_slowest_rate_costs_is_said_with_the_videos_to_leave_out(
    tmp_path: Path, make_video: MakeVideo
) -> None:
    """Sixteen frames take half a second at 30 a second, and one and a half at 10."""
    for number, name in enumerate(("slow.mp4", "slower.mp4")):
        make_video(tmp_path / name, num_frames=40 + number, fps=10)
    make_video(tmp_path / "long.mp4", num_frames=150, fps=30)
    for number in range(2):
        make_video(tmp_path / f"{number}.mp4", num_frames=30 + number, fps=30)
    folder, notes = planned(tmp_path, AUTO)
    assert folder.fps == 10
    assert (
        "; a clip takes 1.5 s then, for which 2 faster videos are too short: leave 'slow.mp4' and 1 more as "
        "slow out, set a rate, or ask for fewer --observed-frames and --future-frames"
    ) in notes[0]
    assert {video.video for video in folder.too_short} == {"0.mp4", "1.mp4"}


def test_a_slow_video_without_a_clip_at_its_rate_is_named_and_no_rate_without_clips_is_advised(
    tmp_path: Path, make_video: MakeVideo
) -> None:
    make_video(tmp_path / "a.mp4", num_frames=14, fps=10)
    make_video(tmp_path / "b.mp4", num_frames=40, fps=25)
    make_video(tmp_path / "c.mp4", num_frames=40, fps=30)
    folder, notes = planned(tmp_path, AUTO)
    assert folder.fps == 25
    assert "; 'a.mp4' is slower but too short for a clip at that rate: at 10 it takes 1.5 s, " in notes[0]
    repeats = folder.repeated_frames
    assert (repeats.slowest_video, round(repeats.slowest_fps)) == ("a.mp4", 10)
    warning = describe_repeats(repeats, fps=folder.fps)
    assert "10 or less repeats none and takes videos of 1.5 s, fewer --observed-frames" in warning


def test_the_slowest_of_the_videos_that_repeat_is_named(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "a.mp4", num_frames=60, fps=25)
    make_video(tmp_path / "b.mp4", num_frames=60, fps=20)
    folder, _ = planned(tmp_path, AT_30)
    assert (folder.repeated_frames.slowest_video, round(folder.repeated_frames.slowest_fps)) == ("b.mp4", 20)


def test_auto_takes_the_median_gap_of_a_variable_rate(tmp_path: Path, make_video: MakeVideo) -> None:
    times_s = np.concatenate([[0.0], np.cumsum([0.02, 0.05, 0.04, 0.04, 0.1] * 16)])
    make_video(tmp_path / "phone.mp4", num_frames=len(times_s), timestamps=times_s.tolist())
    folder, notes = planned(tmp_path, AUTO)
    assert folder.fps == 25
    assert "25 frames a second, the rate of the videos, by the median gap of its uneven frames" in notes[0]
    repeats = folder.repeated_frames
    assert repeats.frames > 0
    assert f"; {repeats.slowest_fps:g} or less repeats none" in describe_repeats(repeats, fps=folder.fps)


def test_ntsc_asked_at_30_repeats_nothing(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "ntsc.mp4", num_frames=320, fps=NTSC)
    many = ClipSettings(
        thinker_frames=4, observed_frames=32, future_frames=32, future_windows=8, dense_fps=30
    )
    folder, _ = planned(tmp_path, many)
    assert folder.clips
    assert folder.repeated_frames.frames == 0


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_slower_video_repeats_frames_and_the_line_says_how_many(
    tmp_path: Path, make_video: MakeVideo, suffix: str
) -> None:
    make_video(tmp_path / f"slow{suffix}", num_frames=40, fps=10)
    make_video(tmp_path / "quick.mp4", num_frames=60, fps=30)
    folder, notes = planned(tmp_path, AT_30)
    repeats = folder.repeated_frames
    slow = [clip for clip in folder.clips if clip.video.startswith("slow")]
    repeated = sum(
        before == after
        for clip in slow
        for window in (clip.observed_frames, clip.future_frames[0])
        for before, after in pairwise(window)
    )
    assert notes == []
    assert (repeats.clips, repeats.of_clips) == (len(slow), len(folder.clips))
    assert (repeats.frames, repeats.of_frames) == (repeated, 16 * len(folder.clips))
    assert repeats.frames >= 9 * len(slow)  # eight frames at 30 a second are three or four pictures
    assert (repeats.slowest_video, round(repeats.slowest_fps)) == (f"slow{suffix}", 10)
    warning = describe_repeats(repeats, fps=folder.fps)
    assert (
        f"in {len(slow)} of {len(folder.clips)} clips: 'slow{suffix}' has 10 frames a second there" in warning
    )
    assert "--dense-fps asks for 30; 10 or less repeats none and takes videos of 1.5 s, " in warning


def test_the_release_preset_repeats_frames_of_a_short_video(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "short.mp4", num_frames=20)
    folder, _ = planned(tmp_path, ClipSettings(preset="release"))
    assert folder.fps is None
    assert folder.repeated_frames.frames == 2 * (32 - 10)
    assert "give fewer --observed-frames" in describe_repeats(folder.repeated_frames, fps=None)


def test_repeats_are_counted_from_a_stored_table_as_from_the_plan(
    tmp_path: Path, make_video: MakeVideo
) -> None:
    make_video(tmp_path / "videos" / "slow.mp4", num_frames=60, fps=10)
    make_video(tmp_path / "videos" / "quick.mp4", num_frames=60, fps=30)
    settings = ClipSettings(
        thinker_frames=4, observed_frames=4, future_frames=6, future_windows=2, dense_fps=25
    )
    folder, _ = planned(tmp_path / "videos", settings)
    with WriteSession(tmp_path / "cache") as session:
        session.add_clips(folder.clips)
    stored = stored_repeats(FeatureCache.open(tmp_path / "cache").clips.all())
    assert stored == planned_repeats(folder.clips) == folder.repeated_frames
    assert stored.frames > 0
