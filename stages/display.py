"""Units in which people read figures: in tables, on axes, in logs and in sentences.

Files, records and arguments keep a figure's own unit, with which its name ends (`ade_m`, metres). A number
for people goes through a `Unit`, so that a distance is in millimetres everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

DECIMALS = 4
"""Of a number whose unit says nothing else."""

MANY_TIMES = 10
"""From so many times a value on, a difference is a factor of it and no percentage."""


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit of a figure, in tables, on axes, and in sentences about differences."""

    note: str
    """Follows a title in tables."""
    axis: str
    difference_axis: str
    scale: int = 1
    """Factor from a stored value to the number that is shown."""
    decimals: int = DECIMALS
    """Of a shown number."""
    suffix: str = ""
    """Follows a number in a sentence."""

    def signed(self, value: float, *, more_decimals: int = 0) -> str:
        """The number of a stored value: `-10.0`, `+10.0`, and `0.0` of what rounds to zero."""
        text = f"{self.scale * value:+.{self.decimals + more_decimals}f}"
        return text if float(text) else text[1:]

    def number(self, value: float, *, more_decimals: int = 0) -> str:
        """The number of a stored value: `61.2`."""
        return self.signed(value, more_decimals=more_decimals).removeprefix("+")

    def amount(self, value: float) -> str:
        """The number and its unit, for a sentence: `61.2 mm`."""
        return f"{self.number(value)}{self.suffix}"

    def share(self, difference: float, of: float) -> str:
        """The size of a difference by a stored value: `18 %`, or `25 times its 0.3 mm`.

        Empty where that value rounds to zero, by which nothing can be measured.
        """
        if self.rounds_to_zero(of):
            return ""
        share = abs(difference / of)
        if share >= MANY_TIMES:
            return f"{share:,.0f} times its {self.amount(of)}"
        return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.1g} %"

    def rounds_to_zero(self, value: float, *, more_decimals: int = 0) -> bool:
        """True if the number of a stored value has no digit but 0."""
        return not float(self.signed(value, more_decimals=more_decimals))


MILLIMETERS = Unit(" (mm)", "mean distance (mm)", "difference (mm)", scale=1000, decimals=1, suffix=" mm")
"""Of stored metres."""

SHARE = Unit("", "share of joints (0 to 1)", "difference of shares")
ABSOLUTE = Unit("", "mean error (latent units)", "difference (latent units)")
SQUARED = Unit(" (squared)", "mean squared error (latent units²)", "difference (latent units²)")
COSINE = Unit("", "cosine (1: equal)", "difference of cosines")
CLIPS = Unit("", "share of clips (0 to 1)", "difference of shares")
RATIO = Unit("", "ratio", "difference of ratios")
RANK = Unit("", "rank", "difference of ranks", decimals=2)
LOSS = Unit("", "loss", "difference of losses")
