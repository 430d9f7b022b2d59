"""Units for people: millimetres of every stored metre, digits by unit, no sign of zero."""

from __future__ import annotations

import pytest

from thinkjepa.stages.display import MILLIMETERS, RANK, SQUARED
from thinkjepa.stages.evaluate.metrics import METRICS, VALIDATION_METRICS


def test_every_distance_is_shown_in_millimetres() -> None:
    """Names that end with `_m` are stored in metres."""
    shown = {**METRICS, **VALIDATION_METRICS}
    in_metres = {name for name in shown if name.endswith("_m")}
    assert in_metres == {name for name, metric in shown.items() if metric.unit is MILLIMETERS}
    assert METRICS["ade_m"].label() == "ADE (mm)"
    assert METRICS["fde_m"].label(last_frame_s=0.35) == "FDE at 0.35 s (mm)"
    assert METRICS["outside_view_m"].label() == "joints it does not see (mm)"
    assert VALIDATION_METRICS["validation_distance_m"].label == "validation distance (mm)"


@pytest.mark.parametrize(
    ("value", "number", "signed"),
    [
        (0.0612, "61.2", "+61.2"),
        (-0.01, "-10.0", "-10.0"),
        (-0.00004, "0.0", "0.0"),
        (0.00006, "0.1", "+0.1"),
    ],
)
def test_a_number_has_the_digits_of_its_unit(value: float, number: str, signed: str) -> None:
    assert MILLIMETERS.number(value) == number
    assert MILLIMETERS.signed(value) == signed
    assert MILLIMETERS.amount(value) == f"{number} mm"
    assert MILLIMETERS.rounds_to_zero(value) == (number == "0.0")


@pytest.mark.parametrize(
    ("difference", "of", "share"),
    [
        (0.012, 0.06, "20 %"),
        (-0.00004, 0.06, "0.07 %"),
        (0.012, 0.00048, "25 times its 0.5 mm"),
        (0.012, 0.00004, ""),
        (0.012, 0.0, ""),
    ],
)
def test_a_difference_is_a_share_of_what_is_not_nearly_zero(difference: float, of: float, share: str) -> None:
    assert MILLIMETERS.share(difference, of) == share


def test_a_small_number_may_have_more_digits() -> None:
    assert MILLIMETERS.number(0.00004, more_decimals=2) == "0.040"
    assert not MILLIMETERS.rounds_to_zero(0.00004, more_decimals=2)
    assert (SQUARED.number(0.41), RANK.number(12.3456)) == ("0.4100", "12.35")
