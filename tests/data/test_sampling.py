"""Choosing frames: properties over any frame times, and the rule itself on small examples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from thinkjepa.stages.data.clips import ClipSettings
from thinkjepa.stages.data.sampling import (
    TOLERANCE_S,
    Times,
    dual_clip,
    future_frames,
    history_frames,
    observed_frames,
    release_clip,
    window_splits,
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
def test_windows_touch_the_split_and_show_frames_that_were_on_screen(
    times_s: Times, data: st.DataObject
) -> None:
    split = data.draw(st.integers(1, len(times_s) - 1))
    number, fps = 2 * data.draw(st.integers(1, 20)), data.draw(st.sampled_from([8.0, 27.0, 30.0]))
    observed = observed_frames(times_s, split, num_frames=number, fps=fps)
    future = future_frames(times_s, split, num_windows=2, num_frames=number, fps=fps).reshape(-1)
    assert observed[-1] == split - 1
    assert future[0] == split
    for frames, start_s in ((observed, times_s[split - 1] - (number - 1) / fps), (future, times_s[split])):
        wanted_s = start_s + np.arange(len(frames)) / fps
        assert (np.diff(frames) >= 0).all()
        inside = frames > 0
        assert (times_s[frames] <= wanted_s + TOLERANCE_S + 1e-9)[inside & (frames > split)].all()


@given(times_s=frame_times(), data=st.data())
def test_splits_leave_room_for_both_windows_and_come_every_stride(
    times_s: Times, data: st.DataObject
) -> None:
    observed_s, future_s, stride_s = (data.draw(st.floats(0.05, 3.0)) for _ in range(3))
    splits = window_splits(times_s, observed_span_s=observed_s, future_span_s=future_s, stride_s=stride_s)
    assert splits == sorted(set(splits))
    for split in splits:
        assert times_s[split - 1] - times_s[0] >= observed_s - TOLERANCE_S
        assert times_s[split] + future_s <= times_s[-1] + TOLERANCE_S
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
    times_s = np.arange(30) / 27.0
    # At 10 fps back from frame 19 (0.7037 s): 0.6037 s lies between frames 16 (0.5926) and 17 (0.6296).
    assert observed_frames(times_s, 20, num_frames=4, fps=10).tolist() == [10, 13, 16, 19]
    # On from frame 20 (0.7407 s): 0.8407 s lies between frames 22 (0.8148) and 23 (0.8519).
    assert future_frames(times_s, 20, num_windows=1, num_frames=3, fps=10).tolist() == [[20, 22, 25]]


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
    base = ClipSettings()
    assert ClipSettings(stride_s=0.5).dense_sampling == base.dense_sampling
    assert ClipSettings(thinker_frames=8).dense_sampling == base.dense_sampling
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
    with pytest.raises(ValueError, match="--" + name.replace("_", "-")):
        ClipSettings(**{name: value})
