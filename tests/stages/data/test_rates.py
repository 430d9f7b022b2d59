"""The rate of a video, from when its frames are shown."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkjepa.stages.data.rates import measured_rate

NTSC = {Fraction(24000, 1001): 23.976, Fraction(30000, 1001): 29.97, Fraction(60000, 1001): 59.94}
CLOCKS = (None, 90_000, 30_000, 15_360, 1000)
"""Ticks a second: none, of MPEG, of MP4 as cameras and libav write it, of Matroska."""


@given(
    native=st.sampled_from([Fraction(10), Fraction(25, 2), Fraction(25), Fraction(30), Fraction(120), *NTSC]),
    clock=st.sampled_from(CLOCKS),
    seconds=st.floats(2.0, 600.0),
    start_s=st.floats(0, 100),
)
def test_equal_rates_are_equal_numbers_whatever_the_clock(
    native: Fraction, clock: int | None, seconds: float, start_s: float
) -> None:
    times_s = start_s + np.arange(int(seconds * native)) / float(native)
    if clock:
        times_s = np.round(times_s * clock) / clock
    rate = measured_rate(times_s)
    assert rate is not None
    assert rate.fps == NTSC.get(native, float(native))
    assert rate.is_steady


@given(fps=st.floats(1.0, 200.0))
def test_an_odd_rate_is_right_to_half_a_percent(fps: float) -> None:
    rate = measured_rate(np.arange(100) / fps)
    assert rate is not None
    assert rate.fps == pytest.approx(fps, rel=5e-3)


def test_a_variable_rate_is_that_of_the_median_gap() -> None:
    gaps_s = [0.02, 0.05, 0.04, 0.04, 0.1] * 20
    rate = measured_rate(np.concatenate([[0.0], np.cumsum(gaps_s)]))
    assert rate is not None
    assert (rate.fps, rate.is_steady) == (25.0, False)


@pytest.mark.parametrize("clock", [90_000, 1000])
def test_dropped_frames_do_not_change_the_rate(clock: int) -> None:
    kept = [number for number in range(300) if number % 40]
    rate = measured_rate(np.round(np.array(kept) * 1001 / 30000 * clock) / clock)
    assert rate is not None
    assert (rate.fps, rate.is_steady) == (29.97, False)


def test_a_single_frame_has_no_rate() -> None:
    assert measured_rate(np.zeros(1)) is None
