"""How the sample videos' shapes move: smooth, and predictable from the last moments.

A motion takes times (frame,) in seconds and gives centres (frame, 2), x and y, both in [0, 1]. Its parameters
are drawn once per shape, so that no two shapes move alike.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Motion = Callable[[Floats, np.random.Generator], Floats]


def slide(times_s: Floats, rng: np.random.Generator) -> Floats:
    """A straight line at constant speed, reflected at the borders."""
    start, velocity = rng.uniform(0, 2, size=2), _signed(rng, 0.15, 0.5, size=2)
    return _reflect(start + velocity * times_s[:, None])


def orbit(times_s: Floats, rng: np.random.Generator) -> Floats:
    """A circle at constant angular speed."""
    radius = rng.uniform(0.15, 0.4)
    centre = rng.uniform(radius, 1 - radius, size=2)
    angle = rng.uniform(0, 2 * np.pi) + _signed(rng, 0.8, 2.5) * times_s
    return np.asarray(centre + radius * np.stack([np.cos(angle), np.sin(angle)], axis=-1))


def swing(times_s: Floats, rng: np.random.Generator) -> Floats:
    """A harmonic oscillation between two points."""
    ends = rng.uniform(0, 1, size=(2, 2))
    phase = rng.uniform(0, 2 * np.pi) + rng.uniform(1.0, 3.0) * times_s
    share = (1 + np.sin(phase))[:, None] / 2
    return np.asarray(ends[0] * share + ends[1] * (1 - share))


def bounce(times_s: Floats, rng: np.random.Generator) -> Floats:
    """A ball that bounces off the floor without loss and drifts sideways."""
    x = _reflect(rng.uniform(0, 2) + _signed(rng, 0.1, 0.35) * times_s)
    height, period_s = rng.uniform(0.4, 1.0), rng.uniform(0.8, 1.6)
    share = np.mod(rng.uniform() + times_s / period_s, 1)
    return np.stack([x, 1 - height * 4 * share * (1 - share)], axis=-1)


MOTIONS: dict[str, Motion] = {"bounce": bounce, "orbit": orbit, "slide": slide, "swing": swing}


def _signed(rng: np.random.Generator, low: float, high: float, size: int | None = None) -> Floats:
    """Magnitudes in [low, high) of either sign."""
    return np.asarray(rng.uniform(low, high, size) * rng.choice([-1, 1], size))


def _reflect(position: Floats) -> Floats:
    """Fold the real line into [0, 1], as a mirror at either end does."""
    return np.asarray(1 - np.abs(np.mod(position, 2) - 1))
