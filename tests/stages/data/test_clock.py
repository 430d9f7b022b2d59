"""One clock: seconds after the last observed frame, by real frame times."""

from __future__ import annotations

import pytest

from thinkjepa.stages.data.sampling import clock_text, seconds_ahead


def test_the_last_observed_frame_is_at_zero() -> None:
    observed_s = (1.0, 1.1, 1.25)
    assert seconds_ahead(observed_s, observed_times_s=observed_s) == pytest.approx([-0.25, -0.15, 0.0])
    assert seconds_ahead([1.35, 2.0], observed_times_s=observed_s) == pytest.approx([0.1, 0.75])
    assert float(seconds_ahead(1.3, observed_times_s=observed_s)) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0.00 s"), (-0.001, "0.00 s"), (0.267, "+0.27 s"), (-1.3, "-1.30 s")]
)
def test_only_the_last_observed_frame_has_no_sign(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text
