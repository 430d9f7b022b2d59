"""The object and the place that a predicted hand goes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from thinkjepa.pipeline.sample.episodes import PLACES

Floats = npt.NDArray[np.float64]

FINGERTIPS = ("rightThumbTip", "rightIndexFingerTip", "rightMiddleFingerTip")
"""Their middle is where the hand holds things."""


def decide(
    joints: Sequence[str], world_m: Floats, frames: npt.NDArray[np.int64], fact: Mapping[str, Any]
) -> dict[str, float]:
    """1 where joints `(frame, joint, 3)` in the world go to the right object, and to the right place, else 0.

    That is the object nearest to the fingertips when the hand takes it, and the pad nearest when it lets go.
    """
    grip_m = world_m[:, [joints.index(name) for name in FINGERTIPS]].mean(axis=1)
    moments = {
        "object": (fact["grasp_frame"], fact["objects_m"], 0),
        "place": (fact["release_frame"] - 1, fact["places_m"], PLACES.index(fact["place"])),
    }
    return {
        name: float(nearest(grip_m[np.abs(frames - frame).argmin()], np.array(spots_m)) == answer)
        for name, (frame, spots_m, answer) in moments.items()
    }


def nearest(position_m: Floats, spots_m: Floats) -> int:
    """The number of the nearest of spots `(spot, 3)` over the table: height does not count."""
    return int(np.linalg.norm((spots_m - position_m)[:, [0, 2]], axis=1).argmin())
