"""Motion as people make it: a value that moves by minimum-jerk steps, which may overlap.

A step is `10 s^3 - 15 s^4 + 6 s^5`: the path between two resting points with the least jerk (Flash and
Hogan, 1985). Overlapping steps give via points without stopping at them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def minimum_jerk(times_s: npt.ArrayLike, start_s: float, end_s: float) -> Floats:
    """Share of the way made, 0 before `start_s` and 1 after `end_s`."""
    share = np.clip((np.asarray(times_s, np.float64) - start_s) / (end_s - start_s), 0.0, 1.0)
    return np.asarray(share**3 * (10.0 + share * (6.0 * share - 15.0)))


@dataclass(slots=True)
class Path:
    """Values `(channel,)` that start at `start` and are moved by steps."""

    start: Floats
    _steps: list[tuple[float, float, Floats]] = field(default_factory=list)

    @property
    def end(self) -> Floats:
        """The values after all steps."""
        return np.asarray(self.start + sum(delta for _, _, delta in self._steps))

    def move(self, delta: npt.ArrayLike, start_s: float, end_s: float) -> None:
        """Add `delta` to the values between two times."""
        self._steps.append((start_s, end_s, np.asarray(delta, np.float64)))

    def move_to(self, target: npt.ArrayLike, start_s: float, end_s: float) -> None:
        """Go from where all steps so far lead to `target`."""
        self.move(np.asarray(target, np.float64) - self.end, start_s, end_s)

    def bump(self, delta: npt.ArrayLike, start_s: float, top_s: float, end_s: float) -> None:
        """Add `delta` until `top_s` and take it away again until `end_s`."""
        self.move(delta, start_s, top_s)
        self.move(-np.asarray(delta, np.float64), top_s, end_s)

    def at(self, times_s: Floats) -> Floats:
        """Values `(time, channel)`."""
        values = np.repeat(self.start[None], len(times_s), axis=0)
        for start_s, end_s, delta in self._steps:
            values += minimum_jerk(times_s, start_s, end_s)[:, None] * delta
        return values


@dataclass(frozen=True, slots=True)
class Sway:
    """A motion that never quite rests: a few slow sines on each channel, `(sine, channel)` each."""

    amplitudes: Floats
    frequencies_hz: Floats
    phases: Floats

    def at(self, times_s: Floats) -> Floats:
        """Values `(time, channel)` around zero."""
        angles = 2 * np.pi * times_s[:, None, None] * self.frequencies_hz + self.phases
        return np.asarray((self.amplitudes * np.sin(angles)).sum(axis=1))


def draw_sway(rng: np.random.Generator, sizes: npt.ArrayLike, *, num_sines: int = 3) -> Sway:
    """Sway of about these sizes `(channel,)`; faster sines are smaller."""
    size = np.asarray(sizes, np.float64)
    shape = (num_sines, len(size))
    frequencies_hz = rng.uniform(0.15, 0.9, shape)
    amplitudes = size * rng.uniform(0.5, 1.0, shape) / (num_sines * (0.5 + frequencies_hz))
    return Sway(amplitudes, frequencies_hz, rng.uniform(0, 2 * np.pi, shape))
