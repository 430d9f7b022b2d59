"""Things on the table: kinds, sizes, colors, and distances of points from their surface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

Shape = Literal["ellipsoid", "box", "cylinder"]

Grasp = Literal["over", "side"]

COLORS = {
    "red": (0.80, 0.13, 0.11),
    "green": (0.12, 0.55, 0.20),
    "blue": (0.13, 0.30, 0.78),
    "yellow": (0.93, 0.78, 0.12),
    "purple": (0.50, 0.17, 0.58),
    "turquoise": (0.10, 0.68, 0.70),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of thing: its shape, the range of its half sizes (m), and how a hand takes it."""

    shape: Shape
    smallest_m: tuple[float, float, float]
    largest_m: tuple[float, float, float]
    grasp: Grasp


KINDS = {
    "ball": Kind("ellipsoid", (0.024, 0.024, 0.024), (0.032, 0.032, 0.032), "over"),
    "lemon": Kind("ellipsoid", (0.023, 0.033, 0.023), (0.027, 0.040, 0.027), "over"),
    "cube": Kind("box", (0.022, 0.022, 0.022), (0.028, 0.028, 0.028), "over"),
    "box": Kind("box", (0.020, 0.034, 0.017), (0.025, 0.045, 0.024), "over"),
    "can": Kind("cylinder", (0.026, 0.026, 0.048), (0.031, 0.031, 0.058), "side"),
    "cup": Kind("cylinder", (0.029, 0.029, 0.042), (0.035, 0.035, 0.050), "side"),
    "bottle": Kind("cylinder", (0.025, 0.025, 0.060), (0.030, 0.030, 0.072), "side"),
}


@dataclass(frozen=True, slots=True)
class Thing:
    """A thing that stands upright on the table."""

    kind: str
    color: str
    half_sizes_m: tuple[float, float, float]
    x_m: float
    y_m: float
    yaw: float

    @property
    def center_m(self) -> Floats:
        return np.array([self.x_m, self.y_m, self.half_sizes_m[2]])

    @property
    def name(self) -> str:
        return f"{self.color} {self.kind}"

    def distances_m(self, points_m: Floats) -> Floats:
        """From the surface to points `(..., 3)` of the world; negative inside."""
        cosine, sine = np.cos(self.yaw), np.sin(self.yaw)
        to_world = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
        local = (points_m - self.center_m) @ to_world
        return SURFACES[KINDS[self.kind].shape](local, np.array(self.half_sizes_m))


def draw_thing(rng: np.random.Generator, kind: str, color: str, x_m: float, y_m: float) -> Thing:
    """A thing of this kind, of any size and turned anyhow."""
    smallest, largest = np.array(KINDS[kind].smallest_m), np.array(KINDS[kind].largest_m)
    half_x, half_y, half_z = (smallest + (largest - smallest) * rng.uniform()).round(4).tolist()
    # Long things are across the palm: a hand takes them at any of these angles.
    yaw = round(float(rng.uniform(-0.35, 0.35) + np.pi / 2), 4)
    return Thing(kind, color, (half_x, half_y, half_z), x_m, y_m, yaw)


def _ellipsoid(points: Floats, half: Floats) -> Floats:
    near = np.linalg.norm(points / half, axis=-1)
    far = np.linalg.norm(points / half**2, axis=-1)
    return np.asarray(near * (near - 1.0) / np.maximum(far, 1e-9))


def _box(points: Floats, half: Floats) -> Floats:
    beyond = np.abs(points) - half
    return np.asarray(np.linalg.norm(np.maximum(beyond, 0.0), axis=-1) + np.minimum(beyond.max(axis=-1), 0.0))


def _cylinder(points: Floats, half: Floats) -> Floats:
    flat = np.stack([np.linalg.norm(points[..., :2], axis=-1), points[..., 2]], axis=-1)
    return _box(flat, half[1:])


SURFACES = {"ellipsoid": _ellipsoid, "box": _box, "cylinder": _cylinder}
