"""Hand postures, and how the fingers close around a thing: each until it touches, none goes through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hands.adroit import FINGER_BODIES
from hands.things import KINDS, Grasp, Thing
from thinkjepa.pipeline.sample.skeleton import NUM_BASE, Skeleton

Floats = npt.NDArray[np.float64]

CLOSING_STEPS = 61

FINGER_RADIUS_M = 0.008

PALM_RADIUS_M = 0.0125

PALM_MARGIN_M, TABLE_MARGIN_M = 0.003, 0.003

PARTS = ("proximal", "middle", "distal")

# Positions of contact points: along each bone, whose length (m) Adroit's collision capsules have.
BONES_M = {"proximal": 0.045, "middle": 0.025, "distal": 0.026}

THUMB_BONES_M = {"proximal": 0.038, "middle": 0.032, "distal": 0.027}

PALM_POINTS_M = np.array([[x, 0.0, z] for x in (-0.03, -0.01, 0.01, 0.03) for z in (0.0, 0.03, 0.06, 0.09)])

Flexion = tuple[float, float, float]
"""Angles of a finger's three hinges, from the knuckle on (rad)."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A way to take a thing: the hand before, how far it could close, and where in it the thing is."""

    open: Flexion
    open_thumb: Mapping[str, float]
    closed: Flexion
    closed_thumb: Mapping[str, float]
    hollow_m: tuple[float, float, float]
    """The thing's middle in the palm's frame: x to the thumb, -y out of the palm, z to the fingers."""
    against_palm: bool
    """The palm is drawn back along its normal until it just touches; else the hollow holds as it is."""


HOLDS: dict[Grasp, Hold] = {
    # Between fingertips and thumb, the palm above.
    "over": Hold(
        open=(0.42, 0.40, 0.20),
        open_thumb={"thbase": 1.04, "thproximal": 0.40, "thmiddle": 0.40, "thdistal": -0.05},
        closed=(1.30, 0.95, 0.60),
        closed_thumb={"thbase": 1.04, "thproximal": 1.30, "thmiddle": 0.30, "thdistal": -0.40},
        hollow_m=(0.018, -0.066, 0.122),
        against_palm=False,
    ),
    # The whole hand around it, the palm at its side.
    "side": Hold(
        open=(0.10, 0.20, 0.12),
        open_thumb={"thbase": 1.0, "thproximal": 0.25, "thmiddle": 0.15, "thdistal": -0.1},
        closed=(1.55, 1.35, 0.95),
        closed_thumb={"thbase": 1.04, "thproximal": 1.25, "thhub": 0.2, "thmiddle": -0.5, "thdistal": -1.0},
        hollow_m=(0.004, -0.02, 0.082),
        against_palm=True,
    ),
}

RELAXED: Flexion = (0.45, 0.55, 0.35)

RELAXED_THUMB = {"thbase": 0.45, "thproximal": 0.35, "thmiddle": -0.15, "thdistal": -0.25}


def posture(skeleton: Skeleton, flexion: Flexion, thumb: Mapping[str, float]) -> Floats:
    """Angles `(body,)` of all hinges: fingers bent alike, a little spread, the thumb as given."""
    angles = dict(thumb)
    for finger, prefix in enumerate(FINGER_BODIES.values()):
        # Fingers diverge when they are open; the little one bends most, as in any relaxed hand.
        angles[f"{prefix}knuckle"] = (1.5 - finger) * -0.05 * (1.6 - flexion[0])
        for part, value in zip(PARTS, flexion, strict=True):
            angles[f"{prefix}{part}"] = value * (1.0 + 0.05 * finger)
    values = np.zeros(skeleton.num_channels)
    for body, value in angles.items():
        values[skeleton.channel(body)] = np.clip(value, *skeleton.limits[skeleton.bodies.index(body)])
    return values[NUM_BASE:]


def opened(skeleton: Skeleton, grasp: Grasp) -> Floats:
    """The hand open, thumb opposed, before it takes something."""
    return posture(skeleton, HOLDS[grasp].open, HOLDS[grasp].open_thumb)


def relaxed(skeleton: Skeleton) -> Floats:
    """The hand at rest."""
    return posture(skeleton, RELAXED, RELAXED_THUMB)


def wrist_for(skeleton: Skeleton, thing: Thing, angles: Floats, turn: Floats) -> Floats:
    """Position of the wrist `(3,)` to take a thing, with hinges and forearm turned as given.

    No part of the open hand goes into the table.
    """
    state = np.concatenate([np.zeros(3), turn, angles])[None]
    origins, rotations = skeleton.bodies_of(state)
    palm = skeleton.bodies.index("palm")
    origin, rotation = origins[0, palm], rotations[0, palm]
    hold = HOLDS[KINDS[thing.kind].grasp]
    wrist = thing.center_m - origin - rotation @ np.array(hold.hollow_m)
    back = rotation @ np.array([0.0, 0.001, 0.0])
    palm_m = PALM_POINTS_M @ rotation.T + origin
    while hold.against_palm and thing.distances_m(palm_m + wrist).min() < PALM_RADIUS_M + PALM_MARGIN_M:
        wrist = wrist + back
    wrist[2] = max(wrist[2], lowest_wrist_m(skeleton, state[0]))
    return np.asarray(wrist)


def lowest_wrist_m(skeleton: Skeleton, state: Floats) -> float:
    """The least height of the wrist at which the hand, posed and turned as in a state, is above the table."""
    flat = state.copy()
    flat[2] = 0.0
    bones = [body for body in skeleton.bodies if body.endswith(PARTS)]
    finger_m = _bone_points(skeleton, flat[None], bones)[..., 2].min()
    origins, rotations = skeleton.bodies_of(flat[None])
    palm = skeleton.bodies.index("palm")
    palm_m = (PALM_POINTS_M @ rotations[0, palm].T + origins[0, palm])[:, 2].min()
    return float(max(FINGER_RADIUS_M - finger_m, PALM_RADIUS_M - palm_m) + TABLE_MARGIN_M)


def close_around(skeleton: Skeleton, thing: Thing, base: Floats, angles: Floats) -> Floats:
    """Angles of hinges with each finger closed from `angles` until it touches the thing or the table."""
    hold = HOLDS[KINDS[thing.kind].grasp]
    closed = posture(skeleton, hold.closed, hold.closed_thumb)
    result = angles.copy()
    for prefix in (*FINGER_BODIES.values(), "th"):
        whole = [skeleton.channel(f"{prefix}{part}") - NUM_BASE for part in PARTS]
        bones = [f"{prefix}{part}" for part in PARTS]
        result = _close(skeleton, thing, base, result, closed, whole, bones)
        # The first bone may touch before the tip does: the rest of the finger closes on.
        result = _close(skeleton, thing, base, result, closed, whole[1:], bones[1:])
        result = _close(skeleton, thing, base, result, closed, whole[2:], bones[2:])
    return result


def _close(
    skeleton: Skeleton,
    thing: Thing,
    base: Floats,
    angles: Floats,
    closed: Floats,
    hinges: list[int],
    bones: list[str],
) -> Floats:
    """Move some hinges towards `closed` as far as these bones stay free."""
    shares = np.linspace(0, 1, CLOSING_STEPS)
    states = np.repeat(np.concatenate([base, angles])[None], len(shares), axis=0)
    for hinge in hinges:
        states[:, NUM_BASE + hinge] += shares * (closed[hinge] - angles[hinge])
    points = _bone_points(skeleton, states, bones)
    free_m = np.minimum(thing.distances_m(points), points[..., 2] - 0.001).min(axis=1) - FINGER_RADIUS_M
    blocked = np.flatnonzero(free_m < 0)
    last = len(shares) - 1 if len(blocked) == 0 else max(int(blocked[0]) - 1, 0)
    return np.asarray(states[last, NUM_BASE:])


def _bone_points(skeleton: Skeleton, states: Floats, bodies: Sequence[str]) -> Floats:
    """Points `(state, point, 3)` along the middle of bones, one bone after the other."""
    origins, rotations = skeleton.bodies_of(states)
    points = []
    for body in bodies:
        lengths_m = THUMB_BONES_M if body.startswith("th") else BONES_M
        length_m = next(length for part, length in lengths_m.items() if body.endswith(part))
        index = skeleton.bodies.index(body)
        steps_m = np.linspace(0.15, 0.9, 4) * length_m
        points.append(origins[:, index, None] + steps_m[:, None] * rotations[:, index, None, :, 2])
    return np.concatenate(points, axis=1)
