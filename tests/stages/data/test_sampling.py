"""Choosing frames: properties over any frame times, and the rule itself on small examples."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from thinkjepa.stages.data.plan import ClipSettings
from thinkjepa.stages.data.rates import measured_rate
from thinkjepa.stages.data.sampling import (
    SAME_RATE,
    TOLERANCE_GAPS,
    TOLERANCE_S,
    Times,
    dual_clip,
    future_frames,
    has_future,
    history_frames,
    observed_frames,
    release_clip,
    shown_at,
    window_splits,
)
from thinkjepa.stages.settings import SettingsError

RATES = (
    Fraction(10),
    Fraction(24000, 1001),
    Fraction(25),
    Fraction(30000, 1001),
    Fraction(30),
    Fraction(60000, 1001),
)


@st.composite
def frame_times(draw: st.DrawFn) -> Times:
    """Constant rates such as 27 fps, or gaps of 1 ms to 2 s; from two frames to several minutes."""
    num_frames = draw(st.integers(2, 400))
    start_s = draw(st.sampled_from([0.0, 0.021, 1.4]))
    if draw(st.booleans()):
        fps = draw(st.sampled_from([5.0, 23.976, 25.0, 27.0, 29.97, 30.0, 50.0, 59.94, 120.0]))
        times_s = start_s + np.arange(num_frames) / fps
    else:
        gaps = draw(st.lists(st.floats(0.002, 2.0), min_size=num_frames - 1, max_size=num_frames - 1))
        times_s = start_s + np.concatenate([[0.0], np.cumsum(gaps)])
    if draw(st.booleans()):
        times_s = np.round(times_s, 3)  # Matroska
    assume((np.diff(times_s) > 0).all())
    return times_s.astype(np.float32).astype(np.float64)


@given(times_s=frame_times(), data=st.data())
def test_nothing_at_or_past_the_split_is_observed(times_s: Times, data: st.DataObject) -> None:
    split = data.draw(st.integers(1, len(times_s) - 1))
    fps = data.draw(st.sampled_from([1.0, 4.0, 8.0, 27.0, 30.0, 60.0]))
    number = 2 * data.draw(st.integers(1, 20))
    clip = dual_clip(
        times_s, split, thinker_frames=number, num_observed=number, num_future=number, num_windows=2, fps=fps
    )
    assert clip.thinker.max() < split
    assert clip.observed.max() < split
    assert clip.future.min() >= split
    assert clip.future.max() < len(times_s)
    assert min(clip.thinker.min(), clip.observed.min()) >= 0


@given(times_s=frame_times(), data=st.data())
def test_what_is_observed_does_not_depend_on_later_frames(times_s: Times, data: st.DataObject) -> None:
    split = data.draw(st.integers(1, len(times_s) - 1))
    number = 2 * data.draw(st.integers(1, 20))
    for later in (
        times_s[: split + 1],
        np.concatenate([times_s[:split], times_s[split - 1] + [7.0, 7.5, 20.0]]),
    ):
        assert np.array_equal(
            history_frames(times_s, split, num_frames=number), history_frames(later, split, num_frames=number)
        )
        assert np.array_equal(
            observed_frames(times_s, split, num_frames=number, fps=30),
            observed_frames(later, split, num_frames=number, fps=30),
        )


@given(times_s=frame_times(), data=st.data())
def test_the_history_is_covered_from_its_first_to_its_last_frame(times_s: Times, data: st.DataObject) -> None:
    split = data.draw(st.integers(1, len(times_s) - 1))
    frames = history_frames(times_s, split, num_frames=2 * data.draw(st.integers(1, 20)))
    assert (frames[0], frames[-1]) == (0, split - 1)
    assert (np.diff(frames) >= 0).all()


@given(times_s=frame_times(), data=st.data())
def test_windows_show_frames_that_were_on_screen_at_their_moments(
    times_s: Times, data: st.DataObject
) -> None:
    split = data.draw(st.integers(1, len(times_s) - 1))
    number = 2 * data.draw(st.integers(1, 20))
    fps = data.draw(st.sampled_from([8.0, 10.0, 23.976, 25.0, 27.0, 29.97, 30.0, 59.94]))
    observed = observed_frames(times_s, split, num_frames=number, fps=fps)
    windows = future_frames(times_s, split, num_windows=2, num_frames=number, fps=fps)
    assert observed[-1] == split - 1
    gaps_s = np.diff(times_s, prepend=times_s[0])
    starts_s = (times_s[split - 1] - (number - 1) / fps, *times_s[windows[:, 0]])
    for frames, start_s in zip((observed, *windows), starts_s, strict=True):
        wanted_s = start_s + np.arange(len(frames)) / fps
        assert (np.diff(frames) >= 0).all()
        drift_s = SAME_RATE * (wanted_s[-1] - wanted_s[0])
        early_s = np.maximum(TOLERANCE_S, TOLERANCE_GAPS * gaps_s[frames]) + drift_s
        inside = (frames > 0) & (np.arange(len(frames)) > 0)  # not clamped, and not where the window starts
        assert (times_s[frames] <= wanted_s + early_s + 1e-9)[inside].all()


def all_windows(times_s: Times, split: int, *, number: int, fps: float) -> list[np.ndarray]:
    """The observed window and three future ones."""
    observed = observed_frames(times_s, split, num_frames=number, fps=fps)
    return [observed, *future_frames(times_s, split, num_windows=3, num_frames=number, fps=fps)]


@given(times_s=frame_times(), data=st.data())
def test_every_window_starts_at_the_first_frame_one_step_after_the_frame_before_it(
    times_s: Times, data: st.DataObject
) -> None:
    split = data.draw(st.integers(1, len(times_s) - 1))
    fps = data.draw(st.sampled_from([1.0, 4.0, 8.0, 23.976, 27.0, 29.97, 30.0, 60.0]))
    windows = all_windows(times_s, split, number=2 * data.draw(st.integers(1, 8)), fps=fps)
    for before, after in pairwise(windows):
        last, start = int(before[-1]), int(after[0])
        if times_s[last] + 1 / fps > times_s[-1]:
            continue  # the video ends
        early_s = max(TOLERANCE_S, TOLERANCE_GAPS * (times_s[start] - times_s[start - 1]))
        assert times_s[start] - times_s[last] >= 1 / fps - early_s - 1e-9
        assert start == last + 1 or times_s[start - 1] < times_s[last] + 1 / fps


@pytest.mark.parametrize("native", [23.976, 24, 25, 29.97, 30, 50, 59.94, 60])
@pytest.mark.parametrize("fps", [3.0, 4.0, 7.5, 8.0, 10.0, 12.0, 15.0, 23.976])
@pytest.mark.parametrize("in_milliseconds", [False, True])
def test_gaps_between_dense_frames_differ_by_one_frame_of_the_video_at_most(
    native: float, fps: float, in_milliseconds: bool
) -> None:
    """Also across the split and from window to window: what is scored later is what was learned."""
    exact = {23.976: 24000 / 1001, 29.97: 30000 / 1001, 59.94: 60000 / 1001}.get(native, native)
    times_s = np.arange(4000) / exact
    times_s = np.round(times_s, 3) if in_milliseconds else times_s
    for split in range(700, 720):
        windows = all_windows(times_s, split, number=16, fps=fps)
        gaps = np.diff(np.concatenate(windows))
        assert gaps.max() - gaps.min() <= 1
        across = [after[0] - before[-1] for before, after in pairwise(windows)]
        assert max(across) - min(across) <= 1
        assert abs(np.mean(gaps) / exact * fps - 1) < 0.05


@given(data=st.data(), fps=st.sampled_from([2.0, 4.0, 8.0, 10.0, 15.0]))
def test_at_a_variable_rate_a_gap_is_off_by_one_frame_of_the_video_at_most(
    data: st.DataObject, fps: float
) -> None:
    gaps_s = data.draw(st.lists(st.floats(0.01, 0.06), min_size=900, max_size=900))
    times_s = np.concatenate([[0.0], np.cumsum(gaps_s)])
    split = data.draw(st.integers(450, 460))
    windows = all_windows(times_s, split, number=4, fps=fps)
    frames = np.concatenate(windows)
    assume(frames[0] > 0 and frames[-1] < len(times_s) - 1)
    off_s = np.abs(np.diff(times_s[frames]) - 1 / fps)
    native_s = np.diff(times_s)[frames[0] : frames[-1] + 1].max()
    assert off_s.max() <= native_s * (1 + TOLERANCE_GAPS)


@given(
    native=st.sampled_from(RATES),
    clock=st.sampled_from([None, 1000, 15_360, 90_000]),
    num_windows=st.integers(1, 8),
    number=st.sampled_from([2, 8, 16, 32]),
    num_frames=st.integers(40, 700),
)
def test_at_the_videos_own_rate_windows_are_its_frames_one_after_the_other(
    native: Fraction, clock: int | None, num_windows: int, number: int, num_frames: int
) -> None:
    times_s = np.arange(num_frames) / float(native)
    times_s = np.round(times_s * clock) / clock if clock else times_s
    rate = measured_rate(times_s)
    assert rate is not None
    sizes = {"num_windows": num_windows, "fps": rate.fps}
    splits = window_splits(times_s, num_observed=number, num_future=number, stride_s=0.5, **sizes)
    for split in splits:
        future = future_frames(times_s, split, num_frames=number, **sizes)
        assert future.reshape(-1).tolist() == list(range(split, split + num_windows * number))
    room = num_frames - number - num_windows * number  # the first split is after `number` frames
    assert bool(splits) == (room >= 0)
    assert all(split + num_windows * number <= num_frames for split in splits)


@given(times_s=frame_times(), data=st.data())
def test_splits_leave_room_for_all_windows_and_come_every_stride(times_s: Times, data: st.DataObject) -> None:
    fps = data.draw(st.sampled_from([4.0, 8.0, 10.0, 27.0, 30.0]))
    number = 2 * data.draw(st.integers(1, 16))
    num_windows, stride_s = data.draw(st.integers(1, 3)), data.draw(st.floats(0.05, 3.0))
    future = {"num_windows": num_windows, "fps": fps}
    splits = window_splits(times_s, num_observed=number, num_future=number, stride_s=stride_s, **future)
    assert splits == sorted(set(splits))
    for split in splits:
        assert times_s[split - 1] - times_s[0] >= (number - 1) / fps - TOLERANCE_S
        windows = future_frames(times_s, split, num_frames=number, **future)
        assert has_future(times_s, split, num_frames=number, **future)
        assert times_s[windows[-1, 0]] + (number - 1) / fps <= times_s[-1] + TOLERANCE_S
    if splits:
        offsets_s = times_s[splits] - times_s[splits[0]]
        assert (offsets_s >= np.arange(len(splits)) * stride_s - TOLERANCE_S - 1e-9).all()


@pytest.mark.parametrize("fps", [27.0, 30.0, 25.0])
def test_frames_at_the_source_rate_are_consecutive(fps: float) -> None:
    times_s = (np.arange(200) / fps).astype(np.float32).astype(np.float64)
    assert observed_frames(times_s, 100, num_frames=32, fps=fps).tolist() == list(range(68, 100))
    assert future_frames(times_s, 100, num_windows=1, num_frames=32, fps=fps)[0].tolist() == list(
        range(100, 132)
    )


def test_times_between_frames_are_floored() -> None:
    times_s = np.arange(60) / 27.0
    # At 4 fps a step is 6.75 frames: back from frame 29 to 22.25, 15.5 and 8.75.
    assert observed_frames(times_s, 30, num_frames=4, fps=4).tolist() == [8, 15, 22, 29]
    # A step after frame 29 is 35.75, so the next window starts at 36 and goes on to 42.75, 49.5 and 56.25.
    assert future_frames(times_s, 30, num_windows=1, num_frames=4, fps=4).tolist() == [[36, 42, 49, 56]]


@pytest.mark.parametrize(("due_in_gaps", "shown"), [(0.05, 5), (0.15, 4)])
def test_a_frame_that_is_all_but_due_counts_as_shown(due_in_gaps: float, shown: int) -> None:
    times_s = np.arange(10) / 10.0
    wanted_s = np.array([times_s[5] - due_in_gaps / 10])
    assert shown_at(times_s, wanted_s, first=0, stop=10).tolist() == [shown]
    assert shown_at(times_s, wanted_s, first=0, stop=5).tolist() == [4]  # never past the split


@given(
    native=st.sampled_from(RATES),
    asked=st.sampled_from([Fraction(10), Fraction(15), *RATES]),
    in_milliseconds=st.booleans(),
    split=st.integers(300, 330),
)
def test_no_frame_repeats_at_the_videos_own_rate_or_a_lower_one(
    native: Fraction, asked: Fraction, in_milliseconds: bool, split: int
) -> None:
    assume(asked <= native * Fraction(1001, 1000))
    times_s = np.arange(2200) / float(native)
    times_s = np.round(times_s, 3) if in_milliseconds else times_s
    fps = round(float(asked), 3)
    number = int((split - 1) * fps / float(native))
    observed = observed_frames(times_s, split, num_frames=number, fps=fps)
    future = future_frames(times_s, split, num_windows=8, num_frames=32, fps=fps)
    assert (np.diff(observed) > 0).all()
    assert (np.diff(future.reshape(-1)) > 0).all()
    assert future[0, 0] >= split > observed[-1]


@given(native=st.sampled_from(RATES), times=st.integers(1, 6), in_milliseconds=st.booleans())
def test_whole_fractions_of_the_videos_rate_take_every_nth_frame(
    native: Fraction, times: int, in_milliseconds: bool
) -> None:
    times_s = np.arange(1000) / float(native)
    times_s = np.round(times_s, 3) if in_milliseconds else times_s
    nominal = round(float(native)) / times  # 30 of 29.97
    observed = observed_frames(times_s, 600, num_frames=32, fps=nominal)
    future = future_frames(times_s, 600, num_windows=2, num_frames=32, fps=nominal).reshape(-1)
    assert observed.tolist() == list(range(599 - 31 * times, 600, times))
    assert future.tolist() == list(range(599 + times, 599 + 65 * times, times))


def test_the_release_preset_splits_at_half_and_spreads_by_index() -> None:
    clip = release_clip(101, num_observed=4, num_future=4)
    assert clip.split_frame == 50
    assert clip.thinker.tolist() == clip.observed.tolist() == [0, 16, 32, 49]
    assert clip.future.tolist() == [[50, 66, 83, 100]]


@given(num_frames=st.integers(2, 5000), number=st.integers(1, 32))
def test_the_release_preset_never_crosses_the_split(num_frames: int, number: int) -> None:
    clip = release_clip(num_frames, num_observed=2 * number, num_future=2 * number)
    assert clip.observed.max() < clip.split_frame <= clip.future.min()
    assert clip.future.max() < num_frames


def test_the_sampling_record_names_only_what_chooses_frames() -> None:
    base = ClipSettings(dense_fps=30)
    assert ClipSettings(dense_fps=30, stride_s=0.5).dense_sampling == base.dense_sampling
    assert ClipSettings(dense_fps=30, thinker_frames=8).dense_sampling == base.dense_sampling
    assert ClipSettings(thinker_frames=8).thinker_sampling != base.thinker_sampling
    assert ClipSettings(dense_fps=15).thinker_sampling == base.thinker_sampling
    assert ClipSettings(dense_fps=15).dense_sampling != base.dense_sampling


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("thinker_frames", 3),
        ("observed_frames", 0),
        ("dense_fps", 0),
        ("stride_s", float("nan")),
        ("future_windows", 0),
    ],
)
def test_settings_that_make_no_sense_are_refused(name: str, value: float) -> None:
    with pytest.raises(SettingsError, match="--" + name.replace("_", "-")):
        ClipSettings(**{name: value})
